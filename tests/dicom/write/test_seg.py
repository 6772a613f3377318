"""DICOM segmentations as they are written, and what other programs make of them."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from parotid_seg.dicom.read.rt_read import read_rtstruct
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.write.objects import is_own_object
from parotid_seg.dicom.write.round_trip import verify_round_trip
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from parotid_seg.dicom.write.seg import write_seg
from parotid_seg.errors import InputError, ScanError
from tests.dicom.for_writers import (
    IDENTITY,
    LABELS,
    MODEL,
    changed,
    dciodvfy_errors,
    item_triple,
    make_series,
    needs_dciodvfy,
    refused,
    triple,
)
from tests.dicom_series import TILTED, lay

Kind = Literal["binary", "labelmap"]
KINDS: tuple[Kind, ...] = ("binary", "labelmap")
LAYS = {
    "axial": lay((2.5, 0.9765625, 0.9765625), origin=(-249.51171875, -460.1, -1203.75)),
    "oblique": lay((3.0, 1.2, 0.7), row=TILTED[0], column=TILTED[1]),
    "gantry tilt": lay(step=(0.0, 0.8, 2.8)),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # pydicom's, over what is wrong here on purpose


@pytest.fixture(scope="module")
def written(series: Series, mask: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        write_seg(series, mask, LABELS, folder / f"{kind}.dcm", model=MODEL, kind=kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_note_is_in_the_description_of_its_segment(
    kind: Kind, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    notes = {LABELS[1]: "Expected DSC 0.79, floor for 90% of structures 0.68"}
    write_seg(series, mask, LABELS, tmp_path / "seg.dcm", model=MODEL, kind=kind, notes=notes)
    described = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    left, right = (each for each in described if each.SegmentNumber > 0)
    assert right.SegmentDescription.endswith(", not reviewed")
    assert left.SegmentDescription == f"{right.SegmentDescription}. {notes[LABELS[1]]}"


def by_highdicom(path: Path, series: Series) -> NDArray[Any]:
    """The label map as highdicom lays it on the source's images."""
    found = highdicom.seg.segread(path)
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    if series.slices[0].frame is None:
        return found.get_pixels_by_source_instance([each.sop_instance_uid for each in series.slices], **options)
    frames = [each.frame + 1 for each in series.slices if each.frame is not None]
    return found.get_pixels_by_source_frame(series.slices[0].sop_instance_uid, frames, **options)


