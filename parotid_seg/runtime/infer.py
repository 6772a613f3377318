"""A folder of scans to a folder of masks: the model is loaded once, scans stream through, a case is a transaction."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from parotid_seg.errors import InputError, ScanError
from parotid_seg.files import make_folder, remove_orphans, write_text
from parotid_seg.runtime.backend import Backend
from parotid_seg.runtime.cases import Case, Scan, find_scans, name_cases
from parotid_seg.runtime.journal import Entry, Journal, hash_file
from parotid_seg.runtime.load import load_backend
from parotid_seg.runtime.picture import draw_overlay
from parotid_seg.runtime.segmenter import segment_volume
from parotid_seg.scan.intensity import window_of
from parotid_seg.scan.nifti import is_own_mask, read_nifti, write_mask

DEFAULT_BATCH_SIZE = 16
PICTURES = "pictures"


@dataclass(frozen=True)
class InferOptions:
    """What `parotid-seg infer` was asked for.

    Attributes:
        model: model file.
        backend, device: see `load_backend`.
        batch_size: slices the model takes at once.
        clean_up: see `keep_largest_components`.
        pictures: write an overlay picture a case.
        overwrite: redo cases that are done.
        allow_unverified: see `load_backend`.
    """

    model: Path
    backend: str = "auto"
    device: str = "auto"
    batch_size: int = DEFAULT_BATCH_SIZE
    clean_up: bool = True
    pictures: bool = True
    overwrite: bool = False
    allow_unverified: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch-size: found {self.batch_size}, expected at least 1")


@dataclass(frozen=True)
class Outcome:
    """How one case ended, for the terminal: "done", "skipped" (done before) or "failed"."""

    status: str
    entry: Entry
    number: int
    total: int


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    done: int
    skipped: int
    failed: int
    out: Path

    @property
    def exit_status(self) -> int:
        """0 all done, 3 some cases failed, 1 nothing was done."""
        if not self.failed:
            return 0
        return 3 if self.done + self.skipped else 1


def infer(
    scans: Sequence[Path],
    out: Path,
    options: InferOptions,
    *,
    started: Callable[[Backend, int], None] = lambda *_: None,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> Summary:
    """Segment scans into `out`.

    Cases that `out` already holds for the same scan, model and options are skipped. A case that fails is set aside
    with its reason and the others go on.

    Args:
        scans: files and folders.
        out: output folder, made if missing.
        started: told the loaded model and the number of cases before the first one.
        progress: told the outcome of every case.

    Raises:
        ModelError, InputError: before anything is done; InputError also if there is no scan at all.
        OutputError: if results cannot be written; cases finished before stay whole.
    """
    begun = datetime.now(UTC)
    backend = load_backend(options.model, options.backend, options.device, allow_unverified=options.allow_unverified)
    journal = Journal(out)
    results = [out / entry.mask for entry in journal.entries.values() if entry.mask]
    ignored = [*results, *([] if _inside(scans, out) else [out])]
    found, errors = find_scans(scans, backend.contract.channels, ignore=ignored)
    if not found:
        raise InputError("; ".join(map(str, errors)) or "no scan was named")
    make_folder(out)
    cases = name_cases(found, journal.owners())
    remove_orphans(out)
    run = _Run(backend, out, options, journal)
    started(backend, len(cases) + len(errors))
    total = len(cases) + len(errors)
    outcomes: list[Outcome] = []
    for error in errors:
        entry = Entry(case="", source=str(error).split(": ")[0], key="", status="failed", reason=str(error))
        outcomes.append(Outcome("failed", entry, len(outcomes) + 1, total))
        progress(outcomes[-1])
    try:
        for case in cases:
            status, entry = run.case(case)
            outcomes.append(Outcome(status, entry, len(outcomes) + 1, total))
            progress(outcomes[-1])
    finally:
        _write_summary([outcome.entry for outcome in outcomes], backend.contract.labels, out / "summary.csv")
        _write_run(run, outcomes, scans, begun, out / "run.json")
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in ("done", "skipped", "failed")}
    return Summary(**counts, out=out)


class _Run:
    """One run's fixed parts, and what happens to each case."""

    def __init__(self, backend: Backend, out: Path, options: InferOptions, journal: Journal) -> None:
        self.backend, self.out, self.options, self.journal = backend, out, options, journal

    def case(self, case: Case) -> tuple[str, Entry]:
        """Segment one case, or find it done. Only OutputError comes out of it."""
        key = ""
        try:
            key = self._key(case.scan)
            if not self.options.overwrite and self.journal.is_done(case.name, key):
                return "skipped", self.journal.entries[case.name]
            entry = self._segment(case, key)
        except ScanError as error:
            named = any(str(path) in str(error) for path in case.scan)
            reason = str(error) if named else f"{case.scan[0]}: {error}"
            entry = Entry(case.name, str(case.scan[0]), key, "failed", reason=reason)
        self.journal.add(entry)
        return entry.status, entry

    def _key(self, scan: Scan) -> str:
        """Hash over everything that decides the mask."""
        hashes = []
        for channel, path in zip(self.backend.contract.channels, scan, strict=True):
            try:
                hashes.append(hash_file(path))
            except FileNotFoundError as error:
                raise ScanError(f"{path}: no such file, expected the case's channel {channel}") from error
            except OSError as error:
                raise ScanError(f"{path}: cannot be read ({error.strerror})") from error
        parts = (*hashes, self.backend.model_sha256, str(self.options.clean_up))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _segment(self, case: Case, key: str) -> Entry:
        mask_path = self.out / f"{case.name}.nii.gz"
        if mask_path.exists() and case.name not in self.journal.entries and not is_own_mask(mask_path):
            raise ScanError(
                f"{case.scan[0]}: {mask_path} exists and is no mask of ours; move it or choose another --out"
            )
        watch = [time.perf_counter()]
        scan = read_nifti(*case.scan)
        watch.append(time.perf_counter())
        found = segment_volume(
            self.backend, scan.volume, batch_size=self.options.batch_size, clean_up=self.options.clean_up
        )
        watch.append(time.perf_counter())
        if self.options.pictures:
            picture = self.out / PICTURES / f"{case.name}.png"
            make_folder(picture.parent)
            window = window_of(scan.volume.voxels[0], self.backend.contract.windows[0])
            draw_overlay(scan.volume, window, found.mask, found.volumes_ml, case.name, picture)
        write_mask(found.mask, scan, mask_path)
        watch.append(time.perf_counter())
        stages = zip(("read", "segment", "write"), watch, watch[1:], strict=False)
        return Entry(
            case=case.name,
            source=str(case.scan[0]),
            key=key,
            status="done",
            mask=mask_path.name,
            mask_sha256=hash_file(mask_path),
            volumes_ml={name: round(size, 3) for name, size in found.volumes_ml.items()},
            flags=found.flags,
            seconds={stage: round(end - start, 4) for stage, start, end in stages},
            **asdict(self.backend.ran),
        )


