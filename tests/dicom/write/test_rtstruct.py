"""RT Structure Sets as they are written, and what other programs make of them."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import ImplicitVRLittleEndian

from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.write.objects import is_own_object
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from parotid_seg.errors import InputError, OutputError, ScanError
from parotid_seg.metrics import dice
from parotid_seg.version import VERSION
from tests.dicom.for_writers import (
    LABELS,
    MODEL,
    SHAPE,
    changed,
    dciodvfy_errors,
    drawn,
    glands,
    item_triple,
    make_series,
    needs_dciodvfy,
    needs_plastimatch,
    numbers,
    refused,
    triple,
)
from tests.dicom_series import TILTED, lay

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # pydicom's, over what is wrong here on purpose


@pytest.mark.parametrize(
    "affine",
    [
        lay(),
        lay((2.5, 0.9765625, 0.9765625), origin=(-249.51171875, -460.1, -1203.75)),
        lay((3.0, 1.2, 0.7), row=TILTED[0], column=TILTED[1]),
        lay(step=(0.0, 0.8, 2.8)),
        lay(row=(0.0, 1.0, 0.0), column=(0.0, 0.0, -1.0)),
    ],
    ids=["axial", "fractions", "oblique", "gantry tilt", "sagittal"],
)
@pytest.mark.parametrize("enhanced", [False, True])
def test_every_voxel_comes_back(affine: NDArray[Any], enhanced: bool, mask: NDArray[np.uint8], tmp_path: Path) -> None:
    series = make_series(tmp_path / "ct", affine=affine, enhanced=enhanced)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    found = drawn(tmp_path / "rt.dcm", series)
    assert list(found) == ["Parotid_L", "Parotid_R"]
    assert np.array_equal(found["Parotid_L"], mask == 1)
    assert np.array_equal(found["Parotid_R"], mask == 2)


def test_noise_with_holes_and_single_voxels_comes_back(series: Series, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).choice(3, size=SHAPE, p=(0.4, 0.3, 0.3)).astype(np.uint8)
    noise[1:-1] = 0
    noise[:, :, 12:] = 0
    write_rtstruct(series, noise, LABELS, tmp_path / "rt.dcm", model=MODEL)
    found = drawn(tmp_path / "rt.dcm", series)
    assert np.array_equal(found["Parotid_L"], noise == 1)
    assert np.array_equal(found["Parotid_R"], noise == 2)


def test_a_voxel_lies_where_the_affine_has_it(series: Series, tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[4, 10, 20] = 1
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    (contour,) = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    points = numbers(contour)
    assert contour.NumberOfContourPoints == len(points) == 4
    centre = (series.affine @ (4, 10, 20, 1))[:3]
    assert np.allclose(points.mean(axis=0), centre, atol=1e-4)
    assert np.allclose(np.abs(points - centre).max(axis=0), (0.5, 0.5, 0.0), atol=1e-4)


def test_contours_lie_in_the_planes_of_the_images_they_refer_to(series: Series, written: Path) -> None:
    images = {each.sop_instance_uid: pydicom.dcmread(each.path) for each in series.slices}
    for roi in pydicom.dcmread(written).ROIContourSequence:
        for number, contour in enumerate(roi.ContourSequence, start=1):
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            assert contour.ContourNumber == number
            (image,) = contour.ContourImageSequence
            assert image.ReferencedSOPClassUID == pydicom.uid.CTImageStorage
            height = images[image.ReferencedSOPInstanceUID].ImagePositionPatient[2]
            assert (numbers(contour)[:, 2] == float(height)).all()
            assert all(len(str(value)) <= 16 for value in contour.ContourData)


def test_slices_that_are_not_spaced_to_the_last_digit_keep_their_contours(
    mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    def jitter(index: int, dataset: pydicom.Dataset) -> None:
        dataset.ImagePositionPatient[2] += 0.04 * (-1) ** index

    series = make_series(tmp_path / "ct", change=jitter)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    contours = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    heights = {round(float(contour.ContourData[2]), 4) for contour in contours}
    assert heights <= {float(pydicom.dcmread(each.path).ImagePositionPatient[2]) for each in series.slices}


def test_a_note_is_in_the_description_of_its_structure(series: Series, mask: NDArray[np.uint8], tmp_path: Path) -> None:
    notes = {LABELS[2]: "Expected DSC 0.79, floor for 90% of structures 0.68"}
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, notes=notes)
    left, right = pydicom.dcmread(tmp_path / "rt.dcm").StructureSetROISequence
    assert left.ROIDescription.endswith(", not reviewed")
    assert right.ROIDescription == f"{left.ROIDescription}. {notes[LABELS[2]]}"


def test_what_the_structures_are(series: Series, written: Path) -> None:
    dataset = pydicom.dcmread(written)
    left, right = dataset.StructureSetROISequence
    assert (left.ROIName, right.ROIName) == ("Parotid_L", "Parotid_R")
    assert left.ROIGenerationAlgorithm == "AUTOMATIC"
    assert left.ROIGenerationDescription == f"parotid-seg {VERSION}, model {MODEL}"
    assert left.ROIDerivationAlgorithmIdentificationSequence[0].AlgorithmParameters == f"model={MODEL}"
    assert left.ROIDescription.endswith(", not reviewed")
    assert left.ReferencedFrameOfReferenceUID == series.frame_of_reference_uid
    assert [list(each.ROIDisplayColor) for each in dataset.ROIContourSequence] == [[255, 176, 0], [64, 196, 255]]
    for observation, side in zip(dataset.RTROIObservationsSequence, (codes.SCT.Left, codes.SCT.Right), strict=True):
        assert observation.RTROIInterpretedType == "ORGAN"
        (category,) = observation.SegmentedPropertyCategoryCodeSequence
        (kind,) = observation.RTROIIdentificationCodeSequence
        (modifier,) = kind.SegmentedPropertyTypeModifierCodeSequence
        expected = (codes.SCT.AnatomicalStructure, codes.SCT.ParotidGland, side)
        assert [item_triple(each) for each in (category, kind, modifier)] == [triple(each) for each in expected]
    assert dataset.ApprovalStatus == "UNAPPROVED"
    assert dataset.Manufacturer == "parotid-seg"
    assert dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert is_own_object(written)
    assert not is_own_object(series.slices[0].path)
    assert not is_own_object(Path(__file__))


def test_it_refers_to_every_slice(series: Series, written: Path) -> None:
    (frame,) = pydicom.dcmread(written).ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (found,) = study.RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == series.frame_of_reference_uid
    assert study.ReferencedSOPInstanceUID == series.study_uid
    assert found.SeriesInstanceUID == series.series_uid
    images = {each.ReferencedSOPInstanceUID for each in found.ContourImageSequence}
    assert images == {each.sop_instance_uid for each in series.slices}


def test_frames_of_a_multi_frame_source(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    series = make_series(tmp_path / "ct", enhanced=True)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    found = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    (image,) = found.ContourImageSequence
    assert "ReferencedFrameNumber" not in image
    groups = pydicom.dcmread(series.slices[0].path).PerFrameFunctionalGroupsSequence
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        frame = groups[contour.ContourImageSequence[0].ReferencedFrameNumber - 1]
        assert frame.PlanePositionSequence[0].ImagePositionPatient[2] == contour.ContourData[2]
    shorter = replace(series, slices=series.slices[:-1])
    write_rtstruct(shorter, mask[:-1], LABELS, tmp_path / "rt.dcm", model=MODEL)
    found = pydicom.dcmread(tmp_path / "rt.dcm").ReferencedFrameOfReferenceSequence[0]
    (image,) = found.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence
    assert list(image.ReferencedFrameNumber) == list(range(2, 13))


def test_a_label_without_voxels_is_a_structure_without_contours(
    series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_rtstruct(series, np.where(mask == 1, mask, 0), LABELS, tmp_path / "rt.dcm", model=MODEL)
    found = drawn(tmp_path / "rt.dcm", series)
    assert found["Parotid_L"].any()
    assert not found["Parotid_R"].any()
    assert "ContourSequence" not in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[1]


def test_what_cannot_be_written_leaves_no_file(series: Series, mask: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "rt.dcm"
    with refused(InputError, "found a mask of shape (11, 32, 36), expected (12, 32, 36)"):
        write_rtstruct(series, mask[1:], LABELS, path, model=MODEL)
    with refused(InputError, "found label 2 in the mask"):
        write_rtstruct(series, mask, LABELS[:2], path, model=MODEL)
    with pytest.raises(OutputError, match="cannot be written"):
        write_rtstruct(series, mask, LABELS, tmp_path / "absent" / "rt.dcm", model=MODEL)
    content = series.slices[3].path.read_bytes()
    with pytest.raises(InputError, match="one of the files that are read"):
        write_rtstruct(series, mask, LABELS, series.slices[3].path, model=MODEL)
    assert series.slices[3].path.read_bytes() == content
    assert not list(tmp_path.iterdir())


def test_a_source_that_cannot_be_referred_to(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    def without(index: object, dataset: pydicom.Dataset) -> None:
        del dataset.FrameOfReferenceUID

    series = make_series(tmp_path / "ct", change=without)
    with refused(ScanError, "found no FrameOfReferenceUID"):
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)


def test_a_source_that_is_another_by_now(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    series = make_series(tmp_path / "ct")
    shutil.copy(series.slices[5].path, series.slices[4].path)
    with refused(ScanError, "found another image than when the series was read"):
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    series.slices[4].path.unlink()
    with pytest.raises(ScanError, match="No such file"):
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    assert not (tmp_path / "rt.dcm").exists()


@needs_dciodvfy
@pytest.mark.parametrize("kind", ["new", "added", "enhanced", "empty"])
def test_dciodvfy_finds_no_error(
    kind: str, written: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "rt.dcm"
    source = make_series(tmp_path / "ct", enhanced=True) if kind == "enhanced" else series
    labels = np.zeros_like(mask) if kind == "empty" else mask
    write_rtstruct(source, labels, LABELS, path, model=MODEL, append=written if kind == "added" else None)
    assert dciodvfy_errors(path) == []


@needs_dciodvfy
def test_dciodvfy_would_find_one(written: Path, tmp_path: Path) -> None:
    path = changed(written, tmp_path / "rt.dcm", lambda dataset: delattr(dataset, "StructureSetLabel"))
    assert "StructureSetLabel" in "".join(dciodvfy_errors(path))


@needs_plastimatch
@pytest.mark.parametrize(
    ("shape", "spacing", "least"),
    [((40, 100, 160), (2.5, 1.0, 1.0), 0.99), ((40, 26, 41), (2.5, 3.9, 3.9), 0.97)],
)
def test_plastimatch_draws_the_same_glands(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], least: float, tmp_path: Path
) -> None:
    series, mask = make_series(tmp_path / "ct", shape, lay(spacing)), glands(shape)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    out = tmp_path / "labels.nii.gz"
    words = ["plastimatch", "convert", "--input", str(tmp_path / "rt.dcm"), "--referenced-ct", str(tmp_path / "ct")]
    subprocess.run([*words, "--output-labelmap", out], check=True, capture_output=True, timeout=120)
    image = nibabel.load(out)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine[:, [2, 1, 0, 3]]
    assert np.allclose(image.affine, to_ras, atol=1e-3)
    found = np.transpose(np.asarray(image.dataobj), (2, 1, 0))
    for value in (1, 2):
        assert dice(found == value, mask == value) >= least
