"""RTSTRUCTs with the faults that planning systems, converters and people leave in them, as `dataset` reads them."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parotid_seg.dataset.build import build
from tests.dataset.studies import GLANDS, LEFT_BOX, RIGHT_BOX, SHAPE, Made, box_mask, reasons, rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # pydicom's, over what is wrong here on purpose
OTHER_BOX = (slice(3, 9), slice(1, 3), slice(8, 12))
"""Of another structure, apart from both glands."""


def numbered(*numbers: int) -> Callable[..., None]:
    """Numbers of the structures, in both sequences."""

    def change(dataset: Dataset) -> None:
        for roi, drawn, number in zip(
            dataset.StructureSetROISequence, dataset.ROIContourSequence, numbers, strict=True
        ):
            roi.ROINumber = drawn.ReferencedROINumber = number

    return change


@pytest.mark.parametrize(
    "rois",
    [
        [*GLANDS, ("GTVn_L", OTHER_BOX)],
        [("GTVn_L", OTHER_BOX), *GLANDS],
        [*GLANDS, ("GTVn_L", None)],
        [("GTVn_L", None), *GLANDS],
        [GLANDS[1], ("GTVn_L", OTHER_BOX), GLANDS[0]],
    ],
    ids=["after", "before", "empty after", "empty before", "between"],
)
def test_a_number_used_twice_is_taken_apart_by_item(
    study: Callable[..., Made], rois: list[tuple[str, tuple[slice, slice, slice] | None]]
) -> None:
    numbers = [2 if name == "Parotid_R" else 3 for name, _ in rois]
    built, mask, row, _ = study(numbered(*numbers), rois)
    assert (built.labelled, built.flagged, built.exit_status) == (1, 1, 0)
    np.testing.assert_array_equal(mask, box_mask(LEFT_BOX, RIGHT_BOX))
    assert "left parotid: 2 structures share its ROINumber" in row["notes"]
    assert row["look_at_it"] == "yes"


def one_item_less(dataset: Dataset) -> None:
    numbered(3, 2, 3)(dataset)
    del dataset.ROIContourSequence[2]


def other_order(dataset: Dataset) -> None:
    numbered(3, 2, 3)(dataset)
    dataset.ROIContourSequence = [dataset.ROIContourSequence[place] for place in (1, 2, 0)]


def contours_twice(dataset: Dataset) -> None:
    more = copy.deepcopy(dataset.ROIContourSequence[2])
    more.ReferencedROINumber = 1
    dataset.ROIContourSequence.append(more)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (one_item_less, "found the ROINumber 3 for 2 structures (Parotid_L, GTVn_L) and for contours of 1"),
        (other_order, "found the ROINumber 3 for 2 structures (Parotid_L, GTVn_L) and for contours of 2"),
        (contours_twice, "found the ROINumber 1 for one structure and for contours of 2, expected it once each"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_a_number_used_twice_that_cannot_be_taken_apart_is_refused_by_name(
    study: Callable[..., Made], data: Path, change: Callable[..., None], found: str, partial: bool
) -> None:
    built, mask, row, said = study(change, [*GLANDS, ("GTVn_L", OTHER_BOX)], partial=partial)
    assert built.exit_status == 3
    assert any("Parotid_L" in line and found in line for line in said)
    assert any(found in reason for reason in reasons(data, "ROI"))
    assert row["labels"] == ("parotid_right" if partial else "")
    assert (mask == 1).sum() == 0 if partial else mask is None


def test_the_empty_one_of_two_with_a_number_has_no_contours(study: Callable[..., Made], data: Path) -> None:
    rois = [("Parotid_L", None), GLANDS[1], ("GTVn_L", OTHER_BOX)]
    built, mask, _, _ = study(numbered(3, 2, 3), rois)
    assert (built.exit_status, mask) == (3, None)
    assert "no contours of parotid_left" in reasons(data, "structure set")[0]


def edited(edit: Callable[..., list[Any]]) -> Callable[..., None]:
    """Contours of the left gland as an edit makes them, slice by slice: it gets points (N, 3) and the slice's place."""

    def change(dataset: Dataset) -> None:
        made = []
        for place, contour in enumerate(dataset.ROIContourSequence[0].ContourSequence):
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            for new in edit(points, place):
                item = Dataset()
                item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(new)
                item.ContourData = [f"{value:.3f}" for value in np.asarray(new).ravel()]
                made.append(item)
        dataset.ROIContourSequence[0].ContourSequence = made

    return change


