"""Inputs of the measurements: chunks of real scans, and of noise in the same shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, OptionError
from parotid_seg.files import exists
from parotid_seg.runtime.pipeline.discovery import example_for, find_scans
from parotid_seg.runtime.pipeline.sources import Scan, place_of, read_scan
from parotid_seg.runtime.segmentation.segment import prepare
from parotid_seg.scan.chunks import CroppedScan, Inputs, SliceChunker

IN_ROTATION = 8
"""Different chunks of a batch size that follow each other, so that none is still in the processor's cache."""
MOST_SCANS = 8
"""Scans of which chunks are kept in memory."""


def scans_for(folder: Path | None, contract: Contract) -> list[Scan]:
    """The scans to measure with: those of a folder, or the example scan.

    Raises:
        InputError: if there is no scan, or the example scan does not fit the model.
    """
    if folder is not None and not exists(folder):
        raise OptionError(f"--scans: {folder}: no such file or folder")
    scans, errors = find_scans([folder or example_for(contract.channels, "--scans") / "imagesTr"], contract.channels)
    if not scans:
        raise InputError(f"--scans: {'; '.join(map(str, errors))}")
    for scan in scans:
        if not all(isinstance(source, Path) for source in scan):
            raise InputError(f"--scans: {place_of(scan[0])}: a DICOM series, expected NIfTI files to measure with")
    return scans


def in_memory(scans: Sequence[Scan], contract: Contract) -> list[CroppedScan]:
    """Scans, as far as the model's grid covers them.

    Raises:
        ScanError: if one cannot be read or does not fit the model.
    """
    return [prepare(read_scan(scan).volume, contract).crop_to_grid() for scan in scans]


def rotation(scans: Sequence[CroppedScan], contract: Contract, batch_size: int) -> list[Inputs]:
    """Different chunks of a batch size and of one shape, from all along the scans; none if no scan is long enough."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[Inputs]] = {}
    for scan in scans:
        cutter = SliceChunker(scan, contract.grid)
        last = cutter.depth - batch_size * cutter.step
        for start in np.unique(np.linspace(0, last, 8 * IN_ROTATION).astype(int)) if last >= 0 else ():
            inputs = cutter.chunk(int(start), batch_size).inputs
            by_shape.setdefault(tuple(array.shape for array in inputs.values()), []).append(inputs)
    most = max(by_shape.values(), key=len, default=[])
    return [most[index] for index in np.unique(np.linspace(0, len(most) - 1, IN_ROTATION).astype(int))] if most else []


def noise_like(chunks: Sequence[Inputs], seed: int = 0) -> list[Inputs]:
    """The same chunks with noise in place of intensities, within the model's windows."""
    random = np.random.default_rng(seed)
    noise_chunks: list[Inputs] = []
    for chunk in chunks:
        low, high = (chunk["window"][:, side].reshape(-1, 1, 1, 1) for side in (0, 1))
        slices = random.uniform(low, high, chunk["slices"].shape).astype(np.float16)
        noise_chunks.append({**chunk, "slices": slices})
    return noise_chunks
