"""Runs slices of all available scans through the model, in batches that scans may share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import DeviceMemoryError, ModelError, ScanError
from parotid_seg.runtime.engines.base import Backend, Output, Pending
from parotid_seg.scan.chunks import (
    THINNEST_MM,
    Chunk,
    CroppedScan,
    Inputs,
    SliceChunker,
    can_share,
    joined,
    mirrored,
    most_slices,
)
from parotid_seg.scan.labels import mirrored_labels
from parotid_seg.scan.volume import Mask
from parotid_seg.wording import Say

Key = TypeVar("Key")

GROW = 3
"""Samples beyond the last one with a structure that are computed next. More would waste computing, fewer would waste
batches."""


@dataclass(frozen=True)
class Prediction:
    """The model's result for a scan.

    Attributes:
        labels: (D, h, w) within the grid; background where nothing was computed.
        agreement: see `Segmentation`; empty without test-time augmentation.
        seconds: the scan's share of the engine's time.
        computed: number of samples that the network computed.
    """

    labels: Mask
    agreement: dict[str, float]
    seconds: float
    computed: int = 0


class _Scan(Generic[Key]):
    """A scan in work.

    Attributes:
        todo: samples to submit, in runs or one by one.
        running: chunks that were submitted and have no labels yet.
        refused: whether the engine rejected it.
    """

    def __init__(self, key: Key, cropped: CroppedScan, backend: Backend) -> None:
        self.key, self.cropped = key, cropped
        self.cutter = SliceChunker(cropped, backend.contract.grid)
        self.labels = np.zeros(cropped.voxels.shape[1:], np.uint8)
        self.todo: deque[range | tuple[int, ...]] = deque()
        self.running, self.refused = 0, False
        self.seconds, self.computed = 0.0, 0
        self.alike = np.zeros((3, len(backend.contract.labels)), np.int64)
        needed = most_slices(backend.contract.grid, 1, cropped.distance_mm)
        self._overlap = needed if self.cutter.step == 1 else 0
        self._wanted = np.zeros(self.cutter.count, np.bool_)
        self._wanted[list(cropped.known)] = True
        if cropped.samples is None:
            self.todo.append(range(self.cutter.count))
        elif cropped.grow:
            self._want(cropped.samples)
        else:
            self.todo.append(cropped.samples)

    @property
    def complete(self) -> bool:
        """Whether all labels are computed."""
        return not (self.todo or self.running or self.refused)

    def take(self, most: int) -> Chunk:
        """The next chunk of at most so many samples; with thin slices it has one more.

        A run is joined with the next one if they need some of the same slices. With thin slices it is not, because
        slices between two samples need the scores of both.
        """
        run = self.todo.popleft()
        while self.todo and len(run) < most and 0 < self.todo[0][0] - run[-1] < self._overlap:
            run = (*run, *self.todo.popleft())
        now, later = run[:most], run[most:]
        if later:
            self.todo.appendleft(later)
        self.running += 1
        if isinstance(now, range):
            return self.cutter.chunk(now.start * self.cutter.step, len(now))
        return self.cutter.single(now)

    def give_back(self, chunk: Chunk) -> None:
        """Queue a chunk again."""
        self.running -= 1
        self.todo.appendleft(chunk.samples)

    def take_in(self, chunk: Chunk, labels: Mask) -> None:
        """Store a chunk's labels. If a structure reaches its end, the samples beyond are queued, too."""
        self.running -= 1
        self.labels[chunk.slices] = labels
        if self.cropped.grow:
            step = self.cutter.step
            self._want(
                sample
                for sample in chunk.samples
                if not self._wanted[max(0, sample - 1) : sample + 2].all()
                and self.labels[sample * step : (sample + 1) * step].any()
            )

    def _want(self, samples: Iterable[int]) -> None:
        """Queue all samples within `GROW` of these that have not been queued before."""
        new = np.zeros_like(self._wanted)
        for sample in samples:
            new[max(0, sample - GROW) : sample + GROW + 1] = True
        new &= ~self._wanted
        self._wanted |= new
        edges = np.flatnonzero(np.diff(new, prepend=False, append=False))
        self.todo += [range(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


@dataclass
class _Batch(Generic[Key]):
    """Chunks of one or more scans that are submitted together, with their mirror images if these are computed, too."""

    limit: int
    size: int = 0
    parts: list[tuple[_Scan[Key], Chunk]] = field(default_factory=list)
    inputs: Inputs = field(default_factory=dict)
    pending: list[Pending] = field(default_factory=list)


class Batcher(Generic[Key]):
    """Computes the labels of scans in batches.

    With test-time augmentation each sample's mirror image is computed, too. Probabilities of both are averaged; if a
    backend gives labels only, those of the scan itself are used. In both cases the agreement of the two is measured.

    Args:
        backend: the loaded model.
        batch_size: samples at once.
        tta: test-time augmentation.
        say: called with one line if the batch has to become smaller.
    """

    def __init__(self, backend: Backend, batch_size: int, *, tta: bool = False, say: Say = lambda _: None) -> None:
        self.batch_size = min(batch_size, backend.largest_batch or batch_size)
        self._backend, self._tta, self._say = backend, tta, say
        backend.batch_size = self.batch_size
        self._mirrored = np.array(mirrored_labels(backend.contract.labels), np.uint8)
        self._scans: deque[_Scan[Key]] = deque()
        self._running: deque[_Batch[Key]] = deque()
        self._nothing_to_do: list[_Scan[Key]] = []
        self._idle_since = time.perf_counter()

    @property
    def busy(self) -> bool:
        """Whether there is work left."""
        return bool(self._scans or self._running or self._nothing_to_do)

    def add(self, key: Key, cropped: CroppedScan) -> None:
        """Add a scan; `key` is returned with its labels."""
        scan = _Scan(key, cropped, self._backend)
        (self._nothing_to_do if scan.complete else self._scans).append(scan)

    def step(self) -> list[tuple[Key, Prediction | ScanError]]:
        """Keep the engine busy, and wait for one batch.

        Returns:
            The scans that are complete now, and those that the engine rejects.

        Raises:
            DeviceMemoryError: if not even one sample fits into the GPU's memory.
            ModelError: if the model cannot be run, or its output contradicts its contract.
        """
        if self._nothing_to_do:
            known, self._nothing_to_do = self._nothing_to_do, []
            return [(scan.key, self._prediction(scan)) for scan in known]
        if not self._running:
            self._idle_since = time.perf_counter()
        refused: list[tuple[Key, Prediction | ScanError]] = []
        while self._scans and len(self._running) < self._backend.queue_depth:
            batch = self._next_batch()
            try:
                self._hand_in(batch)
            except DeviceMemoryError as error:
                self._shrink(batch, error)
            except ScanError as error:
                refused += [(scan.key, error) for scan in self._dropped(batch)]
        if not self._running or refused:
            return refused
        batch = self._running.popleft()
        try:
            outputs = [each.result() for each in batch.pending]
        except DeviceMemoryError as error:
            self._shrink(batch, error)
            return []
        ended = time.perf_counter()
        seconds, self._idle_since = ended - self._idle_since, ended
        return self._take_in(batch, outputs, seconds)

    def _next_batch(self) -> _Batch[Key]:
        """Slices of the scan that has waited longest, with slices of later scans as far as they fit together."""
        first = self._scans[0]
        batch = _Batch[Key](self.batch_size)
        for scan in list(self._scans):
            if scan is first or can_share(first.cropped, scan.cropped):
                while scan.todo and self._add_to(batch, scan):
                    pass
            if not scan.todo:
                self._scans.remove(scan)
            if batch.size >= batch.limit:
                break
        return batch

    def _add_to(self, batch: _Batch[Key], scan: _Scan[Key]) -> bool:
        """Add slices of a scan to a batch, as many as fit; False if none fit."""
        extra = 1 if batch.parts and scan.cutter.step > 1 else 0
        room = batch.limit - batch.size - extra
        if room < 1:
            return False
        todo = scan.todo.copy()
        chunk = scan.take(room)
        inputs = joined([batch.inputs, chunk.inputs]) if batch.parts else chunk.inputs
        while not self._fits(inputs, chunk, batch) and (batch.parts or len(chunk.samples) > 1):
            scan.running -= 1
            scan.todo = todo.copy()
            if batch.parts:
                return False
            chunk = scan.take(len(chunk.samples) // 2)
            inputs = chunk.inputs
        batch.parts.append((scan, chunk))
        batch.inputs, batch.size = inputs, batch.size + chunk.size
        return True

    def _fits(self, inputs: Inputs, chunk: Chunk, batch: _Batch[Key]) -> bool:
        """Whether the engine accepts a batch with a chunk added. Several chunks, or single samples, must not have more
        slices than one chunk of neighbouring samples with thin slices may have: engines are built for no more."""
        if batch.parts or isinstance(chunk.samples, tuple):
            most = most_slices(self._backend.contract.grid, batch.limit + 1, THINNEST_MM)
            if inputs["slices"].shape[1] > most:
                return False
        return self._backend.fits(inputs)

    def _hand_in(self, batch: _Batch[Key]) -> None:
        batch.pending = [self._backend.start(batch.inputs)]
        if self._tta:
            batch.pending.append(self._backend.start(mirrored(batch.inputs)))
        self._running.append(batch)

    def _shrink(self, batch: _Batch[Key], error: DeviceMemoryError) -> None:
        """Continue with batches of half the size, and repeat this one."""
        if batch.limit == 1:
            raise error
        if batch.limit == self.batch_size:  # otherwise it was submitted before the last reduction
            self.batch_size //= 2
            self._backend.batch_size = self.batch_size
            self._say(f"{error}; going on with batches of {self.batch_size}")
        for scan, chunk in reversed(batch.parts):
            if not scan.todo:
                self._scans.appendleft(scan)
            scan.give_back(chunk)

    def _dropped(self, batch: _Batch[Key]) -> list[_Scan[Key]]:
        """Remove the scans of a batch from the queue."""
        dropped = list(dict.fromkeys(scan for scan, _ in batch.parts))
        for scan in dropped:
            scan.refused = True
            if scan in self._scans:
                self._scans.remove(scan)
        return dropped

    def _take_in(
        self, batch: _Batch[Key], outputs: list[Output], seconds: float
    ) -> list[tuple[Key, Prediction | ScanError]]:
        for output in outputs:
            self._check(output, batch)
        masks = [self._labels(output) for output in outputs]
        if len(masks) == 2:
            masks[1] = self._mirrored[masks[1]]
        labels = masks[0]
        if len(masks) == 2 and outputs[0].ndim == 4:
            labels = self._labels(cast(NDArray[np.float32], outputs[0]) + outputs[1][:, self._mirrored])
        complete: list[tuple[Key, Prediction | ScanError]] = []
        first = 0
        in_all = sum(chunk.size for _, chunk in batch.parts)
        for scan, chunk in batch.parts:
            samples = slice(first, first + chunk.count)
            waited = bool(scan.todo)
            scan.take_in(chunk, labels[samples])
            if scan.todo and not waited and not scan.refused:
                self._scans.append(scan)
            scan.seconds += seconds * chunk.size / in_all
            scan.computed += chunk.size
            if len(masks) == 2:
                scan.alike += _alike(masks[0][samples], masks[1][samples], len(self._mirrored))
            first = samples.stop
            if scan.complete:
                complete.append((scan.key, self._prediction(scan)))
        return complete

    def _check(self, output: Output, batch: _Batch[Key]) -> None:
        """Check an output against the contract.

        Raises:
            ModelError: if it has another type or shape, or a label without a name.
        """
        count = len(self._mirrored)
        slices = sum(chunk.count for _, chunk in batch.parts)
        plane = batch.parts[0][0].labels.shape[1:]
        is_labels = output.ndim == 3
        expected = (slices, *plane) if is_labels else (slices, count, *plane)
        if output.shape != expected or (is_labels and (output.dtype != np.uint8 or output.max() >= count)):
            largest = f" up to {output.max()}" if is_labels and output.size else ""
            raise ModelError(
                f"the model gives {output.shape} values of {output.dtype}{largest}, expected {expected} labels or "
                f"probabilities for {count} labels"
            )

    @staticmethod
    def _labels(output: Output) -> Mask:
        return cast(Mask, output if output.ndim == 3 else output.argmax(axis=1).astype(np.uint8))

    def _prediction(self, scan: _Scan[Key]) -> Prediction:
        return Prediction(scan.labels, self._agreement(scan), scan.seconds, scan.computed)

    def _agreement(self, scan: _Scan[Key]) -> dict[str, float]:
        if not self._tta:
            return {}
        both, one, other = scan.alike
        names = self._backend.contract.labels
        return {name: float(2 * both[i] / max(1, one[i] + other[i])) for i, name in enumerate(names) if i}


def _alike(one: Mask, other: Mask, count: int) -> NDArray[np.int64]:
    """Voxels of each label in both masks, in the first and in the second, (3, K)."""
    both = np.where(one == other, one, 0)
    return np.stack([np.bincount(mask.ravel(), minlength=count) for mask in (both, one, other)])
