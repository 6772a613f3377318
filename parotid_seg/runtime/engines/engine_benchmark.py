"""A short benchmark of loaded models on chunks of an ordinary scan: samples per second, and whether the masks are still
the same."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from parotid_seg.contract import Contract
from parotid_seg.errors import DeviceMemoryError, InputError, ParotidSegError
from parotid_seg.models import example_folder
from parotid_seg.runtime.engines.base import USUAL_BATCH, Backend, Output, Pending
from parotid_seg.runtime.tolerance import GATES, MaskDifference, difference
from parotid_seg.scan.chunks import Inputs, chunks, segmented
from parotid_seg.scan.intensity import in_windows
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.scan.volume import Mask, Orientation, Volume

BUDGET_S = 2.0
"""Seconds for comparing engines, and again for comparing batch sizes; there are always at least two rounds."""
LEAST_ROUNDS, MOST_ROUNDS = 2, 7
BATCH_GAIN = 1.05
"""Least gain for which another batch size than the usual one is chosen: less is noise on a shared machine."""
SOFT_TISSUE_HU, FAT_HU, AIR_HU = 40, -100, -1000
USUAL_PIXELS, USUAL_PIXEL_MM = 512, 0.9766
"""Size of a head-and-neck CT: 512 x 512 pixels with a field of view of 500 mm."""


class EngineBenchmark:
    """Measures loaded models before one is chosen.

    Args:
        contract: of the model file.
        clock: returns the time in seconds.
    """

    def __init__(self, contract: Contract, clock: Callable[[], float] = time.perf_counter) -> None:
        self.contract, self._clock = contract, clock
        self._expected: dict[Backend, Mask] = {}

    def speeds(self, backends: Mapping[str, Backend], failed: dict[str, ParotidSegError]) -> dict[str, float]:
        """Samples per second of each, in chunks of the usual batch size; of a smaller one if that does not fit into the
        memory or the shapes of an engine. One that cannot compute has none, and `failed` gets its error."""
        size = USUAL_BATCH
        while not self._all_run(backends, size, failed) and size > 1:
            size //= 2
            for backend in backends.values():
                backend.batch_size = min(backend.batch_size, size)
        chunk = usual_chunk(self.contract, size)
        runs = {name: (backend, chunk) for name, backend in backends.items() if name not in failed}
        return self._timed(runs, failed)

    def batch_size(self, backend: Backend, sizes: Sequence[int]) -> int:
        """The smallest of those of some batch sizes that are about as fast as the fastest, as smaller chunks may be
        padded to it; the backend's own unless that gains `BATCH_GAIN`. Sizes that are too large for its memory or its
        shapes are left out.

        Raises:
            ParotidSegError: if it cannot compute.
        """
        runs = {}
        for size in sorted({backend.batch_size, *sizes}):
            if not self._runs(backend, size):
                break
            runs[str(size)] = (backend, usual_chunk(self.contract, size))
        if not runs:
            return 1
        usual = min(backend.batch_size, max(map(int, runs)))
        failed: dict[str, ParotidSegError] = {}
        speeds = self._timed(runs, failed)
        if failed:
            raise next(iter(failed.values()))
        fastest = max(speeds.values())
        if fastest < BATCH_GAIN * speeds[str(usual)]:
            return usual
        return min(int(size) for size, speed in speeds.items() if BATCH_GAIN * speed > fastest)

    def failure(self, reference: Backend, other: Backend, precision: str) -> str:
        """Why another's masks cannot be computed, or differ from the reference's beyond the tolerance of its
        precision; empty if they do not. The reference's are computed once.

        Raises:
            ParotidSegError: if the reference cannot compute its masks.
        """
        try:
            if reference not in self._expected:
                self._expected[reference] = self.example_mask(reference)
        except InputError as error:
            return f"not to be checked ({error})"
        expected = self._expected[reference]
        if not expected.any():
            return "not to be checked (nothing is found in the example scan)"
        try:
            apart = self.difference(expected, self.example_mask(other))
        except ParotidSegError as error:
            return str(error)
        return "" if GATES[precision].admits(apart) else f"other masks of the example scan: {apart}"

    def example_mask(self, backend: Backend) -> Mask:
        """Labels (D, H, W) of the example scan.

        Raises:
            InputError: if there is none for the model.
        """
        volume, windows = in_windows(self._example(), self.contract.channels, self.contract.windows)
        return segmented(volume, windows, self.contract.grid, USUAL_BATCH, lambda chunk: _labels(backend, chunk))

    def difference(self, expected: Mask, found: Mask) -> MaskDifference:
        """The difference between two masks of the example scan."""
        return difference(expected, found, self._example().spacing_mm, len(self.contract.labels))

    def _example(self) -> Volume:
        if len(self.contract.channels) != 1 or self.contract.windows[0] is None:
            raise InputError("the example scan is a CT")
        return read_nifti(next((example_folder() / "imagesTr").glob("*.nii.gz"))).volume

    def _all_run(self, backends: Mapping[str, Backend], size: int, failed: dict[str, ParotidSegError]) -> bool:
        """Whether all that do not fail compute chunks of this size; `failed` gets the errors of the others."""
        fits = True
        for name in (each for each in backends if each not in failed):
            try:
                fits = self._runs(backends[name], size) and fits
            except ParotidSegError as error:
                failed[name] = error
        return fits

    def _runs(self, backend: Backend, size: int) -> bool:
        """Whether an engine computes chunks of this size; afterwards it is ready to be timed with them."""
        if backend.largest_batch is not None and size > backend.largest_batch:
            return False
        chunk = usual_chunk(self.contract, size)
        try:
            backend.specialise(chunk)
            _run(backend, chunk)
        except DeviceMemoryError:
            return False
        return True

    def _timed(
        self, runs: Mapping[str, tuple[Backend, Inputs]], failed: dict[str, ParotidSegError]
    ) -> dict[str, float]:
        """Samples per second, measured in turns, because a shared machine's speed drifts; the first round is a
        warm-up. What cannot compute is left out, and `failed` gets its error."""
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        begun = self._clock()
        for number in range(MOST_ROUNDS + 1):
            for name, (backend, chunk) in runs.items():
                if name in failed:
                    continue
                started = self._clock()
                try:
                    _run(backend, chunk)
                except ParotidSegError as error:
                    failed[name] = error
                    continue
                if number:
                    seconds[name].append((self._clock() - started) / backend.queue_depth)
            if number >= LEAST_ROUNDS and self._clock() - begun > BUDGET_S:
                break
        return {
            name: len(runs[name][1]["neighbours"]) / statistics.median(found)
            for name, found in seconds.items()
            if name not in failed
        }


def _run(backend: Backend, chunk: Inputs) -> None:
    """Run as many chunks as the backend's queue depth."""
    pending: deque[Pending] = deque(backend.start(chunk) for _ in range(backend.queue_depth))
    while pending:
        pending.popleft().result()


