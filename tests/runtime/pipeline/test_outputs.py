"""What may be asked for beside NIfTI, and which files are ours."""

import re
import sys
import types
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import pydicom
import pytest

from parotid_seg.errors import InputError, ScanError
from parotid_seg.runtime.formats.mask_formats import FORMATS, Format, formats_help
from parotid_seg.runtime.pipeline.writers import Outputs, is_ours
from parotid_seg.scan.nifti import NiftiScan
from tests.dicom_series import ct_voxels, write_series


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        (("dicom",), "--format: found 'dicom', expected one of: nifti, nrrd, rtstruct, seg, seg-labelmap"),
        (("nifti", "nifti"), "--format: found nifti nifti, expected at least one format, each once"),
        ((), "--format: found none, expected at least one format"),
    ],
)
def test_formats_that_there_are_not(formats: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Outputs(formats)


def test_what_can_be_appended_to(tmp_path: Path) -> None:
    there = tmp_path / "rt.dcm"
    there.write_bytes(b"a")
    with pytest.raises(InputError, match="expected --format rtstruct beside it"):
        Outputs(("nifti",), there)
    with pytest.raises(InputError, match=re.escape(f"--append: {tmp_path}: no such file")):
        Outputs(("rtstruct",), tmp_path)
    before = Outputs(("rtstruct",), there).fingerprint
    there.write_bytes(b"b")
    after = Outputs(("rtstruct",), there).fingerprint
    assert len({before, after, Outputs(("rtstruct",)).fingerprint, Outputs(("seg",)).fingerprint}) == 4
    gone = Outputs(("rtstruct",), there)
    there.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        _ = gone.fingerprint


def test_nothing_decides_by_default() -> None:
    """Masks of runs before there were formats count as done."""
    assert Outputs().fingerprint == ()


def test_the_order_of_formats_does_not_matter() -> None:
    one, other = Outputs(("nrrd", "nifti")), Outputs(("nifti", "nrrd"))
    assert one == other
    assert one.fingerprint == other.fingerprint
    assert one.names("a") == ["a.nii.gz", "a.seg.nrrd"]


def test_a_new_format_is_a_module_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a contributor adds: a module with two functions, and its line in the registry."""
    added: Any = types.ModuleType("parotid_seg.runtime.formats.count_output")
    added.write = lambda result, path: path.write_text(str(int(result.mask.sum()))) and ()
    added.is_ours = lambda path: path.read_text().isdigit()
    monkeypatch.setitem(sys.modules, added.__name__, added)
    monkeypatch.setitem(FORMATS, "count", Format("count", ".count.txt", "count_output", "voxels in numbers"))
    assert "nrrd (for 3D Slicer), count (voxels in numbers); of DICOM series also" in formats_help()
    outputs, mask = Outputs(("count",)), np.ones((2, 3, 4), np.uint8)
    outputs.check(tmp_path / "a.nii.gz")
    outputs.write(mask, cast(NiftiScan, None), tmp_path / "a.nii.gz", ("background", "one"), "model", tmp_path / "a")
    assert outputs.names("a") == ["a.count.txt"]
    assert (tmp_path / "a.count.txt").read_text() == "24"
    assert is_ours(tmp_path / "a.count.txt")


@pytest.mark.parametrize("name", FORMATS)
def test_the_module_of_a_format_has_both_functions(name: str) -> None:
    module = FORMATS[name].load()
    assert callable(module.write)
    assert callable(module.is_ours)


def test_whose_files_are_not_ours(tmp_path: Path) -> None:
    """What is ours is tried by runs that write it."""
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    (image,) = write_series(tmp_path / "ct", ct_voxels((1, 16, 16)))
    pydicom.dcmread(image).save_as(tmp_path / "a.rtstruct.dcm")
    (tmp_path / "a.seg.nrrd").write_bytes(b"NRRD0004\ntype: uint8\n\n")
    (tmp_path / "a.seg.dcm").write_bytes(b"text")
    names = [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert len(names) == len(FORMATS) - 1
    assert not [name for name in names if is_ours(tmp_path / name)]


@pytest.mark.parametrize("earlier", [False, True])
def test_no_format_is_written_if_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    """Otherwise the mask in one format would be that of another model than in the other."""

    def fail(_: object, path: Path) -> None:
        path.write_text("half")
        raise ScanError("found other voxels", path=path)

    for name, write in (("first", lambda _, path: path.write_text("new") and ()), ("second", fail)):
        module: Any = types.ModuleType(f"parotid_seg.runtime.formats.{name}_output")
        module.write = write
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(FORMATS, name, Format(name, f".{name}", f"{name}_output", "a test"))
    before = {tmp_path / "a.first": "old"} if earlier else {}
    for path, text in before.items():
        path.write_text(text)
    with pytest.raises(ScanError) as caught:
        Outputs(("first", "second")).write(
            np.ones((2, 2, 2), np.uint8), cast(NiftiScan, None), tmp_path / "a.nii", ("b", "c"), "m", tmp_path / "a"
        )
    assert str(caught.value) == f"{tmp_path / 'a.second'}: found other voxels"
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before