def _write_summary(entries: Sequence[Entry], labels: tuple[str, ...], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    volumes = [f"{name.removeprefix('parotid_')}_ml" for name in labels[1:]]
    stages = ("read", "segment", "write")
    times = [f"{stage}_s" for stage in stages]
    writer.writerow(
        ["case", "status", *volumes, "flags", *times, "backend", "device", "precision", "reason", "mask", "source"]
    )
    for entry in entries:
        sizes = [f"{entry.volumes_ml[name]:.2f}" if name in entry.volumes_ml else "" for name in labels[1:]]
        seconds = [entry.seconds.get(stage, "") for stage in stages]
        ran = (entry.backend, entry.device, entry.precision)
        told = (entry.reason, entry.mask, entry.source)
        writer.writerow([entry.case, entry.status, *sizes, "; ".join(entry.flags), *seconds, *ran, *told])
    write_text(text.getvalue(), path)


def _write_run(run: _Run, outcomes: Sequence[Outcome], scans: Sequence[Path], begun: datetime, path: Path) -> None:
    packages = ("parotid-seg", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "nibabel")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    content = {
        "begun": begun.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {**asdict(run.options), "model": str(run.options.model), "scans": [str(scan) for scan in scans]},
        "model": {
            "sha256": run.backend.model_sha256,
            "contract": json.loads(run.backend.contract.to_json()),
        },
        "ran": asdict(run.backend.ran),
        "cases": {status: sum(o.status == status for o in outcomes) for status in ("done", "skipped", "failed")},
        "versions": versions,
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
    }
    write_text(json.dumps(content, indent=1) + "\n", path)


def _inside(scans: Sequence[Path], out: Path) -> bool:
    """Whether scans are asked for in the output folder itself or below it."""
    return any(scan.resolve().is_relative_to(out.resolve()) for scan in scans)
