"""Drawing training slices: which slice of which patient, and where the model's grid lies over it.

Shift, scale, mirroring and resolution are part of the resampling matrices, so they cost nothing and a mirrored scan
swaps left and right labels in the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parotid_seg.contract import Grid
from parotid_seg.scan.grid import Matrix, axis_mm, grid_mm, resampling_matrix
from parotid_seg.scan.volume import Mask, Voxels
from parotid_seg.train.config import AugmentConfig, SegmentConfig
from parotid_seg.train.dataset import Patient

Positions = NDArray[np.float64]

AIR_HU = -1024


@dataclass(frozen=True)
class Batch:
    """Slices of several patients with the matrices to the grid (see `network.ToGrid`), and their labels on the grid.

    Attributes:
        slices (N, D, H, W), rows (N, G, H), columns (N, G, W), neighbours (N, 1, K, D).
        targets: (N, classes, G, G), the share of each label in each pixel.
    """

    slices: Tensor
    rows: Tensor
    columns: Tensor
    neighbours: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Sample:
    slices: Voxels
    rows: Matrix
    columns: Matrix
    neighbours: Matrix
    targets: Matrix


class SliceSampler:
    """Draws batches of slices; the same seed and epoch give the same batches.

    Args:
        patients: where to draw from, each as often as any other.
        mirrored_labels: for each label the one it becomes in a mirrored scan.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        grid: Grid,
        segment: SegmentConfig,
        mirrored_labels: tuple[int, ...],
        seed: int,
    ) -> None:
        self.patients, self.grid, self.segment = patients, grid, segment
        self.mirrored_labels, self.seed = mirrored_labels, seed

    def epoch(self, number: int, augment: AugmentConfig) -> Iterator[Batch]:
        """The batches of one epoch, changed by `augment`."""
        rng = np.random.default_rng((self.seed, number))
        for _ in range(max(1, self.segment.images_per_epoch // self.segment.batch_size)):
            yield _collate([self._draw(rng, augment) for _ in range(self.segment.batch_size)])

    def _draw(self, rng: np.random.Generator, amount: AugmentConfig) -> _Sample:
        patient = self.patients[int(rng.integers(len(self.patients)))]
        index = self._choose_slice(patient, rng)
        grid = self.grid
        depth, height, width = patient.volume.voxels.shape
        spacing_z, spacing_y, spacing_x = patient.volume.spacing_mm
        scale = np.exp(rng.uniform(-amount.scale, amount.scale)) * np.exp(rng.uniform(-0.05, 0.05, size=2))
        shift = rng.uniform(-amount.shift_mm, amount.shift_mm, size=2)
        mirror = rng.random() < amount.mirror_probability
        rows_mm = patient.centre_mm[0] + shift[0] + scale[0] * grid_mm(grid)
        columns_mm = patient.centre_mm[1] + shift[1] + scale[1] * grid_mm(grid) * (-1 if mirror else 1)
        kernel_mm = grid.kernel_mm * rng.uniform(0.75, 1.5)
        native_y, native_x = axis_mm(height, spacing_y), axis_mm(width, spacing_x)

        first, last = 0, depth
        if rng.random() < amount.volume_end_probability:
            cut = int(rng.integers(0, max(1, round(12.0 / spacing_z))))
            first, last = (max(0, index - cut), depth) if rng.random() < 0.5 else (0, min(depth, index + cut + 1))
        slices_mm = axis_mm(depth, spacing_z)[first:last]
        stretch = 1 + rng.uniform(-amount.slice_scale, amount.slice_scale)
        wanted_mm = index * spacing_z + stretch * np.asarray(grid.offsets_mm)
        slice_kernel_mm = grid.slice_kernel_mm * rng.uniform(0.7, 1.7)
        neighbours = resampling_matrix(slices_mm, wanted_mm, slice_kernel_mm, clamp=True)
        used = np.flatnonzero(neighbours.any(axis=0))
        begin, end = int(used[0]), int(used[-1]) + 1
        return _Sample(
            slices=patient.volume.voxels[first + begin : first + end],
            rows=resampling_matrix(native_y, rows_mm, kernel_mm),
            columns=resampling_matrix(native_x, columns_mm, kernel_mm),
            neighbours=neighbours[:, begin:end],
            targets=self._targets(patient.labels[index], native_y, rows_mm, native_x, columns_mm, mirror),
        )

    def _choose_slice(self, patient: Patient, rng: np.random.Generator) -> int:
        depth = len(patient.labels)
        kind = rng.random()
        if patient.gland_slices and kind < self.segment.gland_share:
            return int(rng.choice(patient.gland_slices))
        if patient.gland_slices and kind < self.segment.gland_share + self.segment.border_share:
            beyond = int(rng.integers(1, 2 + round(self.segment.border_mm / patient.volume.spacing_mm[0])))
            index = patient.gland_slices[0] - beyond if rng.random() < 0.5 else patient.gland_slices[-1] + beyond
            return int(np.clip(index, 0, depth - 1))
        return int(rng.integers(depth))

    def _targets(
        self,
        labels: Mask,
        native_y: Positions,
        rows_mm: Positions,
        native_x: Positions,
        columns_mm: Positions,
        mirror: bool,
    ) -> Matrix:
        classes, size = len(self.mirrored_labels), self.grid.size
        targets = np.zeros((classes, size, size), np.float32)
        if labels.any():
            rows = resampling_matrix(native_y, rows_mm, 0.0)
            columns = resampling_matrix(native_x, columns_mm, 0.0)
            for value in range(1, classes):
                becomes = self.mirrored_labels[value] if mirror else value
                targets[becomes] = rows @ (labels == value).astype(np.float32) @ columns.T
        targets[0] = 1.0 - targets[1:].sum(axis=0)
        return targets


def _collate(samples: list[_Sample]) -> Batch:
    """Stack samples of different native sizes: missing slices, rows and columns are air of weight 0."""
    count = len(samples)
    depth, height, width = (max(sample.slices.shape[axis] for sample in samples) for axis in range(3))
    size, channels = samples[0].rows.shape[0], samples[0].neighbours.shape[0]
    slices = np.full((count, depth, height, width), AIR_HU, np.float32)
    rows = np.zeros((count, size, height), np.float32)
    columns = np.zeros((count, size, width), np.float32)
    neighbours = np.zeros((count, 1, channels, depth), np.float32)
    for index, sample in enumerate(samples):
        d, h, w = sample.slices.shape
        slices[index, :d, :h, :w] = sample.slices
        rows[index, :, :h], columns[index, :, :w] = sample.rows, sample.columns
        neighbours[index, 0, :, :d] = sample.neighbours
    targets = np.stack([sample.targets for sample in samples])
    return Batch(*(torch.from_numpy(array) for array in (slices, rows, columns, neighbours, targets)))
