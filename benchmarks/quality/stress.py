"""Scans that the model was not made for: how far the DSC falls, and whether it is noticed.

    python benchmarks/quality/stress.py DATA [--patients 10] [--kinds noise blur] [--json FILE.json]
    python benchmarks/quality/stress.py DATA --held-out benchmarks/results/cross-validation/RECIPE --model FOLD.onnx

Each kind of stress (`stress_kinds.KINDS`) is made at three strengths from the scans of validation patients
(`splits.json`; without it, all patients with contours). A scan counts as fallen if the DSC of a gland is lower than on
the unchanged scan by more than 0.1, and as noticed if it is refused or has a flag that the unchanged scan has not. Of
the others, those with a new flag on a gland, which doubts its mask, are counted apart from those with new flags on the
scan only, which say that it is unlike those that the model knows; and of the first those on which the gland has a DSC
below 0.7, so that the doubt is right. The table is Markdown.

With --held-out the patients are those that a model of a cross-validation was not trained on, in three groups, and the
expected DSC and the operating range of each group are made from the other two, so that nothing has seen the patients.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from calibrate import POOR_DSC, held_out, measured
from numpy.typing import NDArray
from resources import machine_and_versions
from stress_kinds import KINDS, LEFT, RIGHT, Scan

from parotid_seg.errors import ScanError
from parotid_seg.files import write_text
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.metrics import dice
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.model_file import read_model, with_new_contract
from parotid_seg.runtime.fit_calibration import LEAST_PATIENTS, calibrate, operating_range
from parotid_seg.runtime.segmentation.segment import segment_volume
from parotid_seg.scan.nifti import read_mask, read_nifti
from parotid_seg.scan.volume import Orientation, Volume

FALL = 0.1
"""A fall of the DSC by more must be noticed."""
LEAST_DSC = 0.5
"""A patient with a lower DSC of a gland on the unchanged scan is left out: it can hardly fall."""
GROUPS = 3
"""Of patients that no model has seen; each group's calibration is made from the others."""
AS_STORED = Orientation((2, 1, 0), (False, False, False))
"""Slices are the last axis of a file, as in NIfTI, and the first one here."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a scan.

    Attributes:
        patient, kind, strength: which; the strength in words.
        refused: why; empty if it was segmented.
        dsc: of each gland; a gland that neither mask nor contours show has 1. Empty if the scan was refused.
        flags: codes with structure and, for the operating range, feature.
        fall: largest fall of a gland's DSC.
        new: flags that the unchanged scan does not have.
    """

    patient: str
    kind: str
    strength: str
    refused: str = ""
    dsc: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()
    fall: float = 0.0
    new: tuple[str, ...] = ()

    def against(self, unchanged: Outcome) -> Outcome:
        """Compared with the unchanged scan."""
        falls = [before - now for before, now in zip(unchanged.dsc, self.dsc, strict=False)]
        new = tuple(flag for flag in self.flags if flag not in unchanged.flags)
        return dataclasses.replace(self, fall=round(max(falls, default=0.0), 4), new=new)


