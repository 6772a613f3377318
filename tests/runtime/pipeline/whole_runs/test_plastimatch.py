"""What is written, read by plastimatch and judged by dciodvfy, of scans that lie in any way but for a tilted gantry.

Plastimatch ignores gantry tilt, so of that it is no judge. Of a Label Map Segmentation dciodvfy of 2022 does not know
the object, and expects segments to be numbered from 1, where PS3.3 lets those of a label map be any number.
"""

import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from parotid_seg.metrics import dice
from parotid_seg.runtime.formats.mask_formats import NIFTI, RTSTRUCT
from tests.command_line import Run
from tests.dicom.for_writers import dciodvfy_errors, needs_dciodvfy, needs_plastimatch
from tests.dicom_example import write_image
from tests.dicom_series import lay
from tests.runtime.pipeline.whole_runs.test_itk import LAID, ONCE, written

pytestmark = pytest.mark.slow


ANISOTROPIC = {
    "wide columns": (lay((2.0, 1.1, 3.3)), None),
    "wide rows": (lay((2.0, 3.3, 1.1)), None),
    "thick slices": (lay((5.0, 1.5, 1.5)), None),
    "thick slices, oblique": (lay((5.0, 1.5, 1.2), row=ONCE[0], column=ONCE[1]), None),
}
NOT_KNOWN = ("Information Object Not found", "SegmentNumber not monotonically increasing")


def by_plastimatch(structures: Path, series: Path, out: Path) -> nibabel.Nifti1Image:
    """A structure set as plastimatch draws it on a series."""
    words: list[str | Path] = [
        "plastimatch",
        "convert",
        "--input",
        structures,
        "--referenced-ct",
        series,
        "--output-labelmap",
        out,
    ]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    return nibabel.load(out)


def on_voxels_of(image: nibabel.Nifti1Image, other: nibabel.Nifti1Image) -> np.ndarray:
    """Labels at the middles of another image's voxels; 0 beyond the image."""
    places = np.indices(other.shape).reshape(3, -1)
    at = np.linalg.inv(image.affine) @ other.affine @ np.vstack([places, np.ones(places.shape[1])])
    nearest = np.rint(at[:3]).astype(int)
    within = ((nearest >= 0) & (nearest < np.reshape(image.shape, (3, 1)))).all(axis=0)
    found = np.zeros(places.shape[1], np.uint8)
    found[within] = np.asarray(image.dataobj)[tuple(nearest[:, within])]
    return found.reshape(other.shape)


def check_same_structures(found: nibabel.Nifti1Image, mask: nibabel.Nifti1Image) -> None:
    """Raise AssertionError unless two images have the same structures in the same place."""
    ours, theirs = np.asarray(mask.dataobj), on_voxels_of(found, mask)
    sizes = [abs(np.linalg.det(image.affine[:3, :3])) for image in (mask, found)]
    for value in (1, 2):
        assert dice(theirs == value, ours == value) > 0.99
        volumes = [
            (np.asarray(each.dataobj) == value).sum() * size for each, size in zip((mask, found), sizes, strict=True)
        ]
        assert volumes[1] == pytest.approx(volumes[0], rel=0.01)


@needs_plastimatch
@pytest.mark.parametrize("laid", [*LAID, *ANISOTROPIC])
def test_plastimatch_draws_the_mask(laid: str, tmp_path: Path) -> None:
    affine, decimals = (LAID | ANISOTROPIC)[laid]
    *_, files = written(tmp_path, affine, decimals, formats=(NIFTI, RTSTRUCT))
    found = by_plastimatch(files[RTSTRUCT], tmp_path / "ct", tmp_path / "labels.nii.gz")
    check_same_structures(found, nibabel.load(files[NIFTI]))


@needs_dciodvfy
@pytest.mark.parametrize("laid", ["head to feet", "doubly oblique, 3 decimals", "thick slices, oblique"])
def test_dciodvfy_finds_no_error_in_any_object(laid: str, tmp_path: Path) -> None:
    affine, decimals = (LAID | ANISOTROPIC)[laid]
    *_, files = written(tmp_path, affine, decimals, formats=(RTSTRUCT, "seg", "seg-labelmap"))
    assert dciodvfy_errors(files[RTSTRUCT]) == []
    assert dciodvfy_errors(files["seg"]) == []
    errors = dciodvfy_errors(files["seg-labelmap"])
    assert [each for each in errors if not any(words in each for words in NOT_KNOWN)] == []


@needs_plastimatch
def test_the_example_as_a_series_gives_plastimatch_the_mask_of_infer(
    command: Run, head: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    write_image(tmp_path / "ct", head)
    formats = ("--format", "nifti", "--format", "rtstruct", "--backend", "onnxruntime", "--device", "cpu")
    done = command("infer", tmp_path / "ct", "--out", tmp_path / "out", *formats)
    assert done.returncode == 0, done.stderr
    found = by_plastimatch(tmp_path / "out" / "ct.rtstruct.dcm", tmp_path / "ct", tmp_path / "labels.nii.gz")
    check_same_structures(found, nibabel.load(tmp_path / "out" / "ct.nii.gz"))