def _labels(backend: Backend, chunk: Inputs) -> Mask:
    output: Output = backend.start(chunk).result()
    return np.asarray(output if output.ndim == 3 else output.argmax(axis=1), dtype=np.uint8)


def usual_chunk(contract: Contract, batch_size: int) -> Inputs:
    """A chunk of an ordinary planning CT, or of as many slices of another modality: a cylinder of fat and muscle in
    air."""
    y, x = np.mgrid[-1 : 1 : USUAL_PIXELS * 1j, -1 : 1 : USUAL_PIXELS * 1j]
    tissue_hu = np.where(np.sin(20 * x) * np.cos(20 * y) > 0, SOFT_TISSUE_HU, FAT_HU)
    slice_hu = np.where(y**2 + x**2 < 0.1, tissue_hu, AIR_HU).astype(np.int16)
    step_mm = contract.grid.slice_step_mm
    volume = Volume(
        np.broadcast_to(slice_hu, (len(contract.channels), batch_size, USUAL_PIXELS, USUAL_PIXELS)),
        (step_mm, USUAL_PIXEL_MM, USUAL_PIXEL_MM),
        Orientation((0, 1, 2), (False, False, False)),
    )
    volume, windows = in_windows(volume, contract.channels, contract.windows)
    return next(chunks(volume, windows, contract.grid, batch_size)).inputs
