"""Images in other files than .nii(.gz): read as the NIfTI file of the same image, or named; other files are not."""

import bz2
import gzip
import io
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.runtime.pipeline.sources import hash_source, read_scan, voxels_of
from parotid_seg.scan.nifti import NiftiScan, read_nifti, write_mask
from parotid_seg.scan.other_formats import files_of_image, image_name, is_readable, is_segmentation, read_image, unread

OBLIQUE = np.array([[0.0, -2.0, 0.6, 40], [1.5, 0.0, 0.0, -30], [0.0, 0.5, 2.9, -60], [0, 0, 0, 1]])
SHAPE = (12, 10, 11)
NIFTI_START = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)).to_bytes()


def voxels(dtype: str = "int16") -> NDArray[Any]:
    return np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(dtype)


def twin(path: Path, stored: NDArray[Any], affine: NDArray[Any], slope: float = 1.0, inter: float = 0.0) -> NiftiScan:
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_slope_inter(slope, inter)
    nibabel.save(image, path)
    return read_nifti(path)


def is_one(found: NiftiScan, expected: NiftiScan) -> None:
    """Two scans have the same voxels at the same places."""
    np.testing.assert_array_equal(found.volume.voxels, expected.volume.voxels)
    assert found.volume.spacing_mm == pytest.approx(expected.volume.spacing_mm)
    np.testing.assert_allclose(found.geometry.affine, expected.geometry.affine, atol=1e-4)


@pytest.mark.parametrize("image_class", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_pair_is_the_scan_that_its_single_file_is(
    tmp_path: Path, image_class: type[nibabel.Nifti1Pair], order: str
) -> None:
    header = image_class.header_class(endianness=order)
    header.set_data_dtype(np.dtype(order + "i2"))
    image = image_class(voxels(), OBLIQUE, header)
    image.set_sform(OBLIQUE, 1)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.hdr")
    assert is_readable(tmp_path / "a.hdr")
    assert not is_readable(tmp_path / "a.img")
    assert unread(tmp_path / "a.img") == ""
    scan = read_image(tmp_path / "a.hdr")
    is_one(scan, twin(tmp_path / "twin.nii.gz", voxels(), OBLIQUE))
    assert voxels_of((tmp_path / "a.hdr",)) == np.prod(SHAPE)
    write_mask(np.ones(scan.volume.shape, np.uint8), scan, tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert mask.shape == SHAPE
    np.testing.assert_allclose(mask.affine, OBLIQUE, atol=1e-4)


def test_a_pairs_slope_counts_and_both_files_are_hashed(tmp_path: Path) -> None:
    image = nibabel.Nifti1Pair(voxels().astype(np.float64), OBLIQUE)
    image.set_data_dtype(np.int16)
    image.header.set_slope_inter(1.0, -24.0)
    nibabel.save(image, tmp_path / "a.img")
    found = read_image(tmp_path / "a.hdr").volume
    expected = nibabel.load(tmp_path / "a.hdr").get_fdata()
    assert expected.min() != voxels().min(), "the slope and intercept count"
    np.testing.assert_array_equal(found.orientation.to_storage(found.voxels[0]), expected)
    before = hash_source(tmp_path / "a.hdr")
    content = bytearray((tmp_path / "a.img").read_bytes())
    content[100] ^= 1
    (tmp_path / "a.img").write_bytes(content)
    assert files_of_image(tmp_path / "a.hdr") == [tmp_path / "a.hdr", tmp_path / "a.img"]
    assert hash_source(tmp_path / "a.hdr") != before


def test_damaged_pairs_are_named(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(voxels(), OBLIQUE), tmp_path / "a.hdr")
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:-10])
    with pytest.raises(ScanError, match=r"a\.hdr: .*cannot be read"):
        read_image(tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    assert not is_readable(tmp_path / "a.hdr")
    assert "without its .img file" in unread(tmp_path / "a.hdr")


@pytest.mark.parametrize("spacing", [0.0, -2.0, np.nan, np.inf])
def test_an_impossible_spacing_is_refused_as_in_a_single_file(tmp_path: Path, spacing: float) -> None:
    """A negative one may mean a mirrored axis; nibabel drops its sign."""
    reasons = []
    for name, kind in (("a.nii", nibabel.Nifti1Image), ("a.hdr", nibabel.Nifti1Pair)):
        image = kind(voxels(), OBLIQUE)
        image.set_sform(None, 0)
        nibabel.save(image, tmp_path / name)
        content = bytearray((tmp_path / name).read_bytes())
        struct.pack_into("<f", content, 80, spacing)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScanError, match="found voxel spacing") as caught:
            read_scan((tmp_path / name,))
        reasons.append(caught.value.reason)
    assert reasons[0] == reasons[1]


SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "RAS": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "LPS": (-1, -1, 1),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("dtype", ["int16", "float32", "int32"])
def test_a_nrrd_file_is_the_scan_that_its_nifti_file_is(tmp_path: Path, space: str, encoding: str, dtype: str) -> None:
    there = np.diag([*SPACES[space], 1]) @ OBLIQUE
    header = {"space": space, "space directions": there[:3, :3].T, "space origin": there[:3, 3], "encoding": encoding}
    nrrd.write(str(tmp_path / "a.nrrd"), voxels(dtype), header)
    assert is_readable(tmp_path / "a.nrrd")
    is_one(read_image(tmp_path / "a.nrrd"), twin(tmp_path / "twin.nii.gz", voxels(dtype), OBLIQUE))
    assert voxels_of((tmp_path / "a.nrrd",)) == np.prod(SHAPE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": None}, "does not say where its voxels lie"),
        ({"space": "scanner-xyz"}, "does not say where its voxels lie"),
        ({"space origin": None}, "does not say where its voxels lie"),
        ({"space units": ["cm", "cm", "cm"]}, "found space units other than mm"),
    ],
)
def test_a_nrrd_file_that_does_not_say_where_it_lies_is_refused(
    tmp_path: Path, change: dict[str, str | list[str] | None], said: str
) -> None:
    header = {"space": "LPS", "space directions": np.diag([1.0, 1.0, 3.0]), "space origin": np.zeros(3)} | change
    nrrd.write(str(tmp_path / "a.nrrd"), voxels(), {key: value for key, value in header.items() if value is not None})
    with pytest.raises(ScanError, match=said):
        read_image(tmp_path / "a.nrrd")


