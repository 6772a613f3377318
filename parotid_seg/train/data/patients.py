"""The patients of a data set: voxels and labels in canonical order, decoded once and memory-mapped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import IGNORE
from parotid_seg.errors import InputError, OutputError, ScanError
from parotid_seg.files import is_real_folder
from parotid_seg.flags import DOUBTFUL_PLACE, Flag, FlagCode
from parotid_seg.records import read_record, record_text
from parotid_seg.scan.ct.slice_order import misfits
from parotid_seg.scan.grid import body_centre
from parotid_seg.scan.intensity import Window, Windows, fixed_windows, in_windows
from parotid_seg.scan.nifti import read_mask, read_nifti
from parotid_seg.scan.seen import voxels_hash
from parotid_seg.scan.volume import Mask, Orientation, Volume, Voxels
from parotid_seg.train.data.data_set import MOST_NAMES, SOFT_FOLDER, DataSet
from parotid_seg.wording import some_of

HU_DOUBTS = frozenset(code for code in FlagCode if code.value.startswith("hu_"))
"""Flags of a CT that may not be in HU."""
SMALLEST_BODY = 0.02
"""Least share of tissue in a slice that counts as showing the patient."""
CACHE_FORMAT = 9
LONGEST_NAME = 160
"""Most bytes of a case's name in that of a cache entry; most file systems allow 255 in all."""
IGNORED = np.uint8(255)
"""Stands for ignored voxels in the hash of a label map."""
INCOMPLETE_ENTRY = re.compile(r".+\.partial-[0-9a-f]{16}", re.DOTALL)
ABANDONED_AFTER_HOURS = 1.0
"""Age from which an incomplete entry is one of a killed process: entries are written within seconds."""
SHARE_OF_ALL = 255
"""Value of a voxel's soft label where the structure is certain."""


@dataclass(frozen=True)
class Patient:
    """One patient; the arrays are read from disk on demand.

    Attributes:
        volume, windows: the scan, (C, D, H, W), and windows of its channels, from `scan.intensity.in_windows`; its
            flags are those of `HU_DOUBTS`, `DOUBTFUL_PLACE` and `misfits`.
        labels: its label map, (D, H, W); background for a stage without labels, and where it is ignored. Of a patient
            who has none but soft labels: the largest of them.
        centre_mm: in-plane centre (y, x) of the body.
        shown_in: for each label the indices of the slices that show it, rising; empty for background.
        body_slices: indices of the slices that show the patient.
        ignored: (D, H, W) bool, the unlabelled voxels; None if the data set has no label "ignore".
        known_slices: indices of the slices that are not completely ignored, rising.
        soft: (structures, D, H, W) uint8, shares of each structure in 1/255; None without soft labels.
        contoured: whether there is a label map.
        sha256: hash of the scan's voxels in canonical order.
        labels_sha256: the same of what is learnt from: label map, ignored voxels and soft labels; "" without any.
    """

    name: str
    volume: Volume
    windows: Windows
    labels: Mask
    centre_mm: tuple[float, float]
    shown_in: tuple[tuple[int, ...], ...]
    body_slices: tuple[int, ...]
    known_slices: tuple[int, ...]
    ignored: NDArray[np.bool_] | None = None
    soft: NDArray[np.uint8] | None = None
    contoured: bool = True
    sha256: str = ""
    labels_sha256: str = ""


@dataclass(frozen=True)
class Facts:
    """Cached data of a decoded scan besides its voxels; see `Patient`. A flag's fields are in their order."""

    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    windows: tuple[tuple[float, float], ...]
    centre_mm: tuple[float, float]
    body_slices: tuple[int, ...]
    flags: tuple[tuple[FlagCode, str, float | None, str], ...]
    sha256: str


