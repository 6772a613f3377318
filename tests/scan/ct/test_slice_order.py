"""Slices that do not fit their neighbours, in the example scan and after changes of it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.flags import FlagCode
from parotid_seg.models import example_folder
from parotid_seg.runtime.segmentation.segment import prepare
from parotid_seg.scan.ct.slice_order import misfits
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.scan.volume import Orientation, Volume
from tests.runtime.report.drawn import Here

Slices = NDArray[np.int16]
CT = ("CT",)
UNLIKE, STEPS = FlagCode.SLICES_UNLIKE_NEIGHBOURS, FlagCode.STEPS_BETWEEN_SLICES
REPEATED, ORDER = FlagCode.SLICES_REPEATED, FlagCode.SLICES_OUT_OF_ORDER


@pytest.fixture(scope="module")
def example() -> Volume:
    """The packaged example; slices from the feet."""
    return read_nifti(next((example_folder() / "imagesTr").glob("*.nii.gz"))).volume


def changed(volume: Volume, change: Callable[[Slices], Slices]) -> Volume:
    return replace(volume, voxels=change(volume.voxels[0].astype(np.int16))[None])


def at(slices: slice | int, change: Callable[[Slices], Slices | int]) -> Callable[[Slices], Slices]:
    """Changes some slices."""

    def apply(voxels: Slices) -> Slices:
        voxels = voxels.copy()
        voxels[slices] = change(voxels[slices])
        return voxels

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda voxels: voxels,
        lambda voxels: voxels[::3],
        lambda voxels: voxels[::-1],
        lambda voxels: voxels.transpose(2, 1, 0),
        lambda voxels: voxels[:2],
        lambda voxels: np.pad(voxels, ((9, 9), (0, 0), (0, 0)), constant_values=-1000),
        lambda voxels: voxels + np.random.default_rng(0).integers(-60, 60, voxels.shape, dtype=np.int16),
    ],
)
def test_an_intact_scan_has_no_flag(example: Volume, change: Callable[[Slices], Slices]) -> None:
    assert misfits(changed(example, change), CT) == ()


@pytest.mark.parametrize(
    ("change", "code", "value", "detail"),
    [
        (at(69, lambda _: -1000), UNLIKE, 1, "70"),
        (at(69, lambda voxels: voxels + 1024), UNLIKE, 1, "70"),
        (at(69, lambda voxels: voxels[::-1]), UNLIKE, 1, "70"),
        (lambda voxels: at(69, lambda _: voxels[49])(voxels), UNLIKE, 1, "70"),
        (at(slice(59, 100, 10), lambda _: -1000), UNLIKE, 5, "60, 70, 80 and 2 more"),
        (at(slice(80, 87), lambda voxels: voxels + 200), STEPS, 2, "80, 87"),
        (lambda voxels: voxels[np.r_[:20, 40:60, 20:40, 60:128]], STEPS, 1, "60"),
        (lambda voxels: at(69, lambda _: voxels[68])(voxels), REPEATED, 1, "70"),
        (lambda voxels: np.insert(voxels[:-1], 50, voxels[50], axis=0), REPEATED, 1, "52"),
    ],
)
def test_slices_that_do_not_fit_are_named(
    example: Volume, change: Callable[[Slices], Slices], code: FlagCode, value: int, detail: str
) -> None:
    (flag,) = misfits(changed(example, change), CT)
    assert (flag.code, flag.value) == (code, value)
    assert flag.detail == f"{detail} of 128, counted from the patient's feet"


@pytest.mark.parametrize(
    "order",
    [
        np.r_[0:128:2, 1:128:2],
        np.r_[1:128:2, 0:128:2],
        np.r_[0:128:4, 1:128:4, 2:128:4, 3:128:4],
        np.random.default_rng(0).permutation(128),
    ],
)
def test_slices_in_another_order_are_flagged(example: Volume, order: NDArray[np.int64]) -> None:
    (flag,) = misfits(changed(example, lambda voxels: voxels[order]), CT)
    assert (flag.code, flag.detail) == (ORDER, "128")
    assert flag.value is not None
    assert 100 < flag.value <= 128


def test_sagittal_slices_are_in_no_other_order_though_the_sides_are_alike(example: Volume) -> None:
    """Both halves of the head the same, as mirror images of each other."""
    mirrored = changed(example, lambda voxels: np.concatenate([voxels[:, :, :64], voxels[:, :, 63::-1]], axis=2))
    sagittal = replace(mirrored, orientation=Orientation((1, 0, 2), (False,) * 3))
    assert ORDER not in {flag.code for flag in misfits(sagittal, CT)}


def test_slices_are_those_that_were_stored(example: Volume) -> None:
    """A coronal scan with a blank slice."""
    blank = changed(example, lambda voxels: at(59, lambda _: -1000)(voxels.transpose(1, 0, 2)).transpose(1, 0, 2))
    assert misfits(blank, CT) == ()
    (flag,) = misfits(replace(blank, orientation=Orientation((1, 2, 0), (False,) * 3)), CT)
    assert flag.detail == "60 of 128, counted from the patient's front"


def test_every_scan_for_a_model_of_ct_is_checked(example: Volume) -> None:
    broken = changed(example, at(69, lambda _: -1000))
    assert UNLIKE in {flag.code for flag in prepare(broken, Here.contract).flags}
    of_mr = replace(Here.contract, channels=("T1",), windows=(None,))
    assert UNLIKE not in {flag.code for flag in prepare(broken, of_mr).flags}
