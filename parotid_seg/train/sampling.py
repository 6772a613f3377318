"""Drawing training slices: which slice of which patient, and where the model's grid lies over it.

Shift, scale, mirroring and resolution are part of the resampling matrices, so they cost nothing and a mirrored scan
swaps left and right labels in the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from parotid_seg.scan.grid import Matrix, axis_mm, grid_mm, resampling_matrix
from parotid_seg.scan.volume import Mask
from parotid_seg.train.config import AugmentConfig, TrainConfig
from parotid_seg.train.dataset import Patient
from parotid_seg.train.network import ToGrid

Positions = NDArray[np.float64]


class Batch(NamedTuple):
    """Slices of several patients on the model's grid.

    Attributes:
        images: (N, C x K, G, G) in 0..1, see `network.ToGrid`.
        targets: (N, classes, G, G), the share of each label in each pixel.
        contoured: (N, classes) bool, whether a structure would be in the targets where it is in the image.
    """

    images: Tensor
    targets: Tensor
    contoured: Tensor


class SliceSampler(Dataset[Batch]):
    """Draws batches of slices by number; the same seed and number give the same batch in any process.

    Args:
        patients: where to draw from, each as often as any other.
        to_grid: the model's first layers.
        mirrored_labels: for each label the one it becomes in a mirrored scan.
        amount: how much a slice is moved, scaled and cut.
        partly_contoured: whether a structure that a patient's label map does not show at all may be in the scan.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        to_grid: ToGrid,
        config: TrainConfig,
        mirrored_labels: tuple[int, ...],
        amount: AugmentConfig,
        partly_contoured: bool = False,
    ) -> None:
        self.patients, self.to_grid, self.mirrored_labels, self.amount = patients, to_grid, mirrored_labels, amount
        self.partly_contoured = partly_contoured
        self.grid, self.segment, self.seed = config.grid, config.segment, config.seed

    def __getitem__(self, number: int) -> Batch:
        """Batch number `number` of a run."""
        rng = np.random.default_rng((self.seed, number))
        drawn = zip(*(self._draw(rng) for _ in range(self.segment.batch_size)), strict=True)
        return Batch(*map(torch.stack, drawn))

    def batches(self, numbers: Iterable[int], workers: int) -> Iterable[Batch]:
        """These batches in order, drawn ahead by other processes."""
        return DataLoader(self, batch_size=None, sampler=numbers, num_workers=workers)

    def _draw(self, rng: np.random.Generator) -> Batch:
        """One slice: images (C x K, G, G), targets (classes, G, G), contoured (classes,)."""
        amount = self.amount
        patient = self.patients[int(rng.integers(len(self.patients)))]
        index = self._choose_slice(patient, rng)
        grid = self.grid
        depth, height, width = patient.volume.shape
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
        image = self.to_grid(
            torch.from_numpy(patient.volume.voxels[:, first + begin : first + end].astype(np.float32)),
            torch.from_numpy(patient.windows),
            torch.from_numpy(resampling_matrix(native_y, rows_mm, kernel_mm)),
            torch.from_numpy(resampling_matrix(native_x, columns_mm, kernel_mm)),
            torch.from_numpy(neighbours[None, :, begin:end]),
        )[0]
        targets = self._targets(patient.labels[index], native_y, rows_mm, native_x, columns_mm, mirror)
        return Batch(image, torch.from_numpy(targets), self._contoured(patient, mirror))

    def _choose_slice(self, patient: Patient, rng: np.random.Generator) -> int:
        depth = len(patient.labels)
        structures = [slices for slices in patient.shown_in if slices]
        kind = rng.random()
        if not structures or kind >= self.segment.gland_share + self.segment.border_share:
            return int(rng.integers(depth))
        slices = structures[int(rng.integers(len(structures)))]
        if kind < self.segment.gland_share:
            return int(rng.choice(slices))
        beyond = int(rng.integers(1, 2 + round(self.segment.border_mm / patient.volume.spacing_mm[0])))
        index = slices[0] - beyond if rng.random() < 0.5 else slices[-1] + beyond
        return int(np.clip(index, 0, depth - 1))

    def _contoured(self, patient: Patient, mirror: bool) -> Tensor:
        contoured = torch.ones(len(self.mirrored_labels), dtype=torch.bool)
        if self.partly_contoured:
            for value in range(1, len(contoured)):
                contoured[self.mirrored_labels[value] if mirror else value] = bool(patient.shown_in[value])
        return contoured

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
