"""Draws training slices: patient, slice, and position of the model's grid.

Shift, scale, mirroring and resolution are part of the resampling matrices, so they cost nothing; the labels left and
right of a mirrored scan are swapped in the same step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from parotid_seg.scan.grid import Matrix, axis_mm, grid_mm, resampling_matrix, used
from parotid_seg.train.config import AugmentConfig, SegmentConfig, TrainConfig
from parotid_seg.train.data.patients import SHARE_OF_ALL, Patient
from parotid_seg.train.network import ToGrid

Positions = NDArray[np.float64]
B = TypeVar("B", bound="tuple[Tensor, ...]")


class Batch(NamedTuple):
    """Slices of several patients on the model's grid.

    Attributes:
        images: (N, C x K, G, G) in 0..1, see `network.ToGrid`.
        targets: (N, classes, G, G), the share of each label in each pixel; (N, classes + 1, G, G) for a data set with
            the label "ignore", with the unlabelled share last. The sum is 1.
        contoured: (N, classes) bool, whether a structure is contoured wherever it is in the image.
    """

    images: Tensor
    targets: Tensor
    contoured: Tensor


class View(NamedTuple):
    """One slice on the model's grid.

    Attributes:
        image: (K, G, G) in 0..1.
        rows_mm, columns_mm: (G,) positions of the image's rows and columns in the slice.
        mirrored: whether its columns run opposite to the scan's.
    """

    image: Tensor
    rows_mm: Positions
    columns_mm: Positions
    mirrored: bool


class Sampler(Dataset[B]):
    """Draws batches by number; the same seed and number give the same batch in any process.

    Args:
        patients: the patients, drawn with equal probability.
        config: grid, window and seed.
        places: the positions of the batch that this process draws.
    """

    def __init__(self, patients: Sequence[Patient], config: TrainConfig, places: range) -> None:
        self.patients, self.config, self.places = patients, config, places
        self.to_grid = ToGrid()

    def __getitem__(self, number: int) -> B:
        """Batch number `number` of a run."""
        drawn = [self._draw(np.random.default_rng((self.config.seed, number, place))) for place in self.places]
        return type(drawn[0])(*map(torch.stack, zip(*drawn, strict=True)))

    def _draw(self, rng: np.random.Generator) -> B:
        """One item of a batch."""
        raise NotImplementedError

    def batches(self, numbers: Iterable[int], workers: int) -> Iterable[B]:
        """These batches in order, drawn in advance by other processes."""
        return DataLoader(self, batch_size=None, sampler=numbers, num_workers=workers)

    def _patient(self, rng: np.random.Generator) -> Patient:
        return self.patients[int(rng.integers(len(self.patients)))]

    def _view(
        self, patient: Patient, index: int, amount: AugmentConfig, mirrored: bool, rng: np.random.Generator
    ) -> View:
        """One slice on the grid, shifted, scaled, cropped and truncated by random amounts."""
        grid = self.config.grid
        depth, height, width = patient.volume.shape
        spacing_z, spacing_y, spacing_x = patient.volume.spacing_mm
        crop = rng.uniform(amount.crop, 1.0)
        scale = crop * np.exp(rng.uniform(-amount.scale, amount.scale)) * np.exp(rng.uniform(-0.05, 0.05, size=2))
        reach_mm = amount.shift_mm + (1 - crop) * grid.size * grid.spacing_mm / 2
        shift = rng.uniform(-reach_mm, reach_mm, size=2)
        rows_mm = patient.centre_mm[0] + shift[0] + scale[0] * grid_mm(grid)
        columns_mm = patient.centre_mm[1] + shift[1] + scale[1] * grid_mm(grid) * (-1 if mirrored else 1)
        kernel_mm = grid.kernel_mm * rng.uniform(0.75, 1.5)

        first, last = 0, depth
        if rng.random() < amount.volume_end_probability:
            cut = int(rng.integers(0, max(1, round(12.0 / spacing_z))))
            first, last = (max(0, index - cut), depth) if rng.random() < 0.5 else (0, min(depth, index + cut + 1))
        slices_mm = axis_mm(depth, spacing_z)[first:last]
        stretch = 1 + rng.uniform(-amount.slice_scale, amount.slice_scale)
        wanted_mm = index * spacing_z + stretch * np.asarray(grid.offsets_mm)
        slice_kernel_mm = grid.slice_kernel_mm * rng.uniform(0.7, 1.7)
        neighbours = resampling_matrix(slices_mm, wanted_mm, slice_kernel_mm, clamp=True)
        rows = resampling_matrix(axis_mm(height, spacing_y), rows_mm, kernel_mm)
        columns = resampling_matrix(axis_mm(width, spacing_x), columns_mm, kernel_mm)
        used_ranges = [used(weights) for weights in (neighbours, rows, columns)]  # most of a slice is outside the grid
        voxels = patient.volume.voxels[:, first:last][(slice(None), *used_ranges)]
        image = self.to_grid(
            torch.from_numpy(voxels.astype(np.float32)),
            torch.from_numpy(patient.windows),
            torch.from_numpy(rows[:, used_ranges[1]]),
            torch.from_numpy(columns[:, used_ranges[2]]),
            torch.from_numpy(neighbours[None, :, used_ranges[0]]),
        )[0]
        return View(image, rows_mm, columns_mm, mirrored)


class SliceSampler(Sampler[Batch]):
    """Labelled slices for a supervised stage.

    Args:
        segment: the frequencies of kinds of slices.
        mirrored_labels: for each label the one that it becomes in a mirrored scan.
        amount: how much a slice is shifted, scaled and truncated.
        partly_contoured: whether a structure that is missing in a patient's label map may be in the scan.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        config: TrainConfig,
        places: range,
        segment: SegmentConfig,
        mirrored_labels: tuple[int, ...],
        amount: AugmentConfig,
        partly_contoured: bool = False,
    ) -> None:
        super().__init__(patients, config, places)
        self.segment, self.mirrored_labels, self.amount = segment, mirrored_labels, amount
        self.partly_contoured = partly_contoured

    def _draw(self, rng: np.random.Generator) -> Batch:
        patient = self._patient(rng)
        index = self._choose_slice(patient, rng)
        view = self._view(patient, index, self.amount, bool(rng.random() < self.amount.mirror_probability), rng)
        targets = torch.from_numpy(self._targets(patient, index, view))
        return Batch(view.image, targets, self._contoured(patient, view.mirrored))

    def _choose_slice(self, patient: Patient, rng: np.random.Generator) -> int:
        structures = [slices for slices in patient.shown_in if slices]
        kind = rng.random()
        if not structures or kind >= self.segment.gland_share + self.segment.border_share:
            return patient.known_slices[int(rng.integers(len(patient.known_slices)))]
        slices = structures[int(rng.integers(len(structures)))]
        if kind < self.segment.gland_share:
            return int(rng.choice(slices))
        beyond = int(rng.integers(1, 2 + round(self.segment.border_mm / patient.volume.spacing_mm[0])))
        index = slices[0] - beyond if rng.random() < 0.5 else slices[-1] + beyond
        return min(patient.known_slices, key=lambda known: abs(known - index))

    def _contoured(self, patient: Patient, mirror: bool) -> Tensor:
        contoured = torch.ones(len(self.mirrored_labels), dtype=torch.bool)
        if self.partly_contoured:
            for value in range(1, len(contoured)):
                contoured[self.mirrored_labels[value] if mirror else value] = bool(patient.shown_in[value])
        return contoured

    def _targets(self, patient: Patient, index: int, view: View) -> Matrix:
        _, height, width = patient.volume.shape
        _, spacing_y, spacing_x = patient.volume.spacing_mm
        classes, size = len(self.mirrored_labels), self.config.grid.size
        places: list[tuple[int, NDArray[Any]]] = [
            (self.mirrored_labels[value] if view.mirrored else value, self._share_of(patient, index, value))
            for value in range(1, classes)
        ]
        if patient.ignored is not None:
            places.append((classes, patient.ignored[index]))
        targets = np.zeros((classes + (patient.ignored is not None), size, size), np.float32)
        if any(inside.any() for _, inside in places):
            rows = torch.from_numpy(resampling_matrix(axis_mm(height, spacing_y), view.rows_mm, 0.0))
            columns = torch.from_numpy(resampling_matrix(axis_mm(width, spacing_x), view.columns_mm, 0.0))
            for becomes, inside in places:  # by torch, which has one thread here: NumPy would take every core
                targets[becomes] = (rows @ torch.from_numpy(inside.astype(np.float32)) @ columns.T).numpy()
        targets[0] = 1.0 - targets[1:].sum(axis=0)
        return targets

    def _share_of(self, patient: Patient, index: int, value: int) -> NDArray[np.float32]:
        """Share (H, W) of a structure in each voxel of a slice, by the label map, soft labels or both."""
        drawn: NDArray[np.float32] = (patient.labels[index] == value).astype(np.float32)
        if patient.soft is None:
            return drawn
        soft: NDArray[np.float32] = patient.soft[value - 1, index].astype(np.float32) / SHARE_OF_ALL
        share = self.segment.soft_share if patient.contoured else 1.0
        return (1 - share) * drawn + share * soft


