"""NIfTI files that are damaged, or make no sense, are refused in one line."""

import contextlib
import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import ScanError
from parotid_seg.scan.foreign import MOST_VOXELS
from parotid_seg.scan.nifti import check_same_voxels, count_voxels, read_mask, read_nifti
from tests.scan.test_nifti import SHAPE, ct, save, spoil


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (path, words the error must hold)."""
    nan = ct().astype(np.float32)
    nan[0, 0, 0] = np.nan
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    not_nifti, cut, cut_plain = folder / "text.nii.gz", folder / "cut.nii.gz", folder / "cut.nii"
    not_nifti.write_text("hello")
    whole = save(folder / "whole.nii.gz", ct()).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with gzip.open(folder / "whole.nii.gz") as source, cut_plain.open("wb") as target:
        shutil.copyfileobj(source, target)
    cut_plain.write_bytes(cut_plain.read_bytes()[:5000])
    flat = np.diag([2.0, 2.0, 3.0, 1.0])
    flat[:3, 2] = flat[:3, 1]

    def zero_spacing(header: nibabel.Nifti1Header) -> None:
        header["pixdim"][1:4] = 0

    def nan_spacing(header: nibabel.Nifti1Header) -> None:
        header["pixdim"][1] = np.nan

    return {
        "missing": (folder / "nowhere.nii.gz", "no such file"),
        "text": (not_nifti, "not a readable NIfTI"),
        "truncated gz": (cut, "cut off"),
        "truncated": (cut_plain, "cut off"),
        "4-D": (save(folder / "4d.nii", ct((*SHAPE, 2))), "4-D"),
        "complex": (save(folder / "complex.nii", ct().astype(np.complex64)), "one real number"),
        "colour": (save(folder / "colour.nii", colour), "RGB"),
        "zeros": (save(folder / "zeros.nii", np.zeros(SHAPE, np.int16)), "every voxel has the value 0"),
        "NaN": (save(folder / "nan.nii", nan), "1 of 10560 voxels are NaN"),
        "zero spacing": (
            spoil(save(folder / "zero.nii", ct(), sform=0, qform=0), zero_spacing),
            "voxel spacing [0.0, 0.0, 0.0]",
        ),
        "NaN spacing": (spoil(save(folder / "nans.nii", ct()), nan_spacing), "voxel spacing [nan, 2.0, 3.0]"),
        "singular": (save(folder / "singular.nii", ct(), flat, qform=0), "singular"),
        "one slice": (save(folder / "slice.nii", ct((20, 22, 1))), "single one"),
        "2-D": (save(folder / "2d.nii", ct((20, 22))), "single one"),
        "thin": (save(folder / "thin.nii", ct((20, 22, 3))), "cover 9.0 mm"),
        "metres called mm": (
            save(folder / "metres.nii", ct(), np.diag([0.002, 0.002, 0.003, 1.0])),
            "unit in the header",
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "text",
        "truncated gz",
        "truncated",
        "4-D",
        "complex",
        "colour",
        "zeros",
        "NaN",
        "zero spacing",
        "NaN spacing",
        "singular",
        "one slice",
        "2-D",
        "thin",
        "metres called mm",
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path, words = bad_files(tmp_path)[name]
    with pytest.raises(ScanError) as caught:
        read_nifti(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("vox_offset", -np.inf, "nibabel: a number in it is out of range"),
        ("vox_offset", np.inf, "nibabel: a number in it is out of range"),
        ("vox_offset", np.nan, "nibabel: "),
        ("vox_offset", 1e30, "reading it would take"),
        ("vox_offset", 0, "found the offset 0 (vox_offset), which is within the header, expected 352 or more"),
        ("xyzt_units", 7, "found the unit 7 in the header"),
        ("datatype", 9999, "nibabel: "),
        ("dim", (3, 32767, 32767, 32767, 1, 1, 1, 1), f"found {32767**3} voxels, expected at most"),
        ("dim", (3, -5, 22, 24, 1, 1, 1, 1), "expected a volume"),
        ("dim", (9, 20, 22, 24, 1, 1, 1, 1), "nibabel: "),
        ("scl_slope", 1e38, "found intensities from"),
    ],
)
def test_what_nibabel_raises_is_the_files_error(
    tmp_path: Path, field: str, value: float | tuple[int, ...], words: str
) -> None:
    def set_field(header: nibabel.Nifti1Header) -> None:
        header[field] = value

    path = save(tmp_path / "a.nii", ct())
    good = save(tmp_path / "b.nii", ct())
    with np.errstate(all="ignore"):
        spoil(path, set_field)
    assert 0 <= count_voxels(path) <= MOST_VOXELS
    for read in (read_mask, lambda path: check_same_voxels(path, good)):
        with contextlib.suppress(ScanError):
            read(path)
    with pytest.raises(ScanError) as caught:
        read_nifti(path)
    assert words in caught.value.reason
    assert "Error" not in caught.value.reason
    assert caught.value.path == path
