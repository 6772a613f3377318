"""RT Dose objects: the dose lies where it is in the patient, and one that cannot be used is refused in one line."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from parotid_seg.dicom.read.dose import find_dose, read_dose
from parotid_seg.errors import ScanError
from parotid_seg.flags import FlagCode
from parotid_seg.scan.dose_grid import structure_doses
from tests.dicom.for_writers import needs_plastimatch
from tests.dicom.read.dose_files import SCALING, linear, ramp, set_to, write_rtdose
from tests.dicom_series import TILTED, lay

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")
SHAPE = (6, 8, 7)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LAID = {
    "head first": lay((3.0, 2.5, 2.0)),
    "feet to head reversed": lay((3.0, 2.5, 2.0), step=(0.0, 0.0, -3.0)),
    "prone": lay((3.0, 2.5, 2.0), row=(-1, 0, 0), column=(0, -1, 0)),
    "feet first": lay((3.0, 2.5, 2.0), row=(1, 0, 0), column=(0, -1, 0)),
    "coronal": lay((3.0, 2.5, 2.0), row=(1, 0, 0), column=(0, 0, -1)),
    "oblique": lay((3.0, 2.5, 2.0), row=TILTED[0], column=TILTED[1]),
}


def check_is_linear(path: Path, affine: NDArray[np.float64], shape: tuple[int, int, int] = SHAPE) -> None:
    """Raise AssertionError unless a dose is that of `linear` at points within its grid."""
    dose = read_dose(path)
    indices = np.random.default_rng(0).uniform(0, np.array(shape) - 1, (50, 3))
    at = affine @ np.hstack([indices, np.ones((50, 1))]).T
    gray, inside = dose.at((TO_RAS @ at)[:3].T)
    assert inside.all()
    np.testing.assert_allclose(gray, linear(at[:3]), atol=0.002)
    outside = (
        affine @ np.array([[-0.1, 2, 2, 1], [2, -0.1, 2, 1], [2, 2, SHAPE[2] - 0.9, 1], [SHAPE[0] - 0.9, 2, 2, 1]]).T
    )
    assert not dose.at((TO_RAS @ outside)[:3].T)[1].any()


@pytest.mark.parametrize("laid", LAID)
def test_the_dose_lies_where_it_is_in_the_patient(laid: str, tmp_path: Path) -> None:
    affine = LAID[laid]
    check_is_linear(write_rtdose(tmp_path / "dose.dcm", ramp(affine, SHAPE), affine), affine)


@pytest.mark.parametrize("laid", ["head first", "feet to head reversed", "prone", "feet first"])
def test_both_forms_of_offsets_mean_the_same(laid: str, tmp_path: Path) -> None:
    affine = LAID[laid]
    check_is_linear(write_rtdose(tmp_path / "dose.dcm", ramp(affine, SHAPE), affine, form="absolute"), affine)


@pytest.mark.parametrize("form", ["relative", "absolute"])
def test_planes_at_uneven_distances(form: Literal["relative", "absolute"], tmp_path: Path) -> None:
    planes_mm, affine = np.array([0.0, 2.0, 3.0, 7.0, 8.0, 15.0]), lay((3.0, 2.5, 2.0))
    k, j, i = np.indices(SHAPE)
    at = np.einsum("ab,bkji->akji", affine[:3], np.stack([planes_mm[k] / 3.0, j, i, np.ones_like(k)]))
    path = write_rtdose(tmp_path / "dose.dcm", linear(at), affine, form=form, planes_mm=planes_mm)
    check_is_linear(path, affine)


@pytest.mark.parametrize(
    ("bits", "syntax"),
    [
        (16, ImplicitVRLittleEndian),
        (32, ImplicitVRLittleEndian),
        (32, DeflatedExplicitVRLittleEndian),
        (16, ExplicitVRBigEndian),
        (16, RLELossless),
    ],
)
def test_ways_to_store_a_dose(bits: int, syntax: str, tmp_path: Path) -> None:
    affine = lay((3.0, 2.5, 2.0))
    path = write_rtdose(tmp_path / "dose.dcm", ramp(affine, SHAPE), affine, bits=bits, transfer_syntax=syntax)
    check_is_linear(path, affine)


def test_an_effective_dose_is_flagged(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        dataset.DoseType = "EFFECTIVE"

    path = write_rtdose(tmp_path / "dose.dcm", np.full(SHAPE, 20.0), change=change)
    assert [flag.code for flag in read_dose(path).flags] == [FlagCode.DOSE_EFFECTIVE]


@needs_plastimatch
@pytest.mark.parametrize("laid", ["head first", "feet to head reversed"])
@pytest.mark.parametrize("form", ["relative", "absolute"])
def test_plastimatch_has_the_same_dose_in_the_same_place(
    laid: str, form: Literal["relative", "absolute"], tmp_path: Path
) -> None:
    """Of an irregular dose on axial planes; plastimatch transposes the directions of oblique ones."""
    affine, shape = LAID[laid], (20, 24, 22)
    gray = np.random.default_rng(0).uniform(0, 60, shape)
    path = write_rtdose(tmp_path / "dose.dcm", gray, affine, form=form)
    words: list[str | Path] = ["plastimatch", "convert", "--input", path, "--output-dose-img", tmp_path / "dose.nii.gz"]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    converted = nibabel.load(tmp_path / "dose.nii.gz")
    ours, theirs = read_dose(path), np.asarray(converted.dataobj)
    points = np.argwhere(np.ones(converted.shape)) @ converted.affine[:3, :3].T + converted.affine[:3, 3]
    found, inside = ours.at(points)
    assert inside.mean() > 0.99
    np.testing.assert_allclose(found[inside], theirs.ravel()[inside], atol=0.01)


@pytest.mark.parametrize("laid", LAID)
def test_itk_has_the_same_dose_in_the_same_place(laid: str, tmp_path: Path) -> None:
    """Of an irregular dose; ITK gives stored values."""
    affine, shape = LAID[laid], (20, 24, 22)
    path = write_rtdose(tmp_path / "dose.dcm", np.random.default_rng(0).uniform(0, 60, shape), affine)
    image = SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat64)
    indices = np.random.default_rng(1).uniform(0, np.array(shape) - 1, (100, 3))
    at = (affine @ np.hstack([indices, np.ones((100, 1))]).T)[:3].T
    theirs = [SCALING * image.EvaluateAtPhysicalPoint(point, SimpleITK.sitkLinear) for point in at.tolist()]
    found, inside = read_dose(path).at(at * (-1, -1, 1))
    assert inside.all()
    np.testing.assert_allclose(found, theirs, atol=1e-4)


def test_the_mean_of_a_structure_is_over_the_voxels_within_the_grid(tmp_path: Path) -> None:
    affine = lay((3.0, 2.0, 2.0))
    dose = read_dose(write_rtdose(tmp_path / "dose.dcm", ramp(affine, SHAPE), affine))
    labels = np.zeros((7, 8, 6), np.uint8)  # columns, rows and slices of the scan
    scan = lay((3.0, 2.0, 2.0), origin=(-98.0, -120.0, -50.0))  # a column further
    labels[1, 1, 1], labels[3, 1, 1] = 1, 1
    labels[5, 2, 2], labels[6, 2, 2] = 2, 2  # the second lies beyond the grid
    labels[6, 4, 4] = 3
    found = structure_doses(labels, TO_RAS @ scan[:, [2, 1, 0, 3]], dose)
    column = np.array([-98.0 + 2 * 2, -120.0 + 2, -50.0 + 3])
    assert found[1].mean_gy == pytest.approx(linear(column), abs=0.002)
    assert (found[1].outside, found[2].outside, found[3]) == (0.0, 0.5, (None, 1.0))
    assert found[2].mean_gy == pytest.approx(linear(np.array([-88.0, -116.0, -44.0])), abs=0.002)
    assert set(found) == {1, 2, 3}


def without(name: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_to(DoseUnits="RELATIVE"), "found DoseUnits RELATIVE, expected GY"),
        (set_to(DoseUnits="Doe^Jane"), "found DoseUnits another value, expected GY"),
        (set_to(DoseType="ERROR"), "found DoseType ERROR, expected PHYSICAL or EFFECTIVE"),
        (set_to(DoseSummationType="BEAM"), "found DoseSummationType BEAM, expected PLAN"),
        (set_to(DoseSummationType="FRACTION"), "found DoseSummationType FRACTION, expected PLAN"),
        (without("DoseSummationType"), "found DoseSummationType none, expected PLAN"),
        (without("DoseGridScaling"), "no usable DoseGridScaling"),
        (set_to(DoseGridScaling="0"), "no usable DoseGridScaling"),
        (set_to(DoseGridScaling="1e300"), "expected Gy, at most 100000"),
        (set_to(DoseGridScaling="NaN"), "no usable DoseGridScaling"),
        (without("GridFrameOffsetVector"), "no usable GridFrameOffsetVector, expected 6 numbers"),
        (set_to(GridFrameOffsetVector=[0, 3]), "no usable GridFrameOffsetVector, expected 6 numbers"),
        (set_to(GridFrameOffsetVector=[0, 3, 6, 6, 9, 12]), "neither rises nor falls"),
        (set_to(GridFrameOffsetVector=[0, 3, 6, "nan", 9, 12]), "no usable GridFrameOffsetVector"),
        (set_to(GridFrameOffsetVector=[5, 8, 11, 14, 17, 20]), "GridFrameOffsetVector begins with 5"),
        (set_to(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "no usable ImageOrientationPatient"),
        (without("ImagePositionPatient"), "no usable ImagePositionPatient"),
        (set_to(PixelSpacing=[0, 1]), "no usable PixelSpacing"),
        (without("PixelData"), "cut off: found 0 bytes"),
        (without("Rows"), "no usable Rows"),
        (set_to(Rows=9), "cut off: found 1344 bytes of pixel data, expected 1512"),
        (set_to(Rows=65535, Columns=65535), "expected at most"),
        (set_to(NumberOfFrames=2**31 - 1), "expected at most"),
        (set_to(NumberOfFrames=1), "found a grid of 1 x 8 x 7 points"),
        (set_to(BitsStored=12, HighBit=11), "found BitsStored 12, expected 32"),
        (set_to(PixelRepresentation=1, PixelData=b"\xff" * 1344), "expected none below 0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    change: Callable[[Dataset], None], words: str, tmp_path: Path
) -> None:
    path = write_rtdose(tmp_path / "dose.dcm", np.full(SHAPE, 20.0), change=change)
    with pytest.raises(ScanError) as caught:
        read_dose(path)
    assert words in caught.value.reason
    assert caught.value.path == path
    assert len(str(caught.value).splitlines()) == 1
    assert "Doe" not in str(caught.value)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    path = write_rtdose(tmp_path / "dose.dcm", np.full(SHAPE, 20.0), bits=16, transfer_syntax=RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = 200, 2000, 2000
    dataset.GridFrameOffsetVector = list(range(200))
    dataset.save_as(path)
    with pytest.raises(ScanError, match="reading it would take 3051 MB of memory, expected at most 768 MB"):
        read_dose(path)


def test_cut_and_overwritten_files(tmp_path: Path) -> None:
    path = write_rtdose(tmp_path / "dose.dcm", np.full(SHAPE, 20.0))
    content, random = path.read_bytes(), np.random.default_rng(0)
    for attempt in range(80):
        spoilt = bytearray(content[: random.integers(len(content))] if attempt % 2 else content)
        for at in random.integers(0, len(spoilt), random.integers(1, 6)):
            spoilt[at] = random.integers(256)
        path.write_bytes(spoilt)
        for read in (find_dose, read_dose):
            assert len(refusal(read, path).splitlines()) <= 1


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """The message of a file that is refused; empty if it is read."""
    try:
        read(path)
    except ScanError as error:
        return str(error)
    return ""