class PairBatch(NamedTuple):
    """Two views of the same slices of several patients.

    Attributes:
        first, second: (N, K, G, G) in 0..1.
        first_mm, second_mm: (N, 2, G, G), row and column position of each pixel in its slice, from the body's centre.
    """

    first: Tensor
    second: Tensor
    first_mm: Tensor
    second_mm: Tensor


class PairSampler(Sampler[PairBatch]):
    """Slices that show tissue, with or without labels, each in two views.

    Both views are mirrored or neither is: a mirrored left gland looks like a right one, and must not be matched with
    it.

    Args:
        first, second: how much a slice is shifted, scaled and truncated in each view.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        config: TrainConfig,
        places: range,
        first: AugmentConfig,
        second: AugmentConfig,
    ) -> None:
        super().__init__(patients, config, places)
        self.first, self.second = first, second

    def _draw(self, rng: np.random.Generator) -> PairBatch:
        patient = self._patient(rng)
        index = int(rng.choice(patient.body_slices))
        mirrored = bool(rng.random() < self.first.mirror_probability)
        views = [self._view(patient, index, amount, mirrored, rng) for amount in (self.first, self.second)]
        positions_mm = [
            torch.from_numpy(
                np.stack(
                    np.meshgrid(
                        each.rows_mm - patient.centre_mm[0], each.columns_mm - patient.centre_mm[1], indexing="ij"
                    )
                ).astype(np.float32)
            )
            for each in views
        ]
        return PairBatch(*(each.image for each in views), *positions_mm)
