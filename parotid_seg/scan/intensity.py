"""Intensity windows of channels, and scaling of channels without units.

CT has units, so its window is the model's. MR has none: the same tissue may be 300 on one scanner and 3000 on another,
so the window is computed from the scan, for each sequence separately.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag
from parotid_seg.scan.hounsfield import check_hounsfield
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
        doubts |= dict.fromkeys(check_hounsfield(voxels) if is_ct(channel) else ())
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
