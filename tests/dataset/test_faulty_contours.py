"""RTSTRUCTs with the faults that planning systems, converters and people leave in them, as `dataset` reads them."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parotid_seg.dataset.build import Built, DataSetOptions, build
from parotid_seg.scan.nifti import read_mask
from tests.dataset.studies import (
    GLANDS,
    LEFT_BOX,
    RIGHT_BOX,
    SHAPE,
    Rois,
    box_mask,
    change_file,
    reasons,
    rows,
    write_structures,
    write_study,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, over what is wrong here on purpose
OTHER_BOX = (slice(3, 9), slice(1, 3), slice(8, 12))
"""Of another structure, apart from both glands."""
Made = tuple[Built, Any, dict[str, str], list[str]]
"""What became of a study: the count, the mask or None, the row of cases.csv, and what was said."""


@pytest.fixture
def study(dicom: Path, data: Path) -> Callable[..., Made]:
    """Write a study whose RTSTRUCT is changed, make a data set of it, and say what became of it."""

    def run(change: Callable[[Dataset], None], rois: Rois = GLANDS, **options: Any) -> Made:
        images = write_study(dicom / "a", rois=None)
        write_structures(dicom / "contours.dcm", images, rois, change=change)
        said: list[str] = []
        built = build([dicom], data, DataSetOptions(**options), say=said.append)
        label = data / "labelsTr" / "case_0001.nii.gz"
        mask = read_mask(label)[0] if label.exists() else None
        (row,) = rows(data, "cases.csv")
        return built, mask, row, said

    return run


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


def named(dicom: Path, left: bytes, right: bytes, declared: str | None) -> None:
    """Rename the glands, byte by byte, and declare a character set."""
    path = dicom / "contours.dcm"

    def declare(dataset: Dataset) -> None:
        if declared is None:
            del dataset.SpecificCharacterSet
        else:
            dataset.SpecificCharacterSet = declared

    change_file(path, declare)
    content = path.read_bytes()
    for placeholder, name in ((b"LEFTLEFTLEFTLEFTLEFTLEFT", left), (b"RIGHTRIGHTRIGHTRIGHTRIGHT ", right)):
        assert content.count(placeholder) == 1
        content = content.replace(placeholder, name.ljust(len(placeholder)))
    path.write_bytes(content)


PLACEHOLDERS = [("LEFT" * 6, LEFT_BOX), ("RIGHT" * 5, RIGHT_BOX)]


@pytest.mark.parametrize(
    ("left", "right", "codec", "declared"),
    [
        ("Parótida Izq", "Parótida der", "utf-8", None),
        ("Parótida Izq", "Parótida der", "utf-8", "ISO_IR 100"),
        ("Ohrspeicheldrüse li", "Ohrspeicheldrüse re", "utf-8", "ISO_IR 101"),
        ("Ohrspeicheldrüse li", "Ohrspeicheldrüse re", "utf-8", "ISO_IR 192"),
        ("Ohrspeicheldrüse li", "Ohrspeicheldrüse re", "latin-1", "ISO_IR 100"),
        ("Ohrspeicheldrüse li", "Ohrspeicheldrüse re", "latin-1", None),
        ("Glandula parotis li.", "Glandula parotis re.", "ascii", None),
        ("Parotide G", "Parotide D", "ascii", "ISO_IR 100"),
    ],
)
def test_names_are_read_whatever_character_set_is_declared(
    dicom: Path, data: Path, left: str, right: str, codec: str, declared: str | None
) -> None:
    images = write_study(dicom / "a", rois=None)
    write_structures(dicom / "contours.dcm", images, PLACEHOLDERS)
    named(dicom, left.encode(codec), right.encode(codec), declared)
    built = build([dicom], data)
    assert (built.labelled, built.exit_status) == (1, 0)
    (row,) = rows(data, "cases.csv")
    undeclared = codec == "utf-8" and declared != "ISO_IR 192"
    assert row["notes"].count("its name is in UTF-8") == (2 if undeclared else 0)


@pytest.mark.parametrize(
    ("name", "codec", "declared", "means"),
    [
        ("Ohrspeicheldrüse li", "latin-1", "ISO_IR 192", "in another character set its name means parotid_left"),
        ("Parótida izq", "utf-8", "GB18030", "in another character set its name means parotid_left"),
        ("ParÃ³tida izq", "utf-8", "ISO_IR 192", "in another character set its name means parotid_left"),
        ("Par?tida izq", "ascii", None, "looks like parotid_left"),
        ("Paroitd_L", "ascii", None, "looks like parotid_left"),
        ("Par_L", "ascii", None, "looks like parotid_left"),
        ("左耳下腺", "shift_jis", None, "means none of the labels"),
        ("腮腺 L", "utf-8", "ISO_IR 192", "means none of the labels"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_names_that_are_nearly_ours_are_shown(
    dicom: Path, data: Path, name: str, codec: str, declared: str | None, means: str, partial: bool
) -> None:
    images = write_study(dicom / "a", rois=None)
    write_structures(dicom / "contours.dcm", images, PLACEHOLDERS)
    named(dicom, name.encode(codec), b"Parotid_R", declared)
    said: list[str] = []
    built = build([dicom], data, DataSetOptions(partial=partial), say=said.append)
    assert (built.labelled, built.exit_status) == (int(partial), 3)
    (row,) = [row for row in rows(data) if row["kind"] == "ROI"]
    assert row["look_at_it"] == "yes"
    assert means in row["reason"]
    assert any(means in line for line in said)


def test_a_name_nearly_ours_beside_both_glands_is_shown_and_a_margin_is_not(
    study: Callable[..., Made], data: Path
) -> None:
    built, _, _, _ = study(
        lambda dataset: None, [*GLANDS, ("Paroitd_L", OTHER_BOX), ("Parotid_L_PRV", LEFT_BOX), ("Carotid_L", OTHER_BOX)]
    )
    assert (built.labelled, built.look_at, built.exit_status) == (1, 1, 3)
    assert [row["name"] for row in rows(data) if row["look_at_it"]] == ["Paroitd_L"]


def test_a_patients_name_in_another_character_set_is_not_told(dicom: Path, data: Path) -> None:
    images = write_study(dicom / "a", rois=None)
    write_structures(dicom / "contours.dcm", images, [*GLANDS, ("X" * 20, OTHER_BOX)])

    def rename(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "YYYYYYYY"

    change_file(dicom / "contours.dcm", rename)
    content = (dicom / "contours.dcm").read_bytes()
    content = content.replace(b"YYYYYYYY", "Müller ".encode()).replace(b"X" * 20, "Boost Müller".encode().ljust(20))
    (dicom / "contours.dcm").write_bytes(content)
    said: list[str] = []
    build([dicom], data, say=said.append)
    beside = data.with_name(f"{data.name}.private")
    for text in (*said, *(path.read_text() for path in beside.glob("*.*"))):
        assert "ller" not in text
    assert "(a name that tells who the patient is)" in [row["name"] for row in rows(data)]


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
