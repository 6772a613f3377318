"""NIfTI in and out: geometry is understood, kept to the bit in masks, and nonsense is refused in one line."""

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.errors import OutputError, ScanError
from parotid_seg.files import atomic_write
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan import intensity
from parotid_seg.scan.geometry import TRANSFORMS
from parotid_seg.scan.nifti import case_name, read_mask, read_nifti, write_mask
from parotid_seg.scan.other_formats import read_image

SHAPE = (20, 22, 24)


def ct(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, size=shape).astype(np.int16)


def save(
    path: Path,
    data: NDArray[Any],
    affine: NDArray[Any] | None = None,
    *,
    sform: int = 2,
    qform: int = 1,
    change: Callable[..., Any] = lambda header: None,
) -> Path:
    affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(data, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    change(image.header)
    nibabel.save(image, path)
    return path


def spoil(path: Path, change: Callable[..., None]) -> Path:
    """Change a written .nii file's header in place: nibabel would repair it while saving."""
    with path.open("rb+") as file:
        header = nibabel.Nifti1Header.from_fileobj(file, check=False)
        change(header)
        file.seek(0)
        file.write(header.binaryblock)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(1, 1), (4, 0), (0, 2), (2, 3), (0, 0)])
def test_mask_repeats_the_geometry_exactly(tmp_path: Path, ending: str, codes: tuple[int, int]) -> None:
    turn = np.deg2rad(12)
    affine = np.array(
        [
            [-1.7 * np.cos(turn), 0.9 * np.sin(turn), 0, 41.5],
            [1.7 * np.sin(turn), 0.9 * np.cos(turn), 0, -3],
            [0, 0, 2.7, -88.25],
            [0, 0, 0, 1],
        ]
    )
    path = save(tmp_path / f"a{ending}", ct(), affine, sform=codes[0], qform=codes[1])
    scan = read_nifti(path)
    write_mask(np.ones(scan.volume.shape, np.uint8), scan, tmp_path / f"mask{ending}")
    source, mask = nibabel.load(path), nibabel.load(tmp_path / f"mask{ending}")
    assert mask.shape == source.shape
    assert mask.get_data_dtype() == np.uint8
    if codes == (0, 0):  # what was assumed is said
        np.testing.assert_allclose(mask.affine, affine, atol=1e-4)
        assert (mask.header["sform_code"], mask.header["qform_code"]) == (2, 2)
        return
    np.testing.assert_array_equal(mask.affine, source.affine)
    coded = [TRANSFORMS[code] for code in TRANSFORMS if source.header[code] > 0]
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units", *itertools.chain(*coded)):
        np.testing.assert_array_equal(mask.header[field], source.header[field], err_msg=field)
    assert (np.asarray(mask.dataobj) == 1).all()