def main() -> None:
    """Segment, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set in nnU-Net's raw layout")
    parser.add_argument("--patients", type=int, default=10, help="how many, evenly from the list")
    parser.add_argument(
        "--without",
        nargs="*",
        default=[],
        metavar="PATIENT",
        help="leave these out; with --held-out they still calibrate",
    )
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument(
        "--held-out", type=Path, metavar="DIR", help="a recipe's folder of results; --model is its fold"
    )
    parser.add_argument("--json", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    begun = time.process_time()
    outcomes: list[Outcome] = []
    left_out: list[str] = []
    for patient, backend in patients_and_backends(arguments):
        found = outcomes_of(patient, arguments.data, arguments.kinds, backend)
        print(f"{patient}: {len(found)} scans, {time.process_time() - begun:.0f} s so far", file=sys.stderr, flush=True)
        outcomes += found
        left_out += [] if found else [patient]
    patients = list(dict.fromkeys(each.patient for each in outcomes))
    rows = [row_of(kind, words, outcomes) for kind in arguments.kinds for words in KINDS[kind].words]
    print(table(rows))
    print(f"\n{len(patients)} patients; left out, as the DSC is below {LEAST_DSC} unchanged: {left_out}")
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        **machine_and_versions(),
        "model_sha256": hashlib.sha256(arguments.model.read_bytes()).hexdigest(),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "patients": patients,
        "left_out": left_out,
        "kinds": rows,
        "all": [dataclasses.asdict(each) for each in outcomes],
    }
    if arguments.json:
        write_text(json.dumps(record, indent=1) + "\n", arguments.json)


def patients_and_backends(arguments: argparse.Namespace) -> Iterator[tuple[str, Backend]]:
    """Each patient with the model for it."""
    if not arguments.held_out:
        backend = load_backend(arguments.model, "onnxruntime")
        yield from ((each, backend) for each in chosen(arguments.data, arguments.patients, arguments.without))
        return
    masks, made = held_out(arguments.held_out, "")
    content, contract, _ = read_model(arguments.model)
    glands, seen = measured(arguments.data, masks, contract)
    for number in range(GROUPS):
        others = len(masks) - len(list(masks)[number::GROUPS])
        if others < LEAST_PATIENTS:
            raise SystemExit(f"found {others} patients for a calibration, expected {LEAST_PATIENTS} or more")
        group = [patient for patient in list(masks)[number::GROUPS] if patient not in arguments.without]
        changed = dataclasses.replace(
            contract,
            calibrations=calibrate((each for each in glands if each.patient not in group), contract, made),
            operating_range=operating_range((each for each in seen if each.patient not in group), made),
        )
        with TemporaryDirectory() as folder:
            model = Path(folder, arguments.model.name)
            model.write_bytes(with_new_contract(content, changed))
            backend = load_backend(model, "onnxruntime", allow_unverified=True)
        yield from ((patient, backend) for patient in group)


def chosen(data: Path, count: int, without: Sequence[str]) -> list[str]:
    """Patients, evenly from the validation patients or all with contours."""
    splits = data / "splits.json"
    if splits.exists():
        names = json.loads(splits.read_text())["validation"]
    else:
        names = sorted(path.name.removesuffix(".nii.gz") for path in (data / "labelsTr").glob("*.nii.gz"))
    names = [name for name in names if name not in without]
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[place] for place in places]


def outcomes_of(patient: str, data: Path, kinds: Sequence[str], backend: Backend) -> list[Outcome]:
    """All outcomes of a patient, the unchanged scan's first; none if that has a DSC below `LEAST_DSC`."""
    file = read_nifti(data / "imagesTr" / f"{patient}_0000.nii.gz")
    contours, _ = read_mask(data / "labelsTr" / f"{patient}.nii.gz", like=file)
    hu = np.ascontiguousarray(file.volume.voxels[0]).round().astype(np.int16)
    scan = Scan(hu, np.ascontiguousarray(contours), file.volume.spacing_mm, np.random.default_rng(0))
    unchanged = outcome_of(patient, "unchanged", "", scan, backend)
    if unchanged.refused or min(unchanged.dsc) < LEAST_DSC:
        return []
    stressed = (
        outcome_of(patient, kind, words, changed, backend).against(unchanged)
        for kind in kinds
        for words, changed in stressed_scans(patient, kind, scan)
    )
    return [unchanged, *stressed]


def stressed_scans(patient: str, kind: str, scan: Scan) -> Iterator[tuple[str, Scan]]:
    """A scan under a kind of stress at each strength."""
    for strength, words in zip(KINDS[kind].strengths, KINDS[kind].words, strict=True):
        rng = np.random.default_rng(zlib.crc32(f"{patient} {kind}".encode()))
        yield words, KINDS[kind].change(dataclasses.replace(scan, rng=rng), strength)


