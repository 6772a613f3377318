"""Whether a CT is in HU follows from where its tissue lies, whatever its smallest value is."""

from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from parotid_seg.errors import ScanError
from parotid_seg.flags import FlagCode
from parotid_seg.scan.ct.hounsfield import MOST_SAMPLES, check_hounsfield, examined

NO_DATA = -1024
"""What the example has outside the patient."""
SPACING_MM = (2.7, 4.4, 4.4)
"""Near the example's."""


@pytest.fixture(scope="module")
def ct(example: nibabel.Nifti1Image) -> NDArray[Any]:
    """The example scan (D, H, W)."""
    return np.asarray(example.dataobj).astype(np.int16).transpose(2, 1, 0)[::-1]


def noise(shape: tuple[int, int, int], deviation: int) -> NDArray[Any]:
    return np.random.default_rng(0).normal(0, deviation, shape)


def with_air(ct: NDArray[Any]) -> NDArray[Any]:
    return np.where(ct == NO_DATA, -1000 + noise(ct.shape, 15), ct).clip(NO_DATA, 3071).round()


def middle(ct: NDArray[Any]) -> NDArray[Any]:
    return ct[44:84, 50:80, 50:80]


def codes(voxels: NDArray[Any]) -> list[FlagCode]:
    kept = voxels if voxels.dtype == np.int16 else voxels.astype(np.float32)
    return [flag.code for flag in check_hounsfield(kept, SPACING_MM)]


HARMLESS = {
    "as it is": lambda ct: ct,
    "air with noise around": with_air,
    "outside -1000": lambda ct: np.where(ct == NO_DATA, -1000, ct),
    "outside -2000": lambda ct: np.where(ct == NO_DATA, -2000, ct),
    "outside -3024": lambda ct: np.where(ct == NO_DATA, -3024, ct),
    "a tight crop": middle,
    "low dose": lambda ct: (ct + noise(ct.shape, 50)).clip(-1024, 3071),
    "a contrast agent": lambda ct: ct + np.interp(ct, [-40, 20, 150, 300], [0, 30, 30, 0]),
    "finer": lambda ct: ndimage.zoom(ct[::2].astype(np.float32), (1, 1.4, 1.4), order=3),
    "coarser": lambda ct: ndimage.zoom(ct.astype(np.float32), 0.6, order=1),
    "fractions": lambda ct: ct + np.float32(0.37),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_a_ct_in_hu_is_accepted_whatever_is_around_the_patient(ct: NDArray[Any], change: str) -> None:
    assert codes(HARMLESS[change](ct)) == []


@pytest.mark.parametrize("value", [-200, 0, 40, 3071])
def test_regions_of_one_value_that_tissue_has_are_flagged(ct: NDArray[Any], value: int) -> None:
    """Set to 0 around the patient, the example's glands have 17 and 8 ml instead of 24 and 23."""
    around = ct == NO_DATA
    found = check_hounsfield(np.where(around, value, ct).astype(np.int16), SPACING_MM)
    assert [(flag.code, flag.detail) for flag in found] == [(FlagCode.SAME_VALUED, str(value))]
    assert found[0].value == pytest.approx(around.mean(), abs=0.01)
    strip = np.pad(ct, ((0, 0), (0, 0), (0, 30)), constant_values=value)
    assert codes(strip) == [FlagCode.SAME_VALUED]


FAULTS = {
    "+1024": (lambda ct: ct + 1024, r"HU shifted by about \+1024; is the rescale intercept missing\?"),
    "+1024 in -2000": (lambda ct: np.where(ct == NO_DATA, -2000, ct + 1024), r"shifted by about \+1024"),
    "+1024 in -1024": (lambda ct: np.where(ct == NO_DATA, -1024, ct + 1024), r"shifted by about \+1024"),
    "+1024 in air": (lambda ct: with_air(ct) + 1024, r"shifted by about \+1024"),
    "+1024 cropped": (lambda ct: middle(ct) + 1024, r"not HU"),
    "-1024": (lambda ct: ct - 1024, r"shifted by about -1024"),
    "-1024 in air": (lambda ct: with_air(ct) - 1024, r"shifted by about -1024"),
    "half": (lambda ct: ct * 0.5, r"soft tissue is at \d+ and fat at -\d+, .*; they look like HU scaled by 0.5"),
    "half in -1024": (lambda ct: np.where(ct == NO_DATA, -1024, ct * 0.5), r"scaled by 0.5"),
    "twice": (lambda ct: ct * 2.0, r"scaled by 2"),
    "tenfold": (lambda ct: ct * 10.0, r"not HU"),
    "0 to 1": (lambda ct: (ct + 1024) / 4095, r"not HU: found 0 to 1, expected fat near -100 or air near -1000"),
    "0 to 255": (lambda ct: ((ct + 1024) / 16).round(), r"not HU"),
    "0 to 255 windowed": (lambda ct: ((ct.clip(-160, 240) + 160) * 255 / 400).round(), r"not HU"),
    "inverted": (lambda ct: -with_air(ct), r"HU inverted"),
    "inverted, 12 bits": (lambda ct: 3071 - ct, r"not HU"),
    "clipped": (lambda ct: ct.clip(-160, 240), r"clipped at -160, expected values down to -200"),
    "MR": (
        lambda ct: np.hypot(np.interp(ct, [-900, -100, 40, 400], [0, 700, 260, 50]), noise(ct.shape, 12)),
        r"not HU",
    ),
    "off by 300": (lambda ct: ct + 300, r"soft tissue is at 3\d\d and fat at \d+, expected about 40 and -100"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_in_hu_is_refused_by_name(ct: NDArray[Any], fault: str) -> None:
    change, words = FAULTS[fault]
    with pytest.raises(ScanError, match=words):
        codes(change(ct))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda ct: ct + 100, FlagCode.HU_SHIFTED),
        (lambda ct: ct - 100, FlagCode.HU_SHIFTED),
        (lambda ct: np.where(ct > -500, ct + 130, ct), FlagCode.HU_SHIFTED),
        (lambda ct: (ct + noise(ct.shape, 160)).clip(-1024, 3071), FlagCode.HU_SPREAD),
        (lambda ct: np.where(ct == NO_DATA, ct, ct + np.linspace(-150, 150, ct.shape[2])), FlagCode.HU_UNEVEN),
        (lambda ct: ct.clip(-200, 300), FlagCode.HU_CLIPPED),
        (lambda ct: with_air(ct).clip(-500, 500), FlagCode.HU_CLIPPED),
    ],
    ids=["+100", "-100", "tissue +130", "noise", "a ramp", "-200 to 300", "-500 to 500"],
)
def test_what_may_not_be_in_hu_is_flagged(ct: NDArray[Any], change: Callable[..., Any], code: FlagCode) -> None:
    assert code in codes(change(ct))