def test_mask_lands_on_its_voxels(tmp_path: Path) -> None:
    """A label at one stored voxel comes back at that voxel, whatever the storage order."""
    affine = np.array([[0, 0, -2.0, 0], [3.0, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1]])
    data = ct()
    data[3, 4, 5] = 3000
    scan = read_nifti(save(tmp_path / "a.nii.gz", data, affine))
    write_mask((scan.volume.voxels[0] == 3000).astype(np.uint8), scan, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.argwhere(np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)), [[3, 4, 5]])
    assert scan.volume.spacing_mm == pytest.approx((1.5, 3.0, 2.0))


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        (np.uint16, 1.0, -1024.0, np.int16),
        (np.int16, 0.5, 0.0, np.float32),
        (np.float32, None, None, np.int16),
        (np.int32, None, None, np.int16),
        (np.float64, 2.0, 0.25, np.float32),
    ],
)
def test_slope_and_intercept(
    tmp_path: Path, stored: type[np.number], slope: float | None, intercept: float | None, dtype: type[np.number]
) -> None:
    raw = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(stored)
    path = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(raw, np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    scan = read_nifti(path)
    expected = raw * (1.0 if slope is None else slope) + (intercept or 0.0)
    np.testing.assert_allclose(scan.volume.orientation.to_storage(scan.volume.voxels[0]), expected)
    assert scan.volume.voxels.dtype == dtype


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1.0), ("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_units(tmp_path: Path, unit: str, scale: float) -> None:
    affine = np.diag([2.0 * scale, 2.0 * scale, 3.0 * scale, 1.0])
    path = save(tmp_path / "a.nii.gz", ct(), affine, change=lambda header: header.set_xyzt_units(unit))
    assert read_nifti(path).volume.spacing_mm == pytest.approx((3.0, 2.0, 2.0), rel=1e-5)


def test_the_unit_of_time_and_unused_bits_do_not_count(tmp_path: Path) -> None:
    def add_bits(header: nibabel.Nifti1Header) -> None:
        header["xyzt_units"] = 2 | 0x40

    scan = read_nifti(spoil(save(tmp_path / "a.nii", ct()), add_bits))
    assert scan.volume.spacing_mm == read_nifti(save(tmp_path / "b.nii", ct())).volume.spacing_mm
    write_mask(np.zeros(scan.volume.shape, np.uint8), scan, tmp_path / "mask.nii")
    assert nibabel.load(tmp_path / "mask.nii").header["xyzt_units"] == 2


def test_sform_wins_over_a_disagreeing_qform_and_says_so(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    flipped = np.diag([-2.0, 2.0, 3.0, 1.0])
    scan = read_nifti(save(tmp_path / "a.nii.gz", ct(), affine, change=lambda header: header.set_qform(flipped, 1)))
    assert scan.volume.orientation == read_nifti(save(tmp_path / "b.nii.gz", ct(), affine)).volume.orientation
    (flag,) = scan.volume.flags
    assert flag == Flag(FlagCode.AXES_DISAGREE, value=flag.value, detail="RAS, LAS")
    assert flag.value == pytest.approx(76.0)


def test_singular_sform_yields_to_the_qform(tmp_path: Path) -> None:
    def flatten(header: nibabel.Nifti1Header) -> None:
        header["srow_x"] = 0

    scan = read_nifti(spoil(save(tmp_path / "a.nii", ct()), flatten))
    assert scan.volume.flags == (Flag(FlagCode.SFORM_UNUSABLE),)


def test_unknown_orientation_tilt_and_shear_are_noted(tmp_path: Path) -> None:
    unknown = read_nifti(save(tmp_path / "a.nii.gz", ct(), sform=0, qform=0))
    assert unknown.volume.flags == (Flag(FlagCode.ORIENTATION_UNKNOWN),)
    sheared = np.diag([2.0, 2.0, 3.0, 1.0])
    sheared[1, 2] = 0.8
    tilted = read_nifti(save(tmp_path / "b.nii.gz", ct(), sheared, qform=0))
    assert FlagCode.SHEARED in {flag.code for flag in tilted.volume.flags}


@pytest.mark.parametrize("size", [(9, 31), (64, 17)])
def test_slices_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    assert read_nifti(save(tmp_path / "a.nii.gz", ct((*size, 12)))).volume.voxels.shape == (1, 12, size[1], size[0])


def test_a_trailing_axis_of_one_is_kept_in_the_mask(tmp_path: Path) -> None:
    scan = read_nifti(save(tmp_path / "a.nii.gz", ct((*SHAPE, 1))))
    write_mask(np.zeros(scan.volume.shape, np.uint8), scan, tmp_path / "mask.nii.gz")
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == (*SHAPE, 1)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_more_voxels_than_the_header_says_are_flagged(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, ct())
    content = path.read_bytes()
    plain = gzip.decompress(content) if name.endswith(".gz") else content
    for further, expected in ((b"\0", []), (bytes(2), [FlagCode.MORE_VOXELS]), (bytes(5000), [FlagCode.MORE_VOXELS])):
        path.write_bytes(gzip.compress(plain + further) if name.endswith(".gz") else plain + further)
        scan = read_nifti(path)
        assert [flag.code for flag in scan.volume.flags] == expected
        np.testing.assert_array_equal(scan.volume.voxels, read_nifti(save(tmp_path / "b.nii", ct())).volume.voxels)


def test_a_pair_with_more_voxels_is_flagged(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(ct(), np.diag([-2.0, -2.0, 3.0, 1.0])), tmp_path / "a.hdr")
    with (tmp_path / "a.img").open("ab") as file:
        file.write(bytes(100))
    assert FlagCode.MORE_VOXELS in {flag.code for flag in read_image(tmp_path / "a.hdr").volume.flags}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("scaling", [(2.0, -10.0), (0.5, 0.25), (1.0, 0.0), (1.0, 40000.0)])
@pytest.mark.parametrize("slab", [1, 500, 1 << 22])
def test_scaled_voxels_are_those_of_nibabel_whatever_the_slab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type[np.number], scaling: tuple[float, float], slab: int
) -> None:
    monkeypatch.setattr(intensity, "SLAB_VOXELS", slab)
    image = nibabel.Nifti1Image((ct() % 200).astype(dtype), np.diag([-2.0, -2.0, 3.0, 1.0]))
    image.header.set_slope_inter(*scaling)
    path = tmp_path / "a.nii"
    path.write_bytes(image.to_bytes())
    scan = read_nifti(path)
    expected = np.asanyarray(nibabel.Nifti1Image.from_bytes(path.read_bytes()).dataobj)
    whole = bool((expected == np.rint(expected)).all() and expected.min() >= -32768 and expected.max() <= 32767)
    found = scan.volume.orientation.to_storage(scan.volume.voxels[0])
    assert found.dtype == (np.int16 if whole else np.float32)
    np.testing.assert_array_equal(found, expected.astype(found.dtype))


def test_mask_must_lie_on_its_scan(tmp_path: Path) -> None:
    scan = read_nifti(save(tmp_path / "a.nii.gz", ct()))
    labels = np.zeros(SHAPE, np.uint8)
    mask, spacing = read_mask(save(tmp_path / "same.nii.gz", labels), like=scan)
    assert mask.shape == scan.volume.shape
    assert spacing == pytest.approx((3.0, 2.0, 2.0))
    for name, other in {
        "shape": save(tmp_path / "s.nii", labels[1:]),
        "affine": save(tmp_path / "f.nii", labels, np.eye(4)),
    }.items():
        with pytest.raises(ScanError, match="not on the voxels"):
            read_mask(other, like=scan)
        assert name
    with pytest.raises(ScanError, match="not a label map"):
        read_mask(save(tmp_path / "half.nii", np.full(SHAPE, 0.5, np.float32)))


def fail_half_way(path: Path) -> None:
    with atomic_write(path) as partial:
        partial.write_bytes(b"x")
        raise ZeroDivisionError


def test_no_half_written_mask_stays(tmp_path: Path) -> None:
    scan = read_nifti(save(tmp_path / "a.nii.gz", ct()))
    with pytest.raises(OutputError, match="cannot be written"):
        write_mask(np.zeros(scan.volume.shape, np.uint8), scan, tmp_path / "nowhere" / "mask.nii.gz")
    with pytest.raises(ZeroDivisionError):
        fail_half_way(tmp_path / "half.bin")
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or path.name == "half.bin"]


