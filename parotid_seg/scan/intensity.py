"""Intensities from stored values, intensity windows of channels, and scaling of channels without units.

Stored values become intensities by slope and intercept: int16 where exact, else float32.

CT has units, so its window is the model's. MR has none: the same tissue may be 300 on one scanner and 3000 on another,
so the window is computed from the scan, for each sequence separately.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag
from parotid_seg.scan.ct.hounsfield import check_hounsfield
from parotid_seg.scan.foreign import foreign
from parotid_seg.scan.volume import Volume, Voxels

Window = tuple[float, float]
Windows = NDArray[np.float32]
"""The intensities of each channel that become 0 and 1 in the network, (C, 2)."""

SCALED_WINDOW: Window = (0.0, 1000.0)
"""Range to which a channel's own window is scaled: integers that are exact in float16, finer than any display."""
BRIGHTEST = 99.5
"""Percentile of the foreground for the window's upper end; vessels and coils may be far brighter than tissue."""
DARKEST = 0.5
"""Percentile of all voxels that counts as the scan's minimum; resampling undershoots the real one."""
AIR_SHARE = 0.05
"""Share of the range from there to the upper end that contains air and its noise."""
SLAB_VOXELS = 1 << 22
"""Voxels that are scaled at once, so that a large scan does not need memory for all its values as float64."""
LOWEST, HIGHEST = -32768, 32767
"""Of int16."""
LARGEST = float(np.finfo(np.float32).max)


def intensities_of(
    stored: NDArray[np.generic], scaling: tuple[float, float] | None, path: Path, *, constant_allowed: bool = False
) -> Voxels:
    """Intensities of stored values; the same array if it is int16 and needs no scaling.

    Args:
        stored: real numbers (I, J, K).
        scaling: slope and intercept; None for 1 and 0.
        path: the file, for errors.
        constant_allowed: whether all voxels may have one value.

    Raises:
        ScanError: if a voxel is not finite, or all have one value.
    """
    if scaling is not None:
        return _by_slope(stored, scaling, path, constant_allowed)
    low, high = stored.min(), stored.max()
    _check(path, low, high, [stored], stored.size, constant_allowed)
    if stored.dtype.kind in "iub" and low >= LOWEST and high <= HIGHEST:
        return np.asarray(stored, dtype=np.int16)
    if low >= LOWEST and high <= HIGHEST:
        as_int16 = np.asarray(stored, dtype=np.int16)
        if np.array_equal(as_int16, stored):
            return as_int16
    return np.asarray(stored, dtype=np.float32)


def _by_slope(stored: NDArray[np.generic], scaling: tuple[float, float], path: Path, constant_allowed: bool) -> Voxels:
    slabs = list(_slabs(stored))

    def values(slab: NDArray[np.generic]) -> NDArray[np.floating]:
        with foreign(path, "nibabel", "slope and intercept that cannot be applied"), np.errstate(all="ignore"):
            return np.asarray(apply_read_scaling(slab, *scaling))

    ends = [(each.min(), each.max()) for each in map(values, slabs)]
    low, high = np.min([end for end, _ in ends]), np.max([end for _, end in ends])
    _check(path, low, high, map(values, slabs), stored.size, constant_allowed)
    if low >= LOWEST and high <= HIGHEST:
        integers = np.empty_like(stored, dtype=np.int16, subok=False)
        for target, slab in zip(_slabs(integers), slabs, strict=True):
            exact = values(slab)
            target[...] = exact
            if not np.array_equal(target, exact):
                break
        else:
            return integers
    floats = np.empty_like(stored, dtype=np.float32, subok=False)
    for target, slab in zip(_slabs(floats), slabs, strict=True):
        target[...] = values(slab)
    return floats


