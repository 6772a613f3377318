"""Calibrates a model on labelled patients that it was not trained on, for the contract of its file: the expected DSC of
its masks, and its operating range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from parotid_seg.calibration import Calibration, OperatingRange
from parotid_seg.contract import Contract
from parotid_seg.errors import OptionError, ScanError
from parotid_seg.export.parity import contour_of, names_in, scans_in, torch_labels
from parotid_seg.runtime.evaluation import dsc_of_sides, exchanged_in
from parotid_seg.runtime.fit_calibration import (
    LEAST_GLANDS,
    LEAST_PATIENTS,
    Gland,
    SeenPatient,
    calibrate,
    glands_of,
    operating_range,
    seen_patient,
)
from parotid_seg.runtime.label_match import RUN, Contours, read_run
from parotid_seg.runtime.pipeline.sources import Scan, place_of, read_scan
from parotid_seg.scan.components import clean_labels
from parotid_seg.scan.grid import MOST_OUTSIDE, body_centre, share_outside
from parotid_seg.scan.intensity import in_windows
from parotid_seg.scan.seen import Seen, hash_of_scan, voxels_hash
from parotid_seg.scan.volume import Mask, Volume
from parotid_seg.train.network import ParotidNet
from parotid_seg.wording import Say, some_of

MASKS = "masks"
"""Folder of masks beside `imagesTr` and `labelsTr`, named as the contours."""
UNSEEN = "none of them may be one that the model was trained on"
UNCHECKED = f"{UNSEEN}; which scans it was trained on is not recorded, so this is not checked"


def calibrated_on(
    place: Path, net: ParotidNet, contract: Contract, report: Say = lambda _: None
) -> tuple[tuple[Calibration, ...], OperatingRange | None]:
    """The calibrations of a model, and its operating range.

    Args:
        place: folder with `imagesTr` and `labelsTr` of patients that the model was not trained on. If it has a folder
            `masks`, these are the masks; they must be those of models that were not trained on the same patients, such
            as the folds of a cross-validation. Otherwise the trained model makes them.
        net: the trained model, in FP32.
        contract: its contract.
        report: called with one line for each event.

    Raises:
        OptionError: if there are too few patients, two of the same voxels, a mask is missing, or the model was trained
            on a patient whose mask it makes.
        InputError: if the labels of contours or masks cannot be matched with the model's by name.
        ScanError: if a scan, a contour or a mask cannot be read, or a contour has ignored voxels.
    """
    masks = place / MASKS if (place / MASKS).is_dir() else None
    glands: list[Gland] = []
    seen: list[SeenPatient] = []
    found = scans_in(place, contract.channels, option="--calibrate", ignore=[place / MASKS])
    known = _check_unseen(found, contract, place) if masks is None else True
    without: list[str] = []
    of_sides: dict[str, tuple[float, float]] = {}
    names: dict[str, str] = {}
    for name, sources in zip(names_in(place, found), found, strict=True):
        first = sources[0]
        contour = contour_of(first) if isinstance(first, Path) else None
        if contour is None:
            without.append(name)
            continue
        try:
            volume, mask, drawn = _patient(sources, contour, masks, net, contract)
            _check_once(volume, name, names, place)
            glands += glands_of(name, volume, mask, drawn, contract)
            seen.append(seen_patient(name, volume, mask, contract))
            if sides := dsc_of_sides(mask, drawn, contract.labels):
                of_sides[name] = sides
        except ScanError as error:
            raise ScanError(error.reason, path=error.path or place_of(first)) from error
    _report_doubts(of_sides, without, len(found), report)
    patients = len({each.patient for each in glands})
    whose = "the model's masks" if masks is None else _whose(masks, found, contract, report)
    calibrations = calibrate(glands, contract, f"{patients} patients, {whose}")
    limits = operating_range(seen, whose)
    if not calibrations:
        raise OptionError(
            f"--calibrate: {place}: found {len(glands)} structures of {patients} patients with mask and contour, "
            f"expected at least {LEAST_GLANDS} of {LEAST_PATIENTS}"
        )
    report(f"calibrated on the patients of {place}; {UNSEEN if known else UNCHECKED}")
    for each in calibrations:
        report(f"expected DSC of {', '.join(each.structures)}: {each}; {each.origin}")
    if limits:
        report(f"operating range: {limits.origin}")
    return calibrations, limits


def _report_doubts(
    of_sides: Mapping[str, tuple[float, float]], without: Sequence[str], patients: int, report: Say
) -> None:
    """Say patients whose sides seem exchanged, and those without a contour."""
    text, exchanged = exchanged_in(of_sides, "masks", "contours")
    if exchanged:
        report(f"warning: {text}: {len(exchanged)} of {patients} ({some_of(exchanged)})")
    if without:
        report(f"not calibrated on, since without a contour: {len(without)} of {patients} ({some_of(without)})")


def _whose(masks: Path, scans: Sequence[Scan], contract: Contract, report: Say) -> str:
    """Whose the masks in a folder are, in words; by the run.json of `infer` there they may be of a model that has seen
    the patients, which is reported."""
    path = masks / RUN
    if path.is_file():
        training = read_run(path).model.contract.training
        if seen := _seen(Seen.recorded(training), scans, contract):
            report(
                f"warning: {path}: this model was trained on {len(seen)} of the {len(scans)} patients "
                f"({some_of(seen)}); if the masks are its own, the floors are too high"
            )
            return f"masks, perhaps of a model that was trained on {len(seen)} of them"
    return "masks of models not trained on them"


def _seen(trained_on: Seen, scans: Sequence[Scan], contract: Contract) -> list[str]:
    """Names of the scans that are among those of a training; errors as `_check_unseen`."""
    files = [sources for sources in scans if all(isinstance(each, Path) for each in sources)]
    return [
        cast(Path, sources[0]).name
        for sources in (files if trained_on.scans else [])
        if trained_on.has(hash_of_scan(cast(tuple[Path, ...], sources), contract.channels, contract.windows))
    ]


def _check_unseen(scans: Sequence[Scan], contract: Contract, place: Path) -> bool:
    """Check that a model was not trained on some scans, whose masks would be better than those of new patients.

    Returns:
        Whether the model records all scans that it was trained on.

    Raises:
        OptionError: if it was trained on one of them.
        ScanError: if a scan cannot be read.
    """
    trained_on = Seen.recorded(contract.training)
    if seen := _seen(trained_on, scans, contract):
        raise OptionError(
            f"--calibrate: {place}: the model was trained on {len(seen)} of the {len(scans)} patients "
            f"({some_of(seen)}), and its masks of them are better than those of new ones; expected others, or masks of "
            f"a cross-validation in {place / MASKS}"
        )
    return trained_on.complete


def _check_once(volume: Volume, name: str, names: dict[str, str], place: Path) -> None:
    """Note a patient's name by the hash of the scan; raise OptionError if there is another of the same voxels."""
    if (same := names.setdefault(voxels_hash(volume.voxels), name)) != name:
        raise OptionError(
            f"--calibrate: {place}: {same} and {name} are the same scan, expected each patient once: the floor comes "
            "from patients that are left out in turn"
        )