def outcome_of(patient: str, kind: str, words: str, scan: Scan, backend: Backend) -> Outcome:
    """Segment a scan."""
    try:
        found = segment_volume(backend, Volume(scan.hu[None], scan.spacing_mm, AS_STORED))
    except ScanError as error:
        return Outcome(patient, kind, words, refused=str(error))
    dsc = tuple(round(agreement(found.mask == side, scan.contours == side), 4) for side in (LEFT, RIGHT))
    return Outcome(patient, kind, words, dsc=dsc, flags=tuple(map(name_of, found.flags)))


def agreement(mask: NDArray[np.bool_], contour: NDArray[np.bool_]) -> float:
    """DSC; 1 if both are empty."""
    return dice(mask, contour) if mask.any() or contour.any() else 1.0


def name_of(flag: Flag) -> str:
    """Code and structure of a flag; of the operating range also the feature."""
    feature = f" {flag.detail.split(',')[0]}" if flag.code == FlagCode.OUTSIDE_RANGE else ""
    return f"{flag.code}{feature}{f' ({flag.structure})' if flag.structure else ''}"


def is_on_gland(name: str) -> bool:
    """Whether a flag, see `name_of`, is on a structure."""
    return name.endswith(")")


def is_right(outcome: Outcome) -> bool:
    """Whether a new flag is on a gland with a DSC below `POOR_DSC`."""
    sides = zip(("left", "right"), outcome.dsc, strict=True)
    return any(name.endswith(f"_{side})") and dsc < POOR_DSC for side, dsc in sides for name in outcome.new)


def row_of(kind: str, words: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a kind at a strength."""
    these = [each for each in outcomes if (each.kind, each.strength) == (kind, words)]
    done = [each for each in these if not each.refused]
    fallen = [each for each in done if each.fall > FALL]
    kept = [each for each in done if each.fall <= FALL]
    flags = Counter(name for each in done for name in {flag.split(" (")[0] for flag in each.new})
    return {
        "kind": kind,
        "strength": words,
        "scans": len(these),
        "refused": len(these) - len(done),
        "dsc": round(float(np.mean([each.dsc for each in done])), 3) if done else None,
        "fall": round(float(np.mean([each.fall for each in done])), 3) if done else None,
        "fallen": len(fallen),
        "fallen_noticed": sum(bool(each.new) for each in fallen),
        "kept": len(kept),
        "kept_gland_flagged": sum(any(map(is_on_gland, each.new)) for each in kept),
        "kept_gland_right": sum(map(is_right, kept)),
        "kept_scan_flagged": sum(bool(each.new) and not any(map(is_on_gland, each.new)) for each in kept),
        "flags": dict(flags.most_common()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown, with a line of sums."""
    lines = [
        "| kind | strength | scans | refused | mean DSC | mean fall | flagged of those fallen by more than 0.1 "
        "| of the others: a gland flagged | (of these below 0.7) | only the scan flagged | new flags |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = ["" if row[name] is None else f"{row[name]:.3f}" for name in ("dsc", "fall")]
        flags = ", ".join(f"{name} {count}" for name, count in row["flags"].items())
        lines.append(
            f"| {row['kind']} | {row['strength']} | {row['scans']} | {row['refused']} | {' | '.join(figures)} "
            f"| {row['fallen_noticed']} of {row['fallen']} | {row['kept_gland_flagged']} of {row['kept']} "
            f"| {row['kept_gland_right']} | {row['kept_scan_flagged']} of {row['kept']} | {flags} |"
        )
    texts = ("kind", "strength", "dsc", "fall", "flags")
    sums = {name: sum(row[name] for row in rows) for name in rows[0] if name not in texts}
    lines.append(
        f"| all | | {sums['scans']} | {sums['refused']} | | | {sums['fallen_noticed']} of {sums['fallen']} "
        f"| {sums['kept_gland_flagged']} of {sums['kept']} | {sums['kept_gland_right']} "
        f"| {sums['kept_scan_flagged']} of {sums['kept']} | |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
