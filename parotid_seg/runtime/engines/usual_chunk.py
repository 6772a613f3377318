"""A chunk of an ordinary scan, to measure engines and to check that they run."""

from __future__ import annotations

import numpy as np

from parotid_seg.contract import Contract
from parotid_seg.scan.chunks import Inputs, chunks
from parotid_seg.scan.intensity import in_windows
from parotid_seg.scan.volume import Orientation, Volume

USUAL_PIXELS, USUAL_PIXEL_MM = 512, 0.9766
"""Size of a head-and-neck CT: 512 x 512 pixels with a field of view of 500 mm."""


def usual_chunk(contract: Contract, batch_size: int) -> Inputs:
    """A chunk of an ordinary planning CT, or of as many slices of another modality: a cylinder of tissue in air."""
    y, x = np.mgrid[-1 : 1 : USUAL_PIXELS * 1j, -1 : 1 : USUAL_PIXELS * 1j]
    slice_hu = np.where(y**2 + x**2 < 0.1, 40 + 100 * np.sin(20 * x) * np.cos(20 * y), -1000).astype(np.int16)
    step_mm = contract.grid.slice_step_mm
    volume = Volume(
        np.broadcast_to(slice_hu, (len(contract.channels), batch_size, USUAL_PIXELS, USUAL_PIXELS)),
        (step_mm, USUAL_PIXEL_MM, USUAL_PIXEL_MM),
        Orientation((0, 1, 2), (False, False, False)),
    )
    volume, windows = in_windows(volume, contract.channels, contract.windows)
    return next(chunks(volume, windows, contract.grid, batch_size)).inputs