def load_patients(
    data: DataSet,
    cases: Sequence[str],
    cache: Path,
    window_hu: Window,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Patient]:
    """Decode scans and labels once into `cache`, then memory-map them, so that only drawn slices are in memory.

    Args:
        window_hu: the window of channels named CT.

    Raises:
        ScanError, InputError: if a scan or label map cannot be used, a CT is not in HU, a label map has other voxels
            than the scan's first channel, or it holds a label without a name; one error for all patients.
        OutputError: if the cache cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(cache)
    patients: list[Patient] = []
    unusable: list[ScanError | InputError] = []
    for case in cases:
        progress(case)
        try:
            patients.append(_load_patient(data, case, cache, window_hu))
        except (ScanError, InputError) as error:
            unusable.append(error)
    if len(unusable) > 1:
        raise ScanError(
            f"{len(unusable)} of {len(cases)} patients cannot be used: {some_of(map(str, unusable), MOST_NAMES, '; ')}",
            path=data.folder,
        )
    if unusable:
        raise unusable[0]
    return patients


def _load_patient(data: DataSet, case: str, cache: Path, window_hu: Window) -> Patient:
    images = [data.image_path(case, channel) for channel in range(len(data.channels))]
    entry, facts = decoded(data, case, cache, window_hu)
    voxels: Voxels = _mapped(entry / "voxels.npy", 4)
    flags = tuple(Flag(*each) for each in facts.flags)
    volume = Volume(voxels, facts.spacing_mm, Orientation(facts.axes, facts.flips), flags)
    labels: Mask = np.broadcast_to(np.uint8(0), volume.shape)
    shown_in: tuple[tuple[int, ...], ...] = ((),) * len(data.labels)
    ignored: NDArray[np.bool_] | None = None
    known_slices = tuple(range(volume.shape[0]))
    soft: NDArray[np.uint8] | None = None
    hashes: list[str] = []
    contoured = bool(data.label_folder) and case not in data.unlabelled
    if case in data.soft:
        files = [data.soft_path(case, value) for value in range(1, len(data.labels))]
        entry = cache / f"{_short(case)}-{SOFT_FOLDER}-{_key(images[0], *files)}"
        if not entry.exists():
            _save_soft(entry, files, images[0])
        soft = _mapped(entry / "soft.npy", 4)
        labels, shown_in = _read_labels(entry, hashes)
    if contoured:
        values = data.stored_values if data.ignore is None else (*data.stored_values, IGNORE, data.ignore)
        entry = cache / f"{_short(case)}-{data.label_folder}-{_key(images[0], data.label_path(case), values=values)}"
        if not entry.exists():
            _save_labels(entry, data, case)
        labels, shown_in = _read_labels(entry, hashes)
        if data.ignore is not None:
            ignored = _mapped(entry / "ignored.npy", 3)
            known_slices = read_record(entry / "known_slices.json", tuple[int, ...])
    return Patient(
        name=case,
        volume=volume,
        labels=labels,
        windows=np.array(facts.windows, np.float32),
        centre_mm=facts.centre_mm,
        shown_in=shown_in,
        body_slices=facts.body_slices,
        known_slices=known_slices,
        ignored=ignored,
        soft=soft,
        contoured=contoured,
        sha256=facts.sha256,
        labels_sha256=" ".join(hashes),
    )


def _read_labels(entry: Path, hashes: list[str]) -> tuple[Mask, tuple[tuple[int, ...], ...]]:
    """The labels of a cache entry, and the slices that show each; their hash is added to some."""
    hashes.append(read_record(entry / "sha256.json", str))
    return _mapped(entry / "labels.npy", 3), read_record(entry / "shown_in.json", tuple[tuple[int, ...], ...])


def decoded(data: DataSet, case: str, cache: Path, window_hu: Window) -> tuple[Path, Facts]:
    """The cache's folder of a scan, which is decoded if it is not there, and its facts.

    Args:
        data, cache, window_hu: see `load_patients`.
        case: whose scan.

    Raises:
        ScanError: if the scan cannot be used.
    """
    images = [data.image_path(case, channel) for channel in range(len(data.channels))]
    fixed = fixed_windows(data.channels, window_hu)
    entry = cache / f"{_short(case)}-{_key(*images, values=fixed)}"
    if not entry.exists():
        _save_scan(entry, images, data.channels, fixed)
    return entry, read_record(entry / "facts.json", Facts)


def _mapped(path: Path, dimensions: int) -> NDArray[Any]:
    """A memory-mapped array on disk.

    Raises:
        InputError: if it is not an array with this number of dimensions.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header can raise any error of Python's parser
        reason = f"not a decoded scan ({type(error).__name__}); remove its folder, it is made again"
        raise InputError(reason, path=path) from error
    if array.ndim != dimensions:
        raise InputError(f"found {array.ndim} dimensions, expected {dimensions}; remove its folder", path=path)
    return array


def _short(case: str) -> str:
    """A case's name for a cache entry, cut to leave room for the key, by which entries differ."""
    return case.encode()[:LONGEST_NAME].decode(errors="ignore")


