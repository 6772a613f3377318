"""Structure sets of others as masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from parotid_seg.dicom.read.rt_read import read_rtstruct
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import ParotidSegError, ScanError
from parotid_seg.flags import Flag, FlagCode
from tests.dicom.for_writers import IDENTITY, SHAPE, changed, elsewhere, refused
from tests.dicom_series import lay

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, over what is wrong here on purpose


SQUARE = ((10, 5), (10, 15), (20, 15), (20, 5))


def with_contours(written: Path, out: Path, contours: list[tuple[str, Any]], image: str | None = None) -> Path:
    """The first structure drawn otherwise: by type and points (slice, row, column) in the default series' voxels.

    All contours say that they were drawn on `image`, if that is given.
    """

    def change(dataset: Dataset) -> None:
        items = []
        for kind, points in contours:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
            with np.errstate(invalid="ignore"):
                places = np.array(points, dtype=float).reshape(-1, 3) @ lay()[:3, :3].T + lay()[:3, 3]
            item.ContourData = [f"{value:.6f}" for value in places.ravel()]
            if image is not None:
                item.ContourImageSequence = [Dataset()]
                item.ContourImageSequence[0].ReferencedSOPInstanceUID = image
            items.append(item)
        dataset.ROIContourSequence[0].ContourSequence = items

    return changed(written, out, change)


def square(index: float | NDArray[Any], *, grown: int = 0, shift: float = 0) -> NDArray[Any]:
    rows, columns = np.array(SQUARE).T
    rows = np.where(rows == 10, 10 - grown, 20 + grown) + 0.5
    columns = np.where(columns == 5, 5 - grown, 15 + grown) + 0.5 + shift
    return np.stack([np.broadcast_to(index, 4), rows, columns], axis=1)


def expected_square(index: int) -> NDArray[np.bool_]:
    found = np.zeros(SHAPE, dtype=np.bool_)
    found[index, 11:21, 6:16] = True
    return found


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_within_another_is_a_hole(kind: str, written: Path, series: Series, tmp_path: Path) -> None:
    path = with_contours(written, tmp_path / "rt.dcm", [(kind, square(3)), (kind, square(3, grown=-3))])
    expected = expected_square(3)
    expected[3, 14:18, 9:13] = False
    found = read_rtstruct(path, series)[0].drawn()
    assert np.array_equal(found.mask, expected)
    assert found.flags == ()


@pytest.mark.parametrize(
    ("extra", "flag"),
    [
        (square(3)[:2], Flag(FlagCode.CONTOURS_TOO_SHORT, value=1, detail="2")),
        ([], Flag(FlagCode.CONTOURS_TOO_SHORT, value=1, detail="2")),
        (square(3), Flag(FlagCode.CONTOURS_REPEATED, value=1)),
        (square(-1), Flag(FlagCode.CONTOURS_BEYOND_SCAN, value=1, detail="2")),
        (square(12), Flag(FlagCode.CONTOURS_BEYOND_SCAN, value=1, detail="2")),
        (square(1e9), Flag(FlagCode.CONTOURS_BEYOND_SCAN, value=1, detail="2")),
        (square(5, shift=50), Flag(FlagCode.CONTOURS_OVER_EDGE, value=1, detail="2")),
        (square(3.2, grown=-99), Flag(FlagCode.CONTOURS_OVER_EDGE, value=1, detail="2")),
    ],
)
def test_what_is_left_out_is_told(
    extra: list[Any] | NDArray[Any], flag: Flag, written: Path, series: Series, tmp_path: Path
) -> None:
    path = with_contours(written, tmp_path / "rt.dcm", [("CLOSED_PLANAR", square(3)), ("CLOSED_PLANAR", extra)])
    found = read_rtstruct(path, series)[0].drawn()
    assert found.flags == (flag,)
    if flag.code != FlagCode.CONTOURS_OVER_EDGE:
        assert np.array_equal(found.mask, expected_square(3))


@pytest.mark.parametrize(("named", "count"), [(3, 0), (None, 0), (7, 1)])
def test_a_contour_that_names_the_image_of_another_slice_is_noted(
    named: int | None, count: int, written: Path, series: Series, tmp_path: Path
) -> None:
    image = "1.2.3" if named is None else series.slices[named].sop_instance_uid
    path = with_contours(written, tmp_path / "rt.dcm", [("CLOSED_PLANAR", square(3))], image=image)
    found = read_rtstruct(path, series)[0].drawn()
    assert np.array_equal(found.mask, expected_square(3))
    expected = (Flag(FlagCode.CONTOURS_OF_OTHER_IMAGES, value=count, detail="1"),)
    assert found.flags == (expected if count else ())


@pytest.mark.parametrize(
    ("kind", "code", "shared"),
    [
        ("CLOSED_PLANAR", FlagCode.CONTOURS_OVERLAP, True),
        ("CLOSEDPLANAR_XOR", FlagCode.CONTOURS_EXCLUSIVE, False),
        ("CLOSED_PLANAR_XOR", FlagCode.CONTOURS_EXCLUSIVE, False),
    ],
)
def test_contours_that_overlap_in_part_are_joined_unless_the_file_says_otherwise(
    kind: str, code: FlagCode, shared: bool, written: Path, series: Series, tmp_path: Path
) -> None:
    contours = [(kind, square(index, shift=shift)) for index in (3, 4) for shift in (0, 5)]
    found = read_rtstruct(with_contours(written, tmp_path / "rt.dcm", contours), series)[0].drawn()
    expected = np.zeros(SHAPE, dtype=np.bool_)
    expected[3:5, 11:21, 6:21] = True
    expected[3:5, 11:21, 11:16] = shared
    assert np.array_equal(found.mask, expected)
    assert found.flags == (Flag(code, value=2),)


def test_more_overlapping_contours_than_any_organ_has_are_refused_by_name(
    written: Path, series: Series, tmp_path: Path
) -> None:
    contours = [("CLOSED_PLANAR", square(3, shift=shift / 20)) for shift in range(120)]
    path = with_contours(written, tmp_path / "rt.dcm", contours)
    with refused(ScanError, "structure 'Parotid_L': 120 contours overlap in one slice, expected at most 100"):
        read_rtstruct(path, series)[0].drawn()


def without_frames(dataset: Dataset) -> None:
    for roi in dataset.StructureSetROISequence:
        del roi.ReferencedFrameOfReferenceUID


def without_images(dataset: Dataset) -> None:
    for each in dataset.ROIContourSequence:
        for contour in each.ContourSequence:
            del contour.ContourImageSequence


def another_frame(dataset: Dataset) -> None:
    dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3"


def one_frame_more(dataset: Dataset) -> None:
    more = Dataset()
    more.FrameOfReferenceUID = "1.2.3"
    dataset.ReferencedFrameOfReferenceSequence.append(more)


def other_images(dataset: Dataset) -> None:
    for each in dataset.ROIContourSequence:
        for contour in each.ContourSequence:
            contour.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def other_series(dataset: Dataset) -> None:
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def no_frames_at_all(dataset: Dataset) -> None:
    del dataset.ReferencedFrameOfReferenceSequence


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ([], True),
        ([without_images], True),
        ([no_frames_at_all], True),
        ([one_frame_more], True),
        ([one_frame_more, without_images], True),
        ([another_frame], False),
        ([other_images], False),
        ([one_frame_more, without_images, other_series], False),
        ([no_frames_at_all, without_images], False),
    ],
)
def test_a_structure_that_does_not_say_its_frame_of_reference(
    changes: list[Callable[..., None]],
    fits: bool,
    written: Path,
    series: Series,
    mask: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    def change(dataset: Dataset) -> None:
        without_frames(dataset)
        for each in changes:
            each(dataset)

    path = changed(written, tmp_path / "rt.dcm", change)
    if not fits:
        with refused(ScanError, "in another frame of reference: found none, expected"):
            read_rtstruct(path, series)
        return
    for value, roi in enumerate(read_rtstruct(path, series), start=1):
        found = roi.drawn()
        assert np.array_equal(found.mask, mask == value)
        assert found.flags == (Flag(FlagCode.FRAME_NOT_STATED),)


@pytest.mark.parametrize(
    ("contours", "message"),
    [
        ([("OPEN_PLANAR", square(3))], "contour 1 of 1 is of type OPEN_PLANAR, expected CLOSED_PLANAR"),
        ([("CLOSED_PLANAR", square(3)), ("POINT", square(3)[:1])], "contour 2 of 2 is of type POINT"),
        (
            [("CLOSED_PLANAR", square(3.5))],
            "contour 1 of 1 lies between slices, 0.50 of their distance off the next one, expected at most 0.25",
        ),
        ([("CLOSED_PLANAR", square(np.array([3, 4, 4, 3])))], "contour 1 of 1 lies across slices"),
        ([("CLOSED_PLANAR", square(20)), ("CLOSED_PLANAR", square(-5))], "found all 2 contours beyond"),
        ([("CLOSED_PLANAR", square(np.nan))], "contour 1 of 1 is damaged"),
        ([("CLOSED_PLANAR", square(np.inf))], "contour 1 of 1 is damaged"),
    ],
)
def test_structures_that_have_no_mask(
    contours: list[tuple[str, NDArray[Any]]], message: str, written: Path, series: Series, tmp_path: Path
) -> None:
    rois = read_rtstruct(with_contours(written, tmp_path / "rt.dcm", contours), series)
    with refused(ScanError, f"structure 'Parotid_L': {message}"):
        rois[0].drawn()
    assert rois[1].drawn().mask.any()


@pytest.mark.parametrize(
    "change",
    [
        lambda contour: setattr(contour, "NumberOfContourPoints", 7),
        lambda contour: setattr(contour, "ContourData", list(contour.ContourData)[:-1]),
        lambda contour: setattr(contour["ContourData"], "_value", ["1.0", "Doe^Jane", "3.0"]),
    ],
)
def test_damaged_contours_are_named(change: Callable[..., Any], written: Path, series: Series, tmp_path: Path) -> None:
    path = changed(
        written, tmp_path / "rt.dcm", lambda dataset: change(dataset.ROIContourSequence[0].ContourSequence[0])
    )
    with refused(ScanError, "is damaged, expected three finite numbers for each of its points"):
        read_rtstruct(path, series)[0].drawn()


@pytest.mark.parametrize(
    ("offset", "refusal"), [([0, 0, 5], "has a ContourOffsetVector that is not 0"), ([0, 0, 0], "")]
)
def test_an_offset_of_contours(
    offset: list[float], refusal: str, written: Path, series: Series, tmp_path: Path
) -> None:
    def change(dataset: Dataset) -> None:
        dataset.ROIContourSequence[0].ContourSequence[0].ContourOffsetVector = offset

    rois = read_rtstruct(changed(written, tmp_path / "rt.dcm", change), series)
    if refusal:
        with refused(ScanError, refusal):
            rois[0].drawn()
    else:
        assert rois[0].drawn().mask.any()
    assert rois[1].drawn().mask.any()


def test_structures_in_another_frame_of_reference(written: Path, series: Series, tmp_path: Path) -> None:
    def one(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"

    rois = read_rtstruct(changed(written, tmp_path / "one.dcm", one), series)
    with refused(ScanError, "in another frame of reference: found 1.2.3, expected"):
        rois[0].drawn()
    assert rois[1].drawn().mask.any()
    with refused(ScanError, "in another frame of reference: found 1.2.3, expected"):
        read_rtstruct(changed(written, tmp_path / "all.dcm", elsewhere), series)


def test_names_of_others_are_cleaned_and_may_be_alike(written: Path, series: Series, tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        for roi in dataset.StructureSetROISequence:
            roi.ROIName = "Gland\x1b[31m\n"

    rois = read_rtstruct(changed(written, tmp_path / "rt.dcm", change), series)
    assert [(roi.name, roi.number) for roi in rois] == [("Gland_[31m_", 1), ("Gland_[31m_", 2)]


def test_files_that_are_no_structure_sets(written: Path, series: Series, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="found SOP class CT Image Storage, expected an RT Structure Set"):
        read_rtstruct(series.slices[0].path, series)
    with pytest.raises(ScanError, match="No such file"):
        read_rtstruct(tmp_path / "absent.dcm", series)
    (tmp_path / "text.dcm").write_text("Doe^Jane was here. " * 50)
    (tmp_path / "empty.dcm").write_bytes(b"")
    for name in ("text", "empty"):
        with refused(ScanError, f"{name}.dcm: "):
            read_rtstruct(tmp_path / f"{name}.dcm", series)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_set_that_is_cut_off_is_never_taken_for_whole(
    explicit: bool, written: Path, series: Series, tmp_path: Path
) -> None:
    def other_encoding(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset["ROIContourSequence"].is_undefined_length = True

    path = changed(written, tmp_path / "whole.dcm", other_encoding) if explicit else written
    whole = path.read_bytes()
    end = whole.index(b"UNAPPROVED") - 8  # before it all structures are there
    for length in np.linspace(200, end - 1, 60, dtype=int):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        with refused(ScanError, "cut.dcm: "):
            read_rtstruct(tmp_path / "cut.dcm", series)


def test_bytes_anywhere_changed_give_a_mask_or_one_line_that_names_nobody(
    written: Path, series: Series, tmp_path: Path
) -> None:
    content, random = written.read_bytes(), np.random.default_rng(0)
    others = 0
    for _ in range(60):
        broken = bytearray(content)
        for place in random.integers(132, len(content), 8):
            broken[place] = random.integers(256)
        (tmp_path / "rt.dcm").write_bytes(broken)
        try:
            for roi in read_rtstruct(tmp_path / "rt.dcm", series):
                assert roi.drawn().mask.shape == SHAPE
        except ParotidSegError as raised:
            text = str(raised)
            others += "\n" in text or any(name in text for name in IDENTITY)
    assert others == 0