def _slabs(stored: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Views of neighbouring slices that together form an array (I, J, K)."""
    thickness = max(1, SLAB_VOXELS // max(1, stored.shape[0] * stored.shape[1]))
    for begin in range(0, stored.shape[2], thickness):
        yield stored[..., begin : begin + thickness]


def _check(
    path: Path, low: np.generic, high: np.generic, parts: Iterable[NDArray[np.generic]], size: int, constant: bool
) -> None:
    """Raise ScanError unless the lowest and highest intensity are finite as float32, and differ or may be equal."""
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = sum(each.size - int(np.count_nonzero(np.isfinite(each))) for each in parts)
        raise ScanError(f"{bad} of {size} voxels are NaN or infinite, expected finite intensities", path=path)
    if float(low) < -LARGEST or float(high) > LARGEST:
        raise ScanError(f"found intensities from {low:g} to {high:g}, expected at most {LARGEST:g}", path=path)
    if low == high and not constant:
        raise ScanError(f"every voxel has the value {low:g}, expected an image", path=path)


def is_ct(channel: str) -> bool:
    """Whether a channel of this name is in HU; case is ignored, as in nnU-Net."""
    return channel.casefold() == "ct"


def fixed_windows(channels: Sequence[str], window_hu: Window) -> tuple[Window | None, ...]:
    """Windows for the contract: the model's for CT, None (from the scan) for other channels."""
    return tuple(window_hu if is_ct(channel) else None for channel in channels)


def window_of(voxels: Voxels, fixed: Window | None, channel: str = "") -> Window:
    """Window of one channel.

    Args:
        voxels: its intensities (D, H, W).
        fixed: the model's window, or None to find it in the scan: the upper end is `BRIGHTEST` of the voxels above the
            mean, the lower one lies `AIR_SHARE` above the darkest voxels, so that air becomes 0 as in CT.
        channel: its name, for the error.

    Raises:
        ScanError: if there is no contrast to find a window in.
    """
    if fixed is not None:
        return fixed
    darkest = float(np.percentile(voxels, DARKEST))
    foreground = voxels[voxels > voxels.mean(dtype=np.float64)]
    high = float(np.percentile(foreground, BRIGHTEST)) if foreground.size else darkest
    if not darkest < high:
        raise ScanError(f"channel {channel} shows nothing: all intensities are {darkest:g}")
    return darkest + AIR_SHARE * (high - darkest), high


def in_windows(volume: Volume, channels: Sequence[str], fixed: Sequence[Window | None]) -> tuple[Volume, Windows]:
    """The scan prepared for the model, and its channels' windows.

    A CT channel must be in HU; doubts are added to the scan's flags. A channel with a fixed window stays unchanged.
    Other channels are scaled so that their own window becomes `SCALED_WINDOW`, and rounded to int16, so that they need
    two bytes whatever the scanner's scale.

    Args:
        volume: the scan as it was read.
        channels: the model's channel names.
        fixed: the model's windows, see `Contract.windows`.

    Raises:
        ScanError: if the scan has another number of channels, one shows nothing, or a CT is not in HU or shows no
            patient.
    """
    if len(volume.voxels) != len(channels):
        raise ScanError(f"channels: found {len(volume.voxels)}, expected {len(channels)} ({', '.join(channels)})")
    doubts: dict[Flag, None] = {}
    for voxels, channel in zip(volume.voxels, channels, strict=True):
        doubts |= dict.fromkeys(check_hounsfield(voxels, volume.spacing_mm) if is_ct(channel) else ())
    if doubts:
        volume = dataclasses.replace(volume, flags=(*volume.flags, *doubts))
    if None not in fixed:
        return volume, np.array(fixed, np.float32)
    scaled, windows = [], []
    for voxels, window, channel in zip(volume.voxels, fixed, channels, strict=True):
        if window is None:
            scaled.append(_scaled(voxels, window_of(voxels, None, channel)))
        else:
            scaled.append(voxels)
        windows.append(window or SCALED_WINDOW)
    return dataclasses.replace(volume, voxels=np.stack(scaled)), np.array(windows, np.float32)


def _scaled(voxels: Voxels, window: Window) -> NDArray[np.int16]:
    low, high = window
    top = np.iinfo(np.int16).max
    scaled = (voxels.astype(np.float32) - low) * (SCALED_WINDOW[1] / (high - low))
    return scaled.round().clip(-top, top).astype(np.int16)