def _key(*files: Path, values: Sequence[object] = ()) -> str:
    """Key of a cache entry's sources."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr([CACHE_FORMAT, *stats, *values]).encode()).hexdigest()[:16]


def _save_scan(entry: Path, images: Sequence[Path], channels: Sequence[str], fixed: Sequence[Window | None]) -> None:
    volume = read_nifti(*images).volume
    try:
        volume, windows = in_windows(volume, channels, fixed)
    except ScanError as error:
        raise ScanError(error.reason, path=images[0]) from error
    centre = zip(body_centre(volume, windows), volume.spacing_mm[1:], strict=True)
    tissue = np.count_nonzero(volume.voxels[0] > windows[0, 0], axis=(1, 2)) / volume.voxels[0, 0].size
    y_mm, x_mm = (float(voxel * spacing) for voxel, spacing in centre)
    voxels = np.ascontiguousarray(volume.voxels)
    flags = (*(flag for flag in volume.flags if flag.code in HU_DOUBTS | DOUBTFUL_PLACE), *misfits(volume, channels))
    facts = Facts(
        spacing_mm=volume.spacing_mm,
        axes=volume.orientation.axes,
        flips=volume.orientation.flips,
        windows=tuple((float(low), float(high)) for low, high in windows),
        centre_mm=(y_mm, x_mm),
        body_slices=tuple(np.flatnonzero(tissue >= SMALLEST_BODY).tolist()),
        flags=tuple(map(dataclasses.astuple, flags)),
        sha256=voxels_hash(voxels),
    )
    if not facts.body_slices:
        raise ScanError(f"shows no patient: expected slices with tissue above {windows[0, 0]:g}", path=images[0])
    with _whole_entry(entry) as partial:
        np.save(partial / "voxels.npy", voxels)
        (partial / "facts.json").write_text(record_text(facts))


def _save_labels(entry: Path, data: DataSet, case: str) -> None:
    path = data.label_path(case)
    stored, _ = read_mask(path, like=read_nifti(data.image_path(case)))
    unknown = set(np.unique(stored).tolist()) - {*data.stored_values, data.ignore}
    if data.label_folder == "labelsTr" and unknown:
        ignore = "" if data.ignore is None else f" or {data.ignore} (ignore)"
        raise InputError(f"found label {max(unknown)}, expected 0 to {len(data.labels) - 1}{ignore}", path=path)
    labels = np.zeros_like(stored)
    for value, stored_value in enumerate(data.stored_values):
        labels[stored == stored_value] = value
    shown_in = [np.flatnonzero((labels == value).any(axis=(1, 2))).tolist() for value in range(1, len(data.labels))]
    with _whole_entry(entry) as partial:
        np.save(partial / "labels.npy", labels)
        (partial / "sha256.json").write_text(record_text(voxels_hash(np.where(stored == data.ignore, IGNORED, labels))))
        (partial / "shown_in.json").write_text(record_text([[], *shown_in]))
        if data.ignore is not None:
            ignored = stored == data.ignore
            np.save(partial / "ignored.npy", ignored)
            known_slices = np.flatnonzero(~ignored.all(axis=(1, 2))).tolist()
            (partial / "known_slices.json").write_text(record_text(known_slices))


def _save_soft(entry: Path, files: Sequence[Path], image: Path) -> None:
    """Save soft labels, and the label map that they give: in each voxel what has the largest share."""
    scan = read_nifti(image)
    soft = np.stack([read_mask(path, like=scan)[0] for path in files])
    total = soft.sum(axis=0, dtype=np.int16)
    if total.max() > SHARE_OF_ALL + len(files):  # each share is rounded
        raise InputError(
            f"soft labels: found shares whose sum in a voxel is {total.max()}, expected at most {SHARE_OF_ALL}",
            path=files[0],
        )
    if soft.max() == 1:
        raise InputError(
            f"soft labels: found no share above 1, expected some of up to {SHARE_OF_ALL}; are these masks of 0 and 1?",
            path=files[0],
        )
    labels = np.where(soft.max(axis=0) > SHARE_OF_ALL - total, 1 + soft.argmax(axis=0), 0).astype(np.uint8)
    shown_in = [np.flatnonzero((labels == value).any(axis=(1, 2))).tolist() for value in range(1, 1 + len(files))]
    with _whole_entry(entry) as partial:
        np.save(partial / "soft.npy", soft)
        (partial / "sha256.json").write_text(record_text(voxels_hash(soft)))
        np.save(partial / "labels.npy", labels)
        (partial / "shown_in.json").write_text(record_text([[], *shown_in]))


def _remove_abandoned(cache: Path) -> None:
    """Remove the incomplete entries of killed processes; those of other runs that fill the cache now are younger."""
    for partial in cache.glob("*.partial-*"):
        if not (INCOMPLETE_ENTRY.fullmatch(partial.name) and is_real_folder(partial)):
            continue
        with contextlib.suppress(OSError):  # its writer has removed or renamed it
            if time.time() - partial.lstat().st_mtime > 3600 * ABANDONED_AFTER_HOURS:
                shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _whole_entry(entry: Path) -> Iterator[Path]:
    """A folder that gets its final name when it is complete; another process may have made it first.

    Raises:
        OutputError: if it cannot be written, for example because the disk is full.
    """
    partial = entry.with_name(f"{entry.name}.partial-{secrets.token_hex(8)}")
    try:
        partial.mkdir()
        yield partial
        partial.rename(entry)
    except OSError as error:
        if not entry.exists():
            raise OutputError(f"cannot be written ({error.strerror or error})", path=entry) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