def _patient(
    sources: Scan, contour: Path, masks: Path | None, net: ParotidNet, contract: Contract
) -> tuple[Volume, Mask, Mask]:
    """A patient's scan, the mask in a folder or that of the model, and the contour.

    Raises:
        ScanError: also if the model cannot find all of the contour, because its grid is around the middle of the body;
            `infer` moves it to the glands.
    """
    scan = read_scan(sources)
    drawn = Contours(contract.labels, contour.parent).read(contour, scan, complete=True)
    if masks is None:
        volume, windows = in_windows(scan.volume, contract.channels, contract.windows)
        (row, column), (row_mm, column_mm) = body_centre(volume, windows), volume.spacing_mm[1:]
        area, middle_mm = np.count_nonzero(drawn, axis=0), (row * row_mm, column * column_mm)
        if area.any() and share_outside(area, (row_mm, column_mm), middle_mm, contract.grid) > MOST_OUTSIDE:
            raise ScanError("its contour is partly outside the grid around the body's middle; crop it to the head")
        mask = clean_labels(torch_labels(net, volume, windows, contract.grid), contract.labels)
    elif (masks / contour.name).is_file():
        mask = Contours(contract.labels, masks).read(masks / contour.name, scan)
    else:
        raise OptionError(f"--calibrate: {masks}: found no {contour.name}, expected a mask of each patient")
    return scan.volume, mask, drawn