def denser(points: NDArray[Any]) -> NDArray[Any]:
    after = np.roll(points, -1, axis=0)
    return np.concatenate([points + share * (after - points) for share in (0.0, 0.25, 0.6)], axis=1).reshape(-1, 3)


def grown(points: NDArray[Any], by_mm: float) -> NDArray[Any]:
    middle = points.mean(axis=0)
    return points + np.sign(points - middle) * np.array([by_mm, by_mm, 0.0])


def moved(points: NDArray[Any], by_mm: float) -> NDArray[Any]:
    return points + np.array([by_mm, 0.0, 0.0])


REPEATED = {
    "same": lambda points, place: [points, points],
    "other first point": lambda points, place: [points, np.roll(points, 1, axis=0)],
    "other direction": lambda points, place: [points, points[::-1]],
    "more points": lambda points, place: [denser(points), points],
    "nearly equal": lambda points, place: [points, grown(points, -0.2)],
    "three times": lambda points, place: [points, points[::-1], np.roll(points, 2, axis=0)],
    "runs round twice": lambda points, place: [np.concatenate([points, points[:1], points])],
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_contour_counts_once(study: Callable[..., Made], name: str) -> None:
    def edit(points: NDArray[Any], place: Any) -> list[NDArray[Any]]:
        return REPEATED[name](points, place) if place in (1, 2, 4) else [points]

    built, mask, row, said = study(edited(edit))
    np.testing.assert_array_equal(mask, box_mask(LEFT_BOX, RIGHT_BOX))
    note = "left parotid: a contour repeats another one on 3 slices; it counts once"
    assert note in row["notes"]
    assert any(note in line for line in said)
    assert (built.flagged, built.exit_status) == (1, 0)


def test_contours_that_overlap_in_part_are_joined_and_counted(study: Callable[..., Made]) -> None:
    built, mask, row, _ = study(edited(lambda points, place: [points, moved(points, 1.0)] if place < 2 else [points]))
    expected = box_mask(LEFT_BOX, RIGHT_BOX)
    expected[3:5, LEFT_BOX[1], 18] = 1
    np.testing.assert_array_equal(mask, expected)
    assert "left parotid: contours overlap in part on 2 slices; they are joined there" in row["notes"]
    assert built.flagged == 1


def halves(points: NDArray[Any], place: object) -> Iterator[list[Any]]:
    (left, top), (right, bottom) = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    middle, height = (left + right) / 2, points[0, 2]
    for first, last in ((left, middle), (middle, right)):
        yield [(first, top, height), (last, top, height), (last, bottom, height), (first, bottom, height)]


def test_two_halves_with_an_edge_in_common_are_whole(study: Callable[..., Made]) -> None:
    built, mask, row, _ = study(edited(lambda points, place: list(halves(points, place))))
    np.testing.assert_array_equal(mask, box_mask(LEFT_BOX, RIGHT_BOX))
    assert "contour" not in row["notes"]
    assert built.exit_status == 0


HOLED = {
    "contour of its own": lambda outer, inner: [outer, inner],
    "inner first": lambda outer, inner: [inner[::-1], outer],
    "keyhole": lambda outer, inner: [np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])],
    "repeated": lambda outer, inner: [outer, inner, np.roll(outer, 1, axis=0), inner[::-1]],
}


@pytest.mark.parametrize("name", HOLED)
def test_true_holes_stay_holes(study: Callable[..., Made], name: str) -> None:
    _, mask, row, _ = study(edited(lambda points, place: HOLED[name](points, grown(points, -1.0))))
    expected = box_mask(LEFT_BOX, RIGHT_BOX)
    expected[3:9, 5:11, 14:17] = 0
    np.testing.assert_array_equal(mask, expected)
    assert ("repeats another one on 6 slices" in row["notes"]) == (name == "repeated")


