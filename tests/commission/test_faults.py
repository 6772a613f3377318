"""Faults are recognised by how masks differ; ordinary errors are none."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from parotid_seg.commission.faults import HERE, Signs, faults_in, signs_of
from parotid_seg.commission.record import FaultRecord

NAMES = ("background", "parotid_left", "parotid_right")
Labels = NDArray[np.uint8]


def reference(number: int) -> Labels:
    """Two ellipsoids that differ between patients."""
    rng = np.random.default_rng(number)
    z, y, x = np.mgrid[:28, :28, :48]
    labels = np.zeros(z.shape, np.uint8)
    for value, column in ((1, 36), (2, 12)):
        radii, centre = rng.uniform((8, 5, 5), (10, 8, 7)), rng.uniform(-1.5, 1.5, 3) + np.array((14, 14, column))
        inside = sum(((at - c) / r) ** 2 for at, c, r in zip((z, y, x), centre, radii, strict=True)) < 1
        labels[inside] = value
    return labels


def mask(number: int) -> Labels:
    """The reference as a model finds it: with a surface of its own, and off by a fraction of a voxel."""
    rng = np.random.default_rng(100 + number)
    found = np.zeros_like(reference(number))
    off = rng.normal(0, 0.25, 3)
    for value in (1, 2):
        distance = ndimage.distance_transform_edt(reference(number) == value) - ndimage.distance_transform_edt(
            reference(number) != value
        )
        noise = 6 * ndimage.gaussian_filter(rng.normal(0, 1, distance.shape), 2)
        found[ndimage.shift(distance + noise, off, order=1, mode="nearest") > 0] = value
    return found


PATIENTS = range(8)
MASKS = {number: mask(number) for number in PATIENTS}
REFERENCES = {number: reference(number) for number in PATIENTS}


def faults(masks: dict[int, Labels], references: dict[int, Labels] | None = None) -> list[FaultRecord]:
    signs = {f"p{number}": signs_of(each, (references or REFERENCES)[number], NAMES) for number, each in masks.items()}
    return faults_in(signs, "references")


def changed(change: object) -> dict[int, Labels]:
    assert callable(change)
    return {number: change(each) for number, each in MASKS.items()}


def test_ordinary_errors_are_no_fault() -> None:
    dsc = [signs_of(MASKS[number], REFERENCES[number], NAMES).shifted[HERE] for number in PATIENTS]
    assert 0.85 < np.mean(dsc) < 0.97
    assert faults(MASKS) == []
    assert faults({number: MASKS[number] for number in range(3)}) == []
    assert faults(REFERENCES) == []


@pytest.mark.parametrize(
    ("axis", "by", "words"),
    [
        (0, 1, "1 voxel to superior"),
        (0, -1, "1 voxel to inferior"),
        (1, 1, "1 voxel to posterior"),
        (1, -1, "1 voxel to anterior"),
        (2, 1, "1 voxel to the left"),
        (2, -2, "2 voxels to the right"),
    ],
)
def test_a_shift_is_named_with_its_direction(axis: int, by: int, words: str) -> None:
    (fault,) = faults(changed(lambda each: np.roll(each, by, axis)))
    assert fault.kind == "shifted"
    assert f"the masks seem shifted against the references by {words}, mean DSC 0." in fault.text
    assert len(fault.patients) >= 6


def test_one_shifted_patient_is_no_systematic_shift() -> None:
    assert faults({**MASKS, 0: np.roll(MASKS[0], 1, 1)}) == []


def test_equal_masks_that_are_shifted_need_no_number_of_patients() -> None:
    (fault,) = faults({0: np.roll(REFERENCES[0], 1, 2)})
    assert "by 1 voxel to the left" in fault.text
    assert "1.000 when shifted back: 1 of 1 patients (p0)" in fault.text


def test_exchanged_sides_are_named_by_patient() -> None:
    exchange = np.array([0, 2, 1], np.uint8)
    (everyone,) = faults(changed(lambda each: exchange[each]))
    assert everyone.kind == "sides_exchanged"
    assert "8 of 8 patients" in everyone.text
    (single,) = faults({**MASKS, 3: exchange[MASKS[3]]})
    assert single.patients == ["p3"]


def half(labels: Labels, value: int, axis: int, rising: bool) -> Labels:
    """Without the half of a structure at one end."""
    places = np.argwhere(labels == value)[:, axis]
    middle, cut = int(np.median(places)), labels.copy()
    index = tuple(
        (slice(middle + 1, None) if rising else slice(None, middle)) if each == axis else slice(None)
        for each in range(3)
    )
    cut[index][labels[index] == value] = 0
    return cut


@pytest.mark.parametrize(
    ("value", "axis", "rising", "words"),
    [
        (1, 0, True, "the upper part of the left parotid"),
        (2, 0, False, "the lower part of the right parotid"),
        (2, 1, True, "the back part of the right parotid"),
        (1, 2, False, "the right part of the left parotid"),
    ],
)
def test_half_a_gland_is_named_with_its_end(value: int, axis: int, rising: bool, words: str) -> None:
    (fault,) = faults({**MASKS, 4: half(MASKS[4], value, axis, rising)})
    assert (fault.kind, fault.patients) == ("part_missing", ["p4"])
    assert f"{words} is missing in the masks, " in fault.text
    (other,) = faults(MASKS, {**REFERENCES, 4: half(REFERENCES[4], value, axis, rising)})
    assert (other.kind, other.patients) == ("part_beyond", ["p4"])
    assert f"{words} is missing in the references, " in other.text


def test_parts_that_are_missing_everywhere_are_no_shift() -> None:
    halves = changed(lambda each: half(half(each, 1, 0, True), 2, 0, True))
    assert {fault.kind for fault in faults(halves)} == {"part_missing"}


def test_a_gland_that_is_wrong_as_a_whole_is_not_cut_off() -> None:
    elsewhere = np.where(MASKS[0] == 1, 0, MASKS[0]).astype(np.uint8)
    elsewhere[2:6, 2:6, 40:46] = 1
    assert faults({**MASKS, 0: elsewhere}) == []


def test_a_missing_gland_is_named() -> None:
    (fault,) = faults({**MASKS, 5: np.where(MASKS[5] == 2, 0, MASKS[5]).astype(np.uint8)})
    assert (fault.kind, fault.patients) == ("structure_missing", ["p5"])
    assert fault.text.startswith("the right parotid is missing in the masks, but not in the references")


def test_structures_without_sides_and_empty_masks() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    assert faults_in({"p0": signs_of(empty, empty, NAMES)}, "references") == []
    signs: Signs = signs_of(REFERENCES[0], REFERENCES[0], ("background", "gland", "tumour"))
    assert signs.exchanged is None
