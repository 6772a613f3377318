"""Calibrates a model file on masks of patients that it was not trained on, and measures how well the floors hold and
how many of the patients lie outside the operating range.

    python benchmarks/calibrate.py DATA benchmarks/results/cross-validation/RECIPE --out FILE.json --store MODEL.onnx
    python benchmarks/calibrate.py DATA MASKS... --made "masks of ..." --out FILE.json --store MODEL.onnx

The masks are those of the patients that were held out in the finished folds of a cross-validation
(`cross_validation.py`; run it again when more folds are finished), or all masks of one or more folders. Calibration
and range are those of `parotid-seg export --calibrate`; --store writes them into a model file, whose graph stays as it
is. FILE.json has the expected and the achieved DSC of every gland, with its patient left out, and the features of the
range.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from parotid_seg.calibration import Calibration, OperatingRange
from parotid_seg.contract import Contract
from parotid_seg.files import atomic_write, write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.records import write_record
from parotid_seg.runtime.engines.model_file import read_model, with_new_contract
from parotid_seg.runtime.fit_calibration import (
    Gland,
    SeenPatient,
    calibrate,
    glands_of,
    left_out_estimates,
    operating_range,
    seen_patient,
)
from parotid_seg.scan.nifti import read_mask, read_nifti

POOR_DSC = 0.7
"""Glands below it are those that a flag should find."""


def figures_of(glands: list[Gland], calibration: Calibration) -> dict[str, Any]:
    """How well the expected DSC of patients left out fits, and what the flag finds."""
    dsc = np.array([gland.dsc for gland in glands])
    expected = left_out_estimates(calibration.structures, glands)
    floors = np.array([left_out_floor(gland, glands, calibration) for gland in glands])
    held, flagged, poor = dsc >= floors, expected < calibration.review_below, dsc < POOR_DSC
    interval = stats.binomtest(int(held.sum()), len(held)).proportion_ci()
    return {
        "glands": len(glands),
        "patients": calibration.patients,
        "mean_dsc": round(float(dsc.mean()), 4),
        "spearman": round(float(stats.spearmanr(expected, dsc).statistic), 4),
        "mean_absolute_error": round(float(np.abs(expected - dsc).mean()), 4),
        "mean_absolute_error_of_the_median": round(float(np.abs(np.median(dsc) - dsc).mean()), 4),
        "mean_floor": round(float(floors.mean()), 4),
        "floor_held": round(float(held.mean()), 4),
        "floor_held_interval": [round(float(each), 4) for each in (interval.low, interval.high)],
        "flagged": int(flagged.sum()),
        "poor": int(poor.sum()),
        "poor_flagged": int((poor & flagged).sum()),
        "all": rows_of(glands, expected, floors),
    }


def left_out_floor(gland: Gland, glands: list[Gland], calibration: Calibration) -> float:
    """The floor of a gland by a calibration on the other patients."""
    others = [each for each in glands if each.patient != gland.patient]
    contract = read_model(DEFAULT_MODEL).contract
    found = [each for each in calibrate(others, contract, "") if each.structures == calibration.structures]
    if not found:
        raise SystemExit(
            f"found {calibration.patients} patients, expected enough for a calibration without one of them"
        )
    return found[0].estimate(gland.features).floor_dsc


def rows_of(glands: list[Gland], expected: NDArray[np.float64], floors: NDArray[np.float64]) -> list[dict[str, Any]]:
    """A record for each gland."""
    return [
        {
            "patient": gland.patient,
            "structure": gland.structure,
            "dsc": round(gland.dsc, 4),
            "expected_dsc": round(float(dsc), 4),
            "floor_dsc": round(float(floor), 4),
            "features": {name: round(value, 4) for name, value in gland.features.items()},
        }
        for gland, dsc, floor in zip(glands, expected, floors, strict=True)
    ]


def held_out(results: Path, made: str) -> tuple[dict[str, Path], str]:
    """The masks by patient, and what they are.

    Args:
        results: a recipe's folder, or a folder of masks.
        made: what the masks of the latter are.
    """
    folds = [json.loads(path.read_text()) for path in sorted(results.glob("fold-*.json"))]
    if folds:
        patients = sorted(patient for each in folds for patient in each["patients"])
        numbers = ", ".join(str(each["fold"]) for each in folds)
        masks = {patient: results / "masks" / f"{patient}.nii.gz" for patient in patients}
        return masks, f"out-of-fold masks of the recipe {results.name}, fold {numbers}"
    return {path.name.removesuffix(".nii.gz"): path for path in sorted(results.glob("*.nii.gz"))}, made


def all_held_out(folders: Sequence[Path], made: str) -> tuple[dict[str, Path], str]:
    """The same of several folders."""
    masks: dict[str, Path] = {}
    for folder in folders:
        more, made = held_out(folder, made)
        if doubles := sorted(masks.keys() & more.keys()):
            raise SystemExit(f"{folder}: found masks of {', '.join(doubles)} again, expected each patient once")
        masks |= more
    return dict(sorted(masks.items())), made


def measured(data: Path, masks: Mapping[str, Path], contract: Contract) -> tuple[list[Gland], list[SeenPatient]]:
    """What calibration and range are made of: glands with their DSC, and the features of each patient."""
    glands: list[Gland] = []
    seen: list[SeenPatient] = []
    for patient, path in masks.items():
        scan = read_nifti(data / "imagesTr" / f"{patient}_0000.nii.gz")
        contour, _ = read_mask(data / "labelsTr" / f"{patient}.nii.gz", like=scan)
        mask, _ = read_mask(path, like=scan)
        glands += glands_of(patient, scan.volume, mask, contour, contract)
        seen.append(seen_patient(patient, scan.volume, mask, contract))
    return glands, seen


def share_outside(patients: Sequence[SeenPatient]) -> float:
    """Share of patients outside the range, margin included, that is made from the others."""
    outside = 0
    for each in patients:
        made = operating_range((other for other in patients if other is not each), "")
        outside += made is not None and any(True for _ in made.outside_of(each.seen.scan, each.seen.structures))
    return outside / len(patients)


def range_record(limits: OperatingRange | None, seen: list[SeenPatient]) -> dict[str, Any]:
    """The operating range, the share of patients outside it if it is made from the others, and their features."""
    if limits is None:
        return {"patients": len(seen)}
    return {
        **dataclasses.asdict(limits),
        "outside": round(share_outside(seen), 4),
        "all": [
            {"patient": each.patient, **{part: rounded(getattr(each.seen, part)) for part in each.seen._fields}}
            for each in seen
        ],
    }


def rounded(values: Any) -> Any:
    """Numbers in nested records with four digits after the point."""
    return {name: rounded(each) for name, each in values.items()} if isinstance(values, dict) else round(values, 4)


def store(calibrations: tuple[Calibration, ...], limits: OperatingRange | None, path: Path) -> None:
    """Write both into a model file, and its new hash into the record of its comparison beside it."""
    content, contract, _ = read_model(path)
    changed = with_new_contract(
        content, dataclasses.replace(contract, calibrations=calibrations, operating_range=limits)
    )
    with atomic_write(path) as partial:
        partial.write_bytes(changed)
    record = path.with_suffix(".parity.json")
    if record.exists():
        write_record({**json.loads(record.read_text()), "model_sha256": hashlib.sha256(changed).hexdigest()}, record)


def main() -> None:
    """Calibrate, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set in nnU-Net's raw layout")
    parser.add_argument(
        "masks", type=Path, nargs="+", help="a recipe's folder (fold-N.json and masks/), or folders of masks"
    )
    parser.add_argument("--made", default="", help="what the masks of a folder are, in words for the model file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--store", type=Path, metavar="MODEL.onnx", help="the model file that gets the calibration")
    arguments = parser.parse_args()
    contract = read_model(arguments.store or DEFAULT_MODEL).contract
    masks, made = all_held_out(arguments.masks, arguments.made)
    if not made:
        parser.error("expected --made with a folder of masks")
    glands, seen = measured(arguments.data, masks, contract)
    calibrations, limits = calibrate(glands, contract, made), operating_range(seen, made)
    if not calibrations:
        raise SystemExit(f"found {len(glands)} glands of {len(masks)} patients, expected more")
    record: dict[str, Any] = {"made": made, "calibrations": [dataclasses.asdict(each) for each in calibrations]}
    for each in calibrations:
        chosen = [gland for gland in glands if gland.structure in each.structures]
        record[" and ".join(each.structures)] = figures = figures_of(chosen, each)
        print(json.dumps({**figures, "all": "..."}, indent=1))
        print(f"{each}\n{each.weights}\n{each.origin}")
    record["operating range"] = range_record(limits, seen)
    print(
        f"{limits.origin}\nwith each patient left out, {record['operating range']['outside']:.1%} lie outside"
        if limits
        else ""
    )
    write_text(json.dumps(record, indent=1) + "\n", arguments.out)
    if arguments.store:
        store(calibrations, limits, arguments.store)


if __name__ == "__main__":
    main()