@pytest.mark.parametrize("affine", LAYS.values(), ids=LAYS)
@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_highdicom_reads_every_voxel_back(
    kind: Kind, enhanced: bool, affine: NDArray[Any], mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    series = make_series(tmp_path / "ct", affine=affine, enhanced=enhanced)
    write_seg(series, mask, LABELS, tmp_path / "seg.dcm", model=MODEL, kind=kind)
    assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", series), mask)


@pytest.mark.parametrize("kind", KINDS)
def test_voxels_lie_where_the_affine_has_them(
    kind: Kind, written: Path, series: Series, mask: NDArray[np.uint8]
) -> None:
    volume = highdicom.seg.segread(written / f"{kind}.dcm").get_volume(combine_segments=True)
    for value in (1, 2):
        found, expected = (
            np.column_stack([voxels, np.ones(len(voxels))]) @ affine.T
            for voxels, affine in (
                (np.argwhere(volume.array == value), volume.affine),
                (np.argwhere(mask == value), series.affine),
            )
        )
        assert {tuple(each) for each in np.round(found, 3)} == {tuple(each) for each in np.round(expected, 3)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_segments_are(kind: Kind, written: Path) -> None:
    dataset = pydicom.dcmread(written / f"{kind}.dcm")
    described = dataset.SegmentSequence[-2:]
    assert [each.SegmentLabel for each in described] == ["Parotid_L", "Parotid_R"]
    assert [each.SegmentNumber for each in described] == [1, 2]
    for each, side in zip(described, (codes.SCT.Left, codes.SCT.Right), strict=True):
        (category,) = each.SegmentedPropertyCategoryCodeSequence
        (type_,) = each.SegmentedPropertyTypeCodeSequence
        (modifier,) = type_.SegmentedPropertyTypeModifierCodeSequence
        expected = (codes.SCT.AnatomicalStructure, codes.SCT.ParotidGland, side)
        assert [item_triple(item) for item in (category, type_, modifier)] == [triple(code) for code in expected]
        assert each.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = each.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmName == "parotid-seg"
        assert MODEL in algorithm.AlgorithmParameters
        assert each.TrackingID == each.SegmentLabel
    assert len({each.TrackingUID for each in described}) == 2
    colour = highdicom.color.CIELabColor.from_dicom_value(described[0].RecommendedDisplayCIELabValue)
    assert np.allclose(colour.to_rgb(clip=True), (255, 176, 0), atol=3)
    assert dataset.Manufacturer == "parotid-seg"
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert is_own_object(written / f"{kind}.dcm")


def referred(items: list[Any]) -> list[Any]:
    return [(each.ReferencedSOPInstanceUID, each.get("ReferencedFrameNumber")) for each in items]


@pytest.mark.parametrize("enhanced", [False, True])
def test_it_refers_to_the_source(enhanced: bool, mask: NDArray[np.uint8], tmp_path: Path) -> None:
    series = make_series(tmp_path / "ct", enhanced=enhanced)
    write_seg(series, mask, LABELS, tmp_path / "seg.dcm", model=MODEL)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    images = {(each.sop_instance_uid, None) for each in series.slices}
    (found,) = dataset.ReferencedSeriesSequence
    assert found.SeriesInstanceUID == series.series_uid
    assert sorted(referred(found.ReferencedInstanceSequence)) == sorted(images)
    assert sorted(referred(dataset.SourceImageSequence)) == sorted(images)
    frames = {(each.sop_instance_uid, None if each.frame is None else each.frame + 1) for each in series.slices}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPClassUID == series.slices[0].sop_class_uid
        assert referred([source])[0] in frames


def test_some_frames_of_a_multi_frame_source(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    whole = make_series(tmp_path / "ct", enhanced=True)
    series = replace(whole, slices=whole.slices[:-1])
    write_seg(series, mask[:-1], LABELS, tmp_path / "seg.dcm", model=MODEL)
    (image,) = pydicom.dcmread(tmp_path / "seg.dcm").SourceImageSequence
    assert list(image.ReferencedFrameNumber) == list(range(2, 13))
    assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", series), mask[:-1])


def test_slices_of_a_tilted_gantry_are_no_3d_volume(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    series = make_series(tmp_path / "ct", affine=LAYS["gantry tilt"])
    write_seg(series, mask, LABELS, tmp_path / "seg.dcm", model=MODEL, kind="labelmap")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert "DimensionOrganizationType" not in dataset
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == pytest.approx(2.8)


def test_slices_that_are_not_spaced_or_turned_to_the_last_digit(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    def jitter(index: int, dataset: pydicom.Dataset) -> None:
        dataset.ImagePositionPatient[2] += 0.04 * (-1) ** index
        dataset.ImageOrientationPatient[4] = 1.0 - 1e-7 * (index % 3)

    series = make_series(tmp_path / "ct", change=jitter)
    write_seg(series, mask, LABELS, tmp_path / "seg.dcm", model=MODEL)
    assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", series), mask)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_without_voxels_are_described(
    kind: Kind, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    for labels in (np.where(mask == 2, mask, 0).astype(np.uint8), np.zeros_like(mask)):
        write_seg(series, labels, LABELS, tmp_path / "seg.dcm", model=MODEL, kind=kind)
        described = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[-2:]
        assert [each.SegmentLabel for each in described] == ["Parotid_L", "Parotid_R"]
        assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", series), labels)


def test_a_patient_whose_data_is_not_as_the_standard_has_it(
    mask: NDArray[np.uint8], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def patient(index: object, dataset: pydicom.Dataset) -> None:
        dataset.PatientName = "Doe=Jane=4711=Doe^" + "Jane" * 30
        dataset.PatientSex, dataset.PatientBirthDate, dataset.StudyDate = "Doe?", "4711", "Jane"
        dataset.PatientWeight, dataset.StudyID = "70", "Doe" * 9
        dataset["PatientWeight"]._value = "Doe"

    series = make_series(tmp_path / "ct", change=patient)
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(0):
        warnings.simplefilter("always")
        write_seg(series, mask, LABELS, tmp_path / "seg.dcm", model=MODEL)
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
        write_rtstruct(series, mask, LABELS, tmp_path / "more.dcm", model=MODEL, append=tmp_path / "rt.dcm")
        [roi.drawn() for roi in read_rtstruct(tmp_path / "more.dcm", series)]
    told = [*(str(each.message) for each in warned), *caplog.messages, *capfd.readouterr()]
    assert not any(name in text for text in told for name in IDENTITY)
    source, found = (pydicom.dcmread(path) for path in (series.slices[0].path, tmp_path / "seg.dcm"))
    for keyword in ["PatientName", "PatientSex", "PatientBirthDate", "StudyDate", "StudyID", "PatientWeight"]:
        assert found.get_item(keyword).value == source.get_item(keyword).value


def test_labels_the_character_set_lacks_make_all_text_utf8(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    def patient(index: object, dataset: pydicom.Dataset) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Jörg"

    series = make_series(tmp_path / "ct", change=patient)
    write_seg(series, mask, ("背景", "腮腺", "parotid_right"), tmp_path / "seg.dcm", model=MODEL)
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    assert found.PatientName == "Müller^Jörg"
    assert [each.SegmentLabel for each in found.SegmentSequence] == ["腮腺", "Parotid_R"]


def test_what_cannot_be_written_leaves_no_file(series: Series, mask: NDArray[np.uint8], tmp_path: Path) -> None:
    with refused(InputError, "found a mask of shape (12, 31, 36), expected (12, 32, 36)"):
        write_seg(series, mask[:, 1:], LABELS, tmp_path / "seg.dcm", model=MODEL)
    moved = series.affine.copy()
    moved[0, 3] += 0.24
    with refused(ScanError, "centroid 0.240 mm off"):
        write_seg(replace(series, affine=moved), mask, LABELS, tmp_path / "seg.dcm", model=MODEL)
    with refused(ScanError, "mm from where the series has it"):
        write_seg(replace(series, slices=series.slices[::-1]), mask, LABELS, tmp_path / "seg.dcm", model=MODEL)
    assert not list(tmp_path.iterdir())


def another_pixel(dataset: pydicom.Dataset) -> None:
    content = bytearray(dataset.PixelData)
    content[len(content) // 2] ^= 1
    dataset.PixelData = bytes(content)


def another_place(dataset: pydicom.Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient[0] += 0.5


def another_spacing(dataset: pydicom.Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [1.0, 1.1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_pixel, "voxels that differ (DSC 0.99"),
        (another_place, "found a frame 0.500 mm off the nearest slice"),
        (another_spacing, "found a frame 3.500 mm off the nearest slice"),
        (lambda dataset: setattr(dataset, "PatientID", "0815"), "found another PatientID than in"),
    ],
    ids=["pixel", "place", "spacing", "patient"],
)
def test_the_proof_fails_for_an_object_that_is_not_the_mask(
    change: Callable[..., Any],
    message: str,
    kind: Kind,
    series: Series,
    mask: NDArray[np.uint8],
    written: Path,
    tmp_path: Path,
) -> None:
    verify_round_trip(written / f"{kind}.dcm", series, mask, LABELS, kind)
    path = changed(written / f"{kind}.dcm", tmp_path / "seg.dcm", change)
    with refused(ScanError, message):
        verify_round_trip(path, series, mask, LABELS, kind)


@needs_dciodvfy
@pytest.mark.parametrize("source", [*LAYS, "enhanced", "empty"])
def test_dciodvfy_finds_no_error(source: str, mask: NDArray[np.uint8], tmp_path: Path) -> None:
    series = make_series(tmp_path / "ct", affine=LAYS.get(source), enhanced=source == "enhanced")
    labels = np.zeros_like(mask) if source == "empty" else mask
    write_seg(series, labels, LABELS, tmp_path / "seg.dcm", model=MODEL)
    assert dciodvfy_errors(tmp_path / "seg.dcm") == []


@needs_dciodvfy
def test_dciodvfy_would_find_one(written: Path, tmp_path: Path) -> None:
    path = changed(written / "binary.dcm", tmp_path / "seg.dcm", lambda dataset: delattr(dataset, "SegmentationType"))
    assert "SegmentationType" in "".join(dciodvfy_errors(path))