@pytest.mark.parametrize(
    ("file", "case"), [("a.nii.gz", "a"), ("pt_1_0000.nii.gz", "pt_1"), ("x.y.nii", "x.y"), ("UP.NII.GZ", "UP")]
)
def test_case_names(tmp_path: Path, file: str, case: str) -> None:
    assert case_name(tmp_path / file) == case


def test_channels_become_one_volume_whatever_their_storage_order_and_type(tmp_path: Path) -> None:
    first, second = ct(), ct() / np.float32(7)
    paths = [save(tmp_path / "a_0000.nii.gz", first), tmp_path / "a_0001.nii.gz"]
    image = nibabel.load(save(tmp_path / "other.nii.gz", second))
    nibabel.save(image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), paths[1])
    scan = read_nifti(*paths)
    assert scan.path == paths[0]
    assert scan.volume.voxels.shape == (2, 24, 22, 20)
    assert scan.volume.voxels.dtype == np.float32
    for voxels, expected in zip(scan.volume.voxels, (first, second), strict=True):
        np.testing.assert_array_equal(scan.volume.orientation.to_storage(voxels), expected)
    assert read_nifti(paths[0], paths[0]).volume.voxels.dtype == np.int16


@pytest.mark.parametrize(
    ("data", "affine", "words"),
    [
        (ct()[:-1], None, "found 24 x 22 x 19 voxels (slices, rows, columns), expected 24 x 22 x 20"),
        (ct(), np.diag([2.0, 2.0, 3.5, 1.0]), "they lie up to 11.50 mm apart (voxels of 3 x 2 x 2 mm)"),
        (ct(), np.diag([-2.0, 2.0, 3.0, 1.0]), "they lie up to 38.00 mm apart"),
        (np.zeros(SHAPE, np.int16), None, "every voxel has the value 0"),
    ],
)
def test_channels_that_do_not_fit_are_named(
    tmp_path: Path, data: NDArray[Any], affine: NDArray[Any] | None, words: str
) -> None:
    first, second = save(tmp_path / "a_0000.nii.gz", ct()), save(tmp_path / "a_0001.nii.gz", data, affine)
    with pytest.raises(ScanError) as caught:
        read_nifti(first, second)
    assert str(caught.value).startswith(str(second))
    assert words in str(caught.value)


def test_the_volume_of_a_voxel_of_sheared_axes(tmp_path: Path) -> None:
    """A gantry tilted by 15 degrees: the slices are 3 mm apart along the tilted axis, so cos(15) of that in height."""
    tilt = np.radians(15)
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    affine[:3, 2] = 3 * np.array([0, np.sin(tilt), np.cos(tilt)])
    rng = np.random.default_rng(0)
    for name, matrix, expected in (
        ("tilted", affine, 3e-3 * np.cos(tilt)),
        ("upright", np.diag([-1.0, -1, 3, 1]), 3e-3),
    ):
        path = tmp_path / f"{name}.nii"
        nibabel.save(nibabel.Nifti1Image(rng.integers(-1000, 1000, (20, 20, 20)).astype(np.int16), matrix), path)
        assert read_nifti(path).volume.voxel_ml == pytest.approx(expected, rel=1e-5)