def test_damaged_nrrd_files_are_refused(tmp_path: Path) -> None:
    header = {"space": "LPS", "space directions": np.diag([1.0, 1.0, 3.0]), "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "a.nrrd"), voxels(), header)
    whole = (tmp_path / "a.nrrd").read_bytes()
    for content in (whole[: len(whole) // 2], b"NRRD0004\n", b"", b"something else"):
        (tmp_path / "a.nrrd").write_bytes(content)
        with pytest.raises(ScanError, match=r"a\.nrrd: "):
            read_image(tmp_path / "a.nrrd")
    nrrd.write(str(tmp_path / "b.nhdr"), voxels(), header, detached_header=True)
    (tmp_path / "b.nrrd").write_bytes((tmp_path / "b.nhdr").read_bytes())
    with pytest.raises(ScanError, match="NRRD in two files"):
        read_image(tmp_path / "b.nrrd")


def test_segmentations_of_slicer_are_no_scans(tmp_path: Path) -> None:
    assert is_segmentation(tmp_path / "a.seg.nrrd")
    assert not is_readable(tmp_path / "a.seg.nrrd")


def content_of(name: str) -> bytes:
    """What a file of a name holds."""
    inside = io.BytesIO()
    if name.startswith(("scans", "dicom", "code", "nested")):
        members = {"scans": "deep/a.nii.gz", "dicom": "IM0001", "code": "a.py", "nested": "b.tgz"}
        member = members[name.split(".", maxsplit=1)[0]]
        held = bytes(128) + b"DICM" + bytes(99) if name.startswith("dicom") else b"x" * 500
        if name.endswith((".zip", ".mrb")):
            with zipfile.ZipFile(inside, "w") as archive:
                archive.writestr("folder/", "")
                archive.writestr(member, held)
        else:
            with tarfile.open(fileobj=inside, mode="w:gz" if name.endswith("gz") else "w") as archive:
                info = tarfile.TarInfo(member)
                info.size = len(held)
                archive.addfile(info, io.BytesIO(held))
        return inside.getvalue()
    if name.endswith(".vtk"):
        dataset = "STRUCTURED_POINTS" if name == "image.vtk" else "POLYDATA"
        return f"# vtk DataFile Version 3.0\na head\nBINARY\nDATASET {dataset}\n".encode()
    if name.endswith(".bz2"):
        return bz2.compress(b"x")
    return (348).to_bytes(4, "little") + bytes(400) if name == "analyze.hdr" else b"x"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.mha", "not read: MetaImage; convert it to NIfTI"),
        ("A.MHD", "not read: MetaImage"),
        ("a.nhdr", "not read: NRRD in two files"),
        ("a.mgz", "not read: FreeSurfer MGH"),
        ("a.mnc", "not read: MINC"),
        ("a.vti", "not read: VTK image; convert it to NIfTI"),
        ("image.vtk", "not read: VTK image"),
        ("surface.vtk", "^$"),
        ("a.mif.gz", "not read: compressed"),
        ("a.nia", "not read: NIfTI as text"),
        ("scans.mrb", "not read: an archive that holds scans; unpack it"),
        ("code.mrb", "^$"),
        ("analyze.hdr", "not read: Analyze 7.5, which does not say which side is left"),
        ("alone.img", "not read: an .img file without its .hdr"),
        ("a.nii.bz2", r"not read: compressed otherwise than \.nii\.gz \(\.bz2\); unpack it"),
        ("a.nii.xz", "not read: compressed"),
        ("a.nii.zst", "not read: compressed"),
        ("a.nrrd.gz", "not read: compressed"),
        ("IM1.dcm.gz", "not read: compressed"),
        ("scans.zip", "not read: an archive that holds scans; unpack it"),
        ("scans.tar", "not read: an archive that holds scans"),
        ("scans.tar.gz", "not read: an archive that holds scans"),
        ("dicom.zip", "not read: an archive that holds scans"),
        ("dicom.tgz", "not read: an archive that holds scans"),
        ("nested.zip", "not read: an archive of archives"),
        ("a.nii.zip", "not read: an archive that is damaged"),
        ("broken.tar.gz", "not read: an archive that is damaged"),
        ("a.7z", "not read: an archive that cannot be searched"),
        ("a.json", "^$"),
        ("a.csv", "^$"),
        ("a.txt", "^$"),
        ("a.png", "^$"),
        ("a.raw", "^$"),
        ("a.json.gz", "^$"),
        ("envi.hdr", "^$"),
        ("code.zip", "^$"),
        ("code.tar.gz", "^$"),
    ],
)
def test_what_is_not_read_is_named_and_what_is_no_image_is_not(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content_of(name))
    assert not is_readable(path)
    assert re.search(said, unread(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ct.nii (1).gz", gzip.compress(NIFTI_START, mtime=0), r"by its content a file of \.nii\.gz, .*; rename it"),
        ("ct", NIFTI_START, r"by its content a file of \.nii, which its name does not end in; rename it"),
        ("ct.nii.gz.1", NIFTI_START, "by its content"),
        ("ct.nrrd.old", b"NRRD0004\n", r"by its content a file of \.nrrd"),
        (
            "IM0001.gz",
            gzip.compress(bytes(128) + b"DICM" + bytes(99), mtime=0),
            "not read: a compressed DICOM file; unpack it",
        ),
        ("table.gz", gzip.compress(b"1,2\n" * 200, mtime=0), "^$"),
        ("damaged.gz", gzip.compress(NIFTI_START, mtime=0)[:20], "^$"),
        ("text.txt", NIFTI_START, "^$"),
    ],
)
def test_scans_of_another_name_are_named_by_their_content(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert not is_readable(tmp_path / name)
    assert re.search(said, unread(tmp_path / name))


def test_names_without_endings(tmp_path: Path) -> None:
    names = {"a.nii.gz": "a", "b.HDR": "b", "c.nrrd": "c", "d.e.img": "d.e", "f": "f"}
    assert {name: image_name(tmp_path / name) for name in names} == names
