"""Windows: CT keeps the model's, MR gets its own whatever the scanner's scale, and no scale breaks two bytes."""

import numpy as np
import pytest

from parotid_seg.errors import ScanError
from parotid_seg.flags import FlagCode
from parotid_seg.scan.chunks import as_float16
from parotid_seg.scan.intensity import SCALED_WINDOW, fixed_windows, in_windows, is_ct, window_of
from parotid_seg.scan.volume import Orientation, Volume

UPRIGHT = Orientation((0, 1, 2), (False, False, False))
HU = (-200.0, 300.0)


def head(scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """Noisy air, tissue of 0.2 to 0.8 and a few far brighter vessels, (D, H, W) float32."""
    rng = np.random.default_rng(0)
    voxels = np.abs(rng.normal(0, 0.01, size=(10, 40, 40)))
    voxels[:, 8:32, 8:32] = rng.uniform(0.2, 0.8, size=(10, 24, 24))
    voxels[5, 20, 20:24] = 5.0
    return (offset + scale * voxels).astype(np.float32)


def hounsfield() -> np.ndarray:
    """A block of soft tissue under fat, in air, (D, H, W) float32."""
    rng = np.random.default_rng(0)
    voxels = np.full((10, 40, 40), -1000.0)
    voxels[:, 8:32, 8:32] = rng.normal(-110, 20, size=(10, 24, 24))
    voxels[:, 11:29, 11:29] += 150
    return voxels.round().astype(np.float32)


def volume_of(*channels: np.ndarray) -> Volume:
    return Volume(np.stack(channels), (3.0, 1.0, 1.0), UPRIGHT)


def test_only_ct_has_units() -> None:
    assert [is_ct(name) for name in ("CT", "ct", "T1", "CBCT")] == [True, True, False, False]
    assert fixed_windows(("T1", "CT"), HU) == (None, HU)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-3, 0.0), (60_000.0, 0.0), (500.0, -300.0)])
def test_the_window_goes_from_above_air_to_the_brightest_tissue(scale: float, offset: float) -> None:
    low, high = window_of(head(scale, offset), None)
    assert (low - offset) / scale == pytest.approx(0.05 * 0.8, abs=0.005)
    assert (high - offset) / scale == pytest.approx(0.8, abs=0.01)


def test_a_few_undershoots_of_a_resampled_scan_do_not_move_it() -> None:
    voxels = head()
    voxels[0, 0, :20] = -2.0
    assert window_of(voxels, None) == pytest.approx(window_of(head(), None), abs=0.01)


def test_ct_stays_as_it_is() -> None:
    volume = volume_of(hounsfield().astype(np.int16))
    same, windows = in_windows(volume, ("CT",), (HU,))
    assert same is volume
    np.testing.assert_array_equal(windows, [HU])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 700.0, 60_000.0, 1e9])
def test_no_scale_is_lost_in_two_bytes(scale: float) -> None:
    """The graph sees the same picture of every scanner, as fine as a display's."""
    volume, windows = in_windows(volume_of(head(scale)), ("T1",), (None,))
    np.testing.assert_array_equal(windows, [SCALED_WINDOW])
    assert volume.voxels.dtype == np.int16
    low, high = window_of(head(scale), None)
    expected = np.clip((head(scale) - low) / (high - low), 0, 1)
    sent = as_float16(volume.voxels[0]).astype(np.float32)
    seen = np.clip((sent - SCALED_WINDOW[0]) / (SCALED_WINDOW[1] - SCALED_WINDOW[0]), 0, 1)
    np.testing.assert_allclose(seen, expected, atol=1e-3)
    assert np.isfinite(sent).all()


def test_each_channel_has_its_own_window() -> None:
    ct = hounsfield()
    volume, windows = in_windows(volume_of(ct, head(1e-3), head(3000)), ("CT", "T1", "T2"), (HU, None, None))
    np.testing.assert_array_equal(windows, [HU, SCALED_WINDOW, SCALED_WINDOW])
    np.testing.assert_array_equal(volume.voxels[0], ct)
    np.testing.assert_allclose(volume.voxels[1], volume.voxels[2], atol=1)


def test_a_ct_must_be_in_hu_and_doubts_are_flags_of_the_scan() -> None:
    channels, fixed = ("T1", "CT"), (None, HU)
    assert in_windows(volume_of(head(), hounsfield()), channels, fixed)[0].flags == ()
    doubtful, _ = in_windows(volume_of(head(), hounsfield() + 100), channels, fixed)
    assert [flag.code for flag in doubtful.flags] == [FlagCode.HU_SHIFTED]
    with pytest.raises(ScanError, match="not HU"):
        in_windows(volume_of(hounsfield(), head()), channels, fixed)


def test_what_shows_nothing_or_is_not_there_is_an_error() -> None:
    with pytest.raises(ScanError, match="channel T2 shows nothing: all intensities are 7"):
        in_windows(volume_of(head(), np.full_like(head(), 7)), ("T1", "T2"), (None, None))
    with pytest.raises(ScanError, match=r"channels: found 1, expected 3 \(T1, T2, STIR\)"):
        in_windows(volume_of(head()), ("T1", "T2", "STIR"), (None, None, None))