def test_shading_is_told_by_how_much(ct: NDArray[Any]) -> None:
    rows, columns = np.indices(ct.shape[1:]) - 63.5
    cup = 300 * ((np.hypot(rows, columns) / 25).clip(0, 1) ** 2 - 0.5)
    flags = check_hounsfield(np.where(ct == NO_DATA, ct, ct + cup).astype(np.float32), SPACING_MM)
    (uneven,) = (flag.value for flag in flags if flag.code == FlagCode.HU_UNEVEN)
    assert uneven is not None
    assert uneven > 50


def test_a_table_is_no_shading(ct: NDArray[Any]) -> None:
    """In a wide field of view it has more voxels than the head."""
    wide = np.pad(ct, ((0, 0), (0, 0), (40, 40)), constant_values=NO_DATA)
    behind = np.flatnonzero((wide[69] > NO_DATA).any(axis=1))[-1] + 2
    beneath = wide[:, behind : behind + 4]
    beneath[:] = np.where(beneath == NO_DATA, -120 + noise(beneath.shape, 15), beneath)
    assert FlagCode.HU_UNEVEN not in codes(wide)


def test_air_alone_shows_no_patient(ct: NDArray[Any]) -> None:
    with pytest.raises(ScanError, match="show no patient: expected tissue above -300 HU"):
        codes(ct.clip(-1024, -400))


def test_tissue_without_fat_or_air_cannot_be_judged() -> None:
    """Only the number around it tells that this may be in HU."""
    head = np.full((20, 40, 40), -1000, np.int16)
    head[:, 8:32, 8:32] = 30 + noise((20, 24, 24), 20)
    assert codes(head) == [FlagCode.HU_UNKNOWN]
    head[head == -1000] = 0
    with pytest.raises(ScanError, match="expected fat near -100 or air near -1000"):
        codes(head)


def test_a_large_scan_is_examined_on_a_lattice() -> None:
    large = np.broadcast_to(np.arange(700, dtype=np.int16), (90, 600, 700))
    samples, step_mm = examined(large, (3.0, 1.0, 1.0))
    assert samples.size <= MOST_SAMPLES
    assert np.multiply(step_mm, samples.shape) == pytest.approx([3 * 90, 600, 700], rel=0.05)
    np.testing.assert_array_equal(samples, examined(large.astype(np.float32), (3.0, 1.0, 1.0))[0])