def test_three_nested_contours_are_a_ring_and_an_island(study: Callable[..., Made]) -> None:
    wide = (slice(2, 9), slice(2, 14), slice(11, 20))

    def edit(points: NDArray[Any], place: object) -> list[NDArray[Any]]:
        return [grown(points, -3.0), points, grown(points, -1.0)]

    _, mask, _, _ = study(edited(edit), [("Parotid_L", wide), GLANDS[1]])
    expected = box_mask(wide, RIGHT_BOX)
    expected[2:9, 3:13, 12:19] = 0
    expected[2:9, 5:11, 14:17] = 1
    np.testing.assert_array_equal(mask, expected)


TALL = (slice(0, 12), *LEFT_BOX[1:])


@pytest.mark.parametrize(
    ("gone", "found"),
    [
        ([5], 1),
        ([10], 1),
        ([1, 3, 5, 7, 9], 5),
        ([2, 6, 7, 9], 4),
        ([2, 3, 4], None),
        ([2, 6, 7, 8, 9], None),
    ],
    ids=["one", "before the last", "every second", "irregular", "large", "small and large"],
)
def test_missing_slices_are_filled_and_counted_or_refused(
    study: Callable[..., Made], data: Path, gone: list[int], found: int | None
) -> None:
    def change(dataset: Dataset) -> None:
        contours = dataset.ROIContourSequence[0].ContourSequence
        dataset.ROIContourSequence[0].ContourSequence = [each for n, each in enumerate(contours) if n not in gone]

    built, mask, row, said = study(change, [("Parotid_L", TALL), GLANDS[1]])
    if found is None:
        assert (built.exit_status, mask) == (3, None)
        assert any("Parotid_L: no contour on" in line and "expected at most 10" in line for line in said)
        return
    np.testing.assert_array_equal(mask, box_mask(TALL, RIGHT_BOX))
    note = f"left parotid: no contour on {found} of the 12 slices between its ends; they are interpolated"
    assert note in row["notes"]
    assert any(note in line for line in said)
    assert (built.flagged, row["look_at_it"]) == (1, "yes")


def test_a_volume_that_no_such_organ_has_is_named(study: Callable[..., Made]) -> None:
    """The boxes are glands of 0.7 and 0.4 ml."""
    _, _, row, said = study(lambda dataset: None)
    for note in ("left parotid of unusual volume (0.7 ml)", "right parotid of unusual volume (0.4 ml)"):
        assert note in row["notes"]
        assert any(note in line for line in said)


def test_a_structure_that_does_not_say_its_frame_of_reference_is_read_with_a_note(study: Callable[..., Made]) -> None:
    def change(dataset: Dataset) -> None:
        for roi in dataset.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID

    built, mask, row, _ = study(change)
    assert built.exit_status == 0
    np.testing.assert_array_equal(mask, box_mask(LEFT_BOX, RIGHT_BOX))
    assert row["notes"].count("no ReferencedFrameOfReferenceUID; the scan's was used") == 2


def test_notes_stay_with_a_case_that_is_not_made_again(study: Callable[..., Made], dicom: Path, data: Path) -> None:
    built, _, row, _ = study(edited(lambda points, place: [points, points[::-1]]))
    again = build([dicom], data)
    assert (again.made, again.flagged) == (0, built.flagged)
    assert rows(data, "cases.csv") == [row]


def test_the_study_is_as_it_is_thought_to_be(study: Callable[..., Made]) -> None:
    """Without a fault nothing is noted but that the boxes are small for glands."""
    built, mask, row, _ = study(lambda dataset: None)
    np.testing.assert_array_equal(mask, box_mask(LEFT_BOX, RIGHT_BOX))
    assert mask.shape == SHAPE
    assert all("of unusual volume" in note for note in row["notes"].split("; "))
    assert built.exit_status == 0
