"""Headers whose sform, qform, pixdim and unit contradict each other: what is chosen, flagged, refused, and written."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.report.flag_text import sentences
from parotid_seg.scan.geometry import SLICE_RANGE_MM
from parotid_seg.scan.nifti import NiftiScan, check_same_voxels, is_own_mask, read_mask, read_nifti, write_mask
from tests.scan import itk

SHAPE = (40, 44, 24)
SPACING = (5.0, 4.5, 4.0)


def turned(x: float, y: float, z: float) -> np.ndarray:
    """A rotation by degrees about the three axes."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians((x, y, z))):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        once = np.eye(3)
        once[[a, b, a, b], [a, b, b, a]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
        result = once @ result
    return result


def laid(directions: NDArray[Any], spacing: ArrayLike = SPACING, origin: ArrayLike = (90.0, 80.0, -50.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(spacing)
    affine[:3, 3] = origin
    return affine


DIRECTIONS = turned(12, -9, 5) @ np.diag([-1.0, -1.0, 1.0])
TRUE = laid(DIRECTIONS)
SHEARED = TRUE.copy()
SHEARED[:3, 2] += 0.3 * DIRECTIONS[:, 1] * SPACING[2]
ROUNDED = laid(np.round(DIRECTIONS, 3))


@dataclass
class Header:
    """A header as a tool may leave it.

    Attributes:
        sform, qform: affines, with their codes.
        pixdim: the first four numbers, or the three spacings; None is what the qform, else the sform has.
        unit: of xyzt_units.
        others: fields by name.
    """

    sform: np.ndarray | None = None
    sform_code: int = 2
    qform: np.ndarray | None = None
    qform_code: int = 1
    pixdim: tuple[float, ...] | None = SPACING
    unit: int = 2
    others: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write it, with voxels that are all different, byte by byte: nibabel would repair it."""
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.int16)
        header.set_data_shape(SHAPE)
        if self.sform is not None:
            header.set_sform(self.sform)
            header["sform_code"] = self.sform_code
        if self.qform is not None:
            header.set_qform(self.qform)
            header["qform_code"] = self.qform_code
        if self.pixdim is not None:
            header["pixdim"][1:4] = self.pixdim
        header["xyzt_units"], header["vox_offset"] = self.unit, 352
        for name, value in self.others.items():
            header[name] = value
        voxels = np.arange(np.prod(SHAPE), dtype="<i4").reshape(SHAPE) - 20000
        path.write_bytes(header.binaryblock + bytes(4) + voxels.astype("<i2").tobytes("F"))
        return path


def scaled(affine: NDArray[Any], *factors: float) -> NDArray[Any]:
    result = affine.copy()
    result[:3, :3] *= factors
    return result


def moved(affine: NDArray[Any], *offsets: float) -> NDArray[Any]:
    result = affine.copy()
    result[:3, 3] += offsets
    return result


MIRRORED = laid(DIRECTIONS @ np.diag([-1.0, 1.0, 1.0]))
SWAPPED = laid(DIRECTIONS[:, [1, 0, 2]])
METRES = laid(DIRECTIONS, np.array(SPACING) / 1000, TRUE[:3, 3] / 1000)
UNIT = laid(np.diag([-1.0, -1.0, 1.0]), (1, 1, 1))

CHOSEN = {
    "sform alone": (Header(TRUE), TRUE, ()),
    "sform of a template with the patient's spacing": (Header(TRUE, 4), TRUE, ()),
    "qform alone": (Header(qform=TRUE), TRUE, ()),
    "both": (Header(TRUE, qform=TRUE), TRUE, ()),
    "both, of metres": (
        Header(METRES, qform=METRES, pixdim=None, unit=1),
        TRUE,
        (),
    ),
    "pixdim rounded": (Header(TRUE, pixdim=(5.01, 4.49, 4.0)), TRUE, ()),
    "pixdim never set": (Header(TRUE, pixdim=(1, 1, 1)), TRUE, (FlagCode.PIXDIM_STALE,)),
    "pixdim never set, and a qform": (Header(TRUE, qform=TRUE, pixdim=(1, 1, 1)), TRUE, (FlagCode.PIXDIM_STALE,)),
    "pixdim of another image": (Header(TRUE, pixdim=(0.5, 0.5, 4)), TRUE, (FlagCode.PIXDIM_STALE,)),
    "pixdim that may be true": (Header(TRUE, pixdim=(6, 5.4, 4)), TRUE, (FlagCode.SPACING_DISAGREE,)),
    "slice distance that may be true": (Header(TRUE, pixdim=(5, 4.5, 2)), TRUE, (FlagCode.SPACING_DISAGREE,)),
    "pixdim of swapped axes": (Header(TRUE, pixdim=(4, 4.5, 5)), TRUE, (FlagCode.SPACING_DISAGREE,)),
    "sform small, qform right": (Header(scaled(TRUE, 0.2, 0.2, 0.2), qform=TRUE), TRUE, (FlagCode.SFORM_STALE,)),
    "sform large, qform right": (Header(scaled(TRUE, 9, 9, 4), qform=TRUE), TRUE, (FlagCode.SFORM_STALE,)),
    "sform never set, qform right": (Header(UNIT, qform=TRUE), TRUE, (FlagCode.SFORM_STALE,)),
    "sform of a template, qform right": (Header(scaled(TRUE, 1.1, 1.2, 0.9), 4, TRUE), TRUE, (FlagCode.SFORM_STALE,)),
    "sform not finite, qform right": (Header(TRUE * np.nan, qform=TRUE), TRUE, (FlagCode.SFORM_UNUSABLE,)),
    "codes of 0": (Header(TRUE, 0), TRUE, (FlagCode.SFORM_WITHOUT_CODE,)),
    "codes of 0, both there": (Header(TRUE, 0, TRUE, 0), TRUE, (FlagCode.SFORM_WITHOUT_CODE,)),
    "a code that is none": (Header(TRUE, 9), TRUE, (FlagCode.SFORM_WITHOUT_CODE,)),
    "qform damaged": (
        Header(TRUE, qform=TRUE, others={"quatern_b": 2, "quatern_c": 2}),
        TRUE,
        (FlagCode.QFORM_UNUSABLE,),
    ),
    "qform turned": (Header(TRUE, qform=laid(turned(0, 0, 10) @ DIRECTIONS)), TRUE, (FlagCode.SFORM_QFORM_DISAGREE,)),
    "qform elsewhere": (Header(TRUE, qform=moved(TRUE, 3, 0, -4)), TRUE, (FlagCode.SFORM_QFORM_DISAGREE,)),
    "qform hardly elsewhere": (Header(TRUE, qform=moved(TRUE, 0, 0.05, 0)), TRUE, ()),
    "qform mirrored": (Header(TRUE, qform=MIRRORED), TRUE, (FlagCode.AXES_DISAGREE,)),
    "qform of swapped axes": (Header(TRUE, qform=SWAPPED, pixdim=(5, 4.5, 4)), TRUE, (FlagCode.AXES_DISAGREE,)),
    "sign of pixdim, with an sform": (Header(TRUE, pixdim=(-5, 4.5, 4)), TRUE, ()),
    "directions rounded": (Header(ROUNDED), TRUE, ()),
    "directions rounded more": (Header(laid(np.round(DIRECTIONS, 2))), TRUE, (FlagCode.SQUARED,)),
}


def flags_of(scan: NiftiScan) -> tuple[Flag, ...]:
    return tuple(flag for flag in scan.volume.flags if flag.code is not FlagCode.OBLIQUE)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_choice_is_flagged_and_the_mask_says_it_to_every_reader(tmp_path: Path, name: str) -> None:
    header, expected, codes = CHOSEN[name]
    path, mask = header.write(tmp_path / "a.nii"), tmp_path / "mask.nii.gz"
    scan = read_nifti(path)
    assert tuple(flag.code for flag in flags_of(scan)) == codes
    assert sentences(scan.volume.flags)
    rounded = "rounded" in name
    assert itk.apart_mm(scan.geometry.affine, expected, SHAPE) < (2.0 if rounded else 1e-3)
    assert scan.volume.spacing_mm == pytest.approx((4.0, 4.5, 5.0), rel=5e-3 if rounded else 1e-6)
    labels = (scan.volume.voxels[0] % 3).astype(np.uint8)
    write_mask(labels, scan, mask)
    voxels, affine = itk.read(mask)
    assert itk.apart_mm(affine, scan.geometry.affine, SHAPE) < 2e-3
    np.testing.assert_array_equal(voxels, scan.volume.orientation.to_storage(labels))
    np.testing.assert_array_equal(read_mask(mask, like=scan)[0], labels)
    check_same_voxels(mask, path)
    assert is_own_mask(mask)


REFUSED = {
    "sform never set": (Header(UNIT), "5 x 4.5 x 4 mm by pixdim; an sform that was never set has 1"),
    "sform small": (
        Header(scaled(TRUE, 0.2, 0.2, 0.2)),
        "found a spacing of 1 x 0.9 x 0.8 mm by the sform, 5 x 4.5 x 4 mm by pixdim; by the sform the slices are 40 x "
        "39.6 mm, where a head's are 150 to 1000 mm",
    ),
    "sform large": (Header(scaled(TRUE, 9, 9, 4)), "the slices are 1800 x 1782 mm"),
    "both impossible": (
        Header(scaled(TRUE, 0.2, 0.2, 0.2), qform=laid(DIRECTIONS, (2, 2, 2)), pixdim=None),
        "found a spacing of 1 x 0.9 x 0.8 mm by the sform, 2 x 2 x 2 mm by pixdim",
    ),
    "sform of a template": (Header(scaled(TRUE, 1.1, 1.2, 0.9), 4), "an sform of code 4 leads to a template's space"),
    "sform singular": (Header(scaled(TRUE, 0, 1, 1)), "singular or not finite"),
    "mm called metres": (Header(TRUE, qform=TRUE, unit=1), "the header's unit is meter; are its numbers in mm?"),
    "mm called microns": (Header(TRUE, qform=TRUE, unit=3), "the header's unit is micron; are its numbers in mm?"),
    "a unit that is none": (Header(TRUE, unit=5), "found the unit 5 in the header (xyzt_units)"),
    "sign of pixdim, qform alone": (Header(qform=TRUE, pixdim=(-5, 4.5, 4)), "a negative one may mean a mirrored axis"),
    "sign of pixdim, sform unusable": (Header(0 * TRUE, qform=TRUE, pixdim=(-5, 4.5, 4)), "singular or not finite"),
    "sign of pixdim, sform stale": (Header(UNIT, qform=TRUE, pixdim=(5, -4.5, 4)), "and no qform to go by"),
    "sign of pixdim, codes of 0": (Header(pixdim=(5, -4.5, 4)), "a negative one may mean a mirrored axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_what_is_wrong(tmp_path: Path, name: str) -> None:
    header, words = REFUSED[name]
    path = header.write(tmp_path / "a.nii")
    with pytest.raises(ScanError) as caught:
        read_nifti(path)
    assert caught.value.path == path
    assert words in caught.value.reason
    assert "\n" not in caught.value.reason
    with pytest.raises(ScanError, match=r"found|singular"):
        read_mask(path)


def test_the_size_of_a_head_decides_nothing_where_nothing_disagrees(tmp_path: Path) -> None:
    affine = laid(DIRECTIONS, (2, 2, 2))
    assert max(SHAPE) * 2 < SLICE_RANGE_MM[0]
    scan = read_nifti(Header(affine, qform=affine, pixdim=None).write(tmp_path / "a.nii"))
    assert flags_of(scan) == ()


def test_an_sform_without_a_code_that_repeats_pixdim_says_nothing(tmp_path: Path) -> None:
    scan = read_nifti(Header(laid(np.eye(3)), 0).write(tmp_path / "a.nii"))
    assert [flag.code for flag in flags_of(scan)] == [FlagCode.ORIENTATION_UNKNOWN]
    write_mask(np.zeros(scan.volume.shape, np.uint8), scan, tmp_path / "mask.nii.gz")
    assert itk.apart_mm(itk.read(tmp_path / "mask.nii.gz")[1], scan.geometry.affine, SHAPE) < 1e-3


def test_a_sheared_scan_is_kept_sheared_and_flagged(tmp_path: Path) -> None:
    pixdim = np.linalg.norm(SHEARED[:3, :3], axis=0)
    for name, header in {"a": Header(SHEARED, pixdim=pixdim), "b": Header(SHEARED, qform=TRUE)}.items():
        scan, mask = read_nifti(header.write(tmp_path / f"{name}.nii")), tmp_path / f"{name}.mask.nii.gz"
        assert FlagCode.SHEARED in [flag.code for flag in flags_of(scan)]
        assert "ITK cannot open" in sentences(scan.volume.flags)
        write_mask(np.zeros(scan.volume.shape, np.uint8), scan, mask)
        assert itk.apart_mm(nibabel.load(mask).affine, SHEARED, SHAPE) < 1e-3
        with pytest.raises(RuntimeError, match="orthonormal"):
            itk.read(mask)


def test_all_48_storage_orders_lie_where_itk_has_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.integers(-1000, 1500, SHAPE).astype(np.int16), TRUE)
    expected = None
    for number, (axes, flips) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        path = tmp_path / f"{number}.nii"
        nibabel.save(image.as_reoriented(np.c_[axes, flips]), path)
        scan = read_nifti(path)
        expected = scan.volume.voxels if expected is None else expected
        np.testing.assert_array_equal(scan.volume.voxels, expected)
        write_mask((expected[0] > 0).astype(np.uint8), scan, tmp_path / "mask.nii")
        voxels, affine = itk.read(tmp_path / "mask.nii")
        assert itk.apart_mm(affine, nibabel.load(path).affine, voxels.shape) < 1e-3
        np.testing.assert_array_equal(voxels, np.asarray(nibabel.load(path).dataobj) > 0)


def test_a_mask_has_nothing_else_of_the_header(tmp_path: Path) -> None:
    """Every byte of the header that is not about shape, unit, place or type is what a new header has."""
    texts = dict.fromkeys(("descrip", "aux_file", "db_name", "intent_name", "data_type"), b"Zqmarker")
    numbers = {"cal_max": 7, "cal_min": 7, "slice_code": 1, "slice_duration": 7, "toffset": 7, "glmax": 7, "glmin": 7,
               "extents": 7, "session_error": 7, "dim_info": 57, "intent_code": 2, "intent_p1": 7}  # fmt: skip
    path = Header(TRUE, qform=TRUE, others={**texts, **numbers}).write(tmp_path / "a.nii")
    scan = read_nifti(path)
    write_mask(np.zeros(scan.volume.shape, np.uint8), scan, tmp_path / "mask.nii")
    plain = nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), None, nibabel.Nifti1Header())
    kept = nibabel.load(tmp_path / "mask.nii").header
    assert b"Zqmarker" not in (tmp_path / "mask.nii").read_bytes()
    for name in (*texts, *numbers):
        if name != "descrip":
            assert kept[name] == plain.header[name], name
    assert is_own_mask(tmp_path / "mask.nii")
