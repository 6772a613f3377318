"""Augmentation of images on the model's grid, with variations that a training set lacks.

The scans of most data sets are similar: cropped at the skin, with one scanner's noise, the head well inside the field
of view. Augmentation rotates, warps and blurs them, adds noise, changes the intensity scale, crops them to a round
field of view, and adds couches, head rests and bolus. Spatial changes are the same in every channel; blur, noise and
intensity are drawn for each channel (modality) separately; couches and bolus are added to CT only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from parotid_seg.contract import Grid
from parotid_seg.scan.intensity import Window, is_ct
from parotid_seg.train.config import AugmentConfig

WINDOW_WITHOUT_UNITS_HU = 500.0
"""Assumed width in HU of the window of channels other than CT, for amounts in HU."""
BODY = 0.1
"""Images in 0..1 show the body above this."""
BOLUS_HU = (-100.0, 50.0)
"""Range of a bolus's intensity: soft silicone, gel and wax."""
BOLUS_BRIDGES_MM = 20.0
"""Height of the folds of skin, such as that behind an ear, that a bolus fills."""


class Draws:
    """Random numbers for one process's part of a batch, equal to those if one process drew for the whole batch.

    Args:
        generator: in the same state in every process; its device is that of the numbers.
        rank, count: index of this process, and number of processes.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, count: int = 1) -> None:
        self.generator, self.rank, self.count = generator, rank, count

    def uniform(self, count: int, *shape: int) -> Tensor:
        """Uniform numbers (count, *shape) in 0..1."""
        return self._part(torch.rand, count, shape)

    def normal(self, count: int, *shape: int) -> Tensor:
        """Normal numbers (count, *shape) with mean 0 and variance 1."""
        return self._part(torch.randn, count, shape)

    def _part(self, draw: Callable[..., Tensor], count: int, shape: tuple[int, ...]) -> Tensor:
        drawn = draw(self.count * count, *shape, generator=self.generator, device=self.generator.device)
        return drawn[self.rank * count : (self.rank + 1) * count]


class Augmenter:
    """Applies `AugmentConfig` to batches; the result depends only on the draws.

    Args:
        channels: names of the channels; each has the same number of images (K) in the batches.
        window_hu: intensities that are 0 and 1 in CT images.
    """

    def __init__(self, config: AugmentConfig, grid: Grid, channels: Sequence[str], window_hu: Window) -> None:
        self.config, self.grid, self.channels = config, grid, channels
        hu_range = window_hu[1] - window_hu[0]
        self.bolus_low, self.bolus_high = ((hu - window_hu[0]) / hu_range for hu in BOLUS_HU)
        self.hu_ranges = [hu_range if is_ct(channel) else WINDOW_WITHOUT_UNITS_HU for channel in channels]

    def __call__(self, images: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Augment images (N, C x K, G, G) in 0..1 and targets (N, classes, G, G), with the same spatial changes."""
        images, targets = self._warp(images, targets, draws)
        if is_ct(self.channels[0]):
            first, others = images.tensor_split([images.shape[1] // len(self.channels)], dim=1)
            if self.config.bolus_probability:
                first = self._bolus(first, draws)
            images = torch.cat([self._couch(first, draws), others], dim=1)
        images = self._field_of_view(images, draws)
        by_channel = images.reshape(len(images) * len(self.channels), -1, *images.shape[2:])
        by_channel = self._intensity(self._blur(by_channel, draws), draws)
        return by_channel.view_as(images), targets

    def _uniform(self, images: Tensor, low: float, high: float, draws: Draws) -> Tensor:
        """One number per image, shaped (N, 1, 1, 1)."""
        drawn = draws.uniform(len(images), 1, 1, 1)
        return low + (high - low) * drawn

    def _warp(self, images: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        count, size = len(images), images.shape[-1]
        angle = self._uniform(images, -1, 1, draws)[:, 0, 0, 0] * math.radians(self.config.rotation_deg)
        cosine, sine = angle.cos(), angle.sin()
        zero = torch.zeros_like(angle)
        rotation = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=-1).view(count, 2, 3)
        positions = F.affine_grid(rotation, [count, 1, size, size], align_corners=False)
        coarse = draws.normal(count, 2, 5, 5)
        coarse = coarse * self._uniform(images, 0, 1, draws) * self.config.warp_mm / 2
        bend_mm = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
        positions = positions + bend_mm.permute(0, 2, 3, 1) * 2 / (size * self.grid.spacing_mm)
        joined = F.grid_sample(torch.cat([images, targets[:, 1:]], dim=1), positions, align_corners=False)
        images, structures = joined[:, : images.shape[1]], joined[:, images.shape[1] :]
        background = 1 - structures.sum(dim=1, keepdim=True)
        return images, torch.cat([background, structures], dim=1)

    def _couch(self, images: Tensor, draws: Draws) -> Tensor:
        """Paint a curved support behind the body: air below the last body row of each column, up to a thickness."""
        size = images.shape[-1]
        rows = torch.arange(size, device=images.device).view(1, 1, size, 1)
        columns = torch.arange(size, device=images.device).view(1, 1, 1, size)
        body = images.amax(dim=1, keepdim=True) > BODY
        last_row = torch.where(body, rows, -1).amax(dim=2, keepdim=True)
        lowest = last_row.amax(dim=3, keepdim=True)
        px_per_mm = 1 / self.grid.spacing_mm
        follows = self._uniform(images, 0, 1, draws) < 0.5
        middle = size * self._uniform(images, 0.4, 0.6, draws)
        curve = self._uniform(images, -0.012, 0.003, draws) * (columns - middle) ** 2
        flat = lowest + curve
        hugging = torch.where(last_row >= 0, last_row, lowest).float()
        top = torch.where(follows, hugging, flat) + px_per_mm * self._uniform(images, -6, 25, draws)
        thickness = px_per_mm * self._uniform(images, 2, 50, draws)
        wall = px_per_mm * self._uniform(images, 2, 6, draws)
        inside = (rows > top) & (rows < top + thickness) & (rows > last_row)
        shell = inside & ((rows < top + wall) | (rows > top + thickness - wall))
        density = self._uniform(images, 0.0, 0.9, draws)
        filling = density * (self._uniform(images, 0, 1, draws) < 0.3)
        with_couch = self._uniform(images, 0, 1, draws) < self.config.couch_probability
        support = torch.where(shell, density, torch.where(inside, filling, torch.zeros_like(density)))
        return torch.maximum(images, support * with_couch)

    def _bolus(self, images: Tensor, draws: Draws) -> Tensor:
        """Paint material that touches the skin of one cheek or both, over some of the rows and slices.

        From the skin of each row it reaches up to 20 mm beyond the outermost skin of the rows near it.
        """
        spacing = self.grid.spacing_mm
        drawn = [
            self._uniform(images, -40, 20, draws) / spacing,
            self._uniform(images, 15, 50, draws) / spacing,
            self._uniform(images, -50, 50, draws),
            self._uniform(images, 15, 60, draws),
        ]
        painted = self._uniform(images, 0, 1, draws) < self.config.bolus_probability
        drawn.append(self._uniform(images, 3, 20, draws) / spacing)
        drawn.append(self._uniform(images, self.bolus_low, self.bolus_high, draws))
        drawn.append(self._uniform(images, 0, 3, draws))
        if images.is_cuda:  # which images are painted is not asked for, as the answer would wait for all work before it
            return torch.where(painted, self._with_bolus(images, *drawn), images)
        which = painted.flatten().nonzero().flatten()
        if not len(which):
            return images
        return images.index_copy(0, which, self._with_bolus(images[which], *(each[which] for each in drawn)))

    def _with_bolus(
        self,
        images: Tensor,
        below_middle: Tensor,
        half_rows: Tensor,
        middle_mm: Tensor,
        half_mm: Tensor,
        thickness: Tensor,
        density: Tensor,
        side: Tensor,
    ) -> Tensor:
        """Images (N, K, G, G) with bolus.

        Args:
            images: in 0..1.
            below_middle, half_rows: (N, 1, 1, 1), the rows beside which it lies: their middle, counted from that of
                the body, and half of their number.
            middle_mm, half_mm: the same of the slices, counted from the middle one, in mm.
            thickness: in pixels.
            density: in 0..1.
            side: up to 1 at the first columns, from 2 on at the last ones, between them at both.
        """
        size = images.shape[-1]
        rows = torch.arange(size, device=images.device).view(1, 1, size, 1)
        slices_mm = torch.tensor(self.grid.offsets_mm, device=images.device).view(1, -1, 1, 1)
        body_rows = (images > BODY).any(dim=3, keepdim=True)
        highest = torch.where(body_rows, rows, size).amin(dim=(1, 2), keepdim=True)
        lowest = torch.where(body_rows, rows, -1).amax(dim=(1, 2), keepdim=True)
        inside = (rows - (highest + lowest) / 2 - below_middle).abs() < half_rows
        inside = inside & ((slices_mm - middle_mm).abs() < half_mm)
        for flipped, chosen in ((False, side < 2), (True, side >= 1)):
            seen = images.flip(-1) if flipped else images
            share = self._share_beside_skin(seen > BODY, thickness) * (inside & chosen)
            with_bolus = seen * (1 - share) + density * share
            images = with_bolus.flip(-1) if flipped else with_bolus
        return images

    def _share_beside_skin(self, body: Tensor, thickness: Tensor) -> Tensor:
        """Share (N, K, G, G) of each pixel that material before the first body pixel of each row takes.

        Args:
            body: (N, K, G, G) bool.
            thickness: (N, 1, 1, 1) in pixels.
        """
        columns = torch.arange(body.shape[-1], device=body.device).view(1, 1, 1, -1)
        skin = torch.where(body, columns, body.shape[-1]).amin(dim=3).float()
        reach = round(BOLUS_BRIDGES_MM / 2 / self.grid.spacing_mm)
        outermost = -F.max_pool1d(-skin, 2 * reach + 1, stride=1, padding=reach)
        share = (columns + 1 - (outermost[..., None] - thickness)).clamp(0, 1)
        return share * (columns < skin[..., None]) * body.any(dim=3, keepdim=True)

    def _field_of_view(self, images: Tensor, draws: Draws) -> Tensor:
        """Crop to a round field of view with a shifted centre."""
        size = images.shape[-1]
        axis = (torch.arange(size, device=images.device) - (size - 1) / 2) * self.grid.spacing_mm
        off_y, off_x = self._uniform(images, -25, 25, draws), self._uniform(images, -25, 25, draws)
        radius = self._uniform(images, 105, 160, draws)
        inside = (axis.view(1, 1, -1, 1) - off_y) ** 2 + (axis.view(1, 1, 1, -1) - off_x) ** 2 < radius**2
        untouched = self._uniform(images, 0, 1, draws) >= self.config.field_of_view_probability
        return images * (inside | untouched)

    def _blur(self, images: Tensor, draws: Draws) -> Tensor:
        """Gaussian blur of half of the images (N x C, K, G, G), each with its own width."""
        count, channels, size, _ = images.shape
        sigma = self._uniform(images, 0.3, self.config.blur_px, draws)[:, :, 0]
        taps = torch.arange(-3, 4, device=images.device).float()
        kernel = torch.exp(-(taps**2) / (2 * sigma**2))
        chosen = self._uniform(images, 0, 1, draws)[:, :, 0] < 0.5
        kernel = torch.where(chosen, kernel / kernel.sum(-1, keepdim=True), (taps == 0).float())
        weights = kernel.repeat_interleave(channels, dim=0)
        flat = images.reshape(1, count * channels, size, size)
        flat = F.conv2d(flat, weights[:, :, None, :], padding=(0, 3), groups=count * channels)
        flat = F.conv2d(flat, weights[:, :, :, None], padding=(3, 0), groups=count * channels)
        return flat.view_as(images)

    def _intensity(self, images: Tensor, draws: Draws) -> Tensor:
        """Contrast, offset, gamma and noise of tissue; air stays air. Images (N x C, K, G, G)."""
        hu_range = torch.tensor(self.hu_ranges, device=images.device).repeat(len(images) // len(self.channels))
        hu_range = hu_range.view(-1, 1, 1, 1)
        tissue = (images > 0.02).float()
        contrast = 1 + self.config.contrast * self._uniform(images, -1, 1, draws)
        offset = self.config.offset_hu / hu_range * self._uniform(images, -1, 1, draws)
        gamma = torch.exp(self._uniform(images, -0.2, 0.2, draws))
        changed = ((images - 0.5) * contrast + 0.5 + offset).clamp(0, 1) ** gamma
        noise = draws.normal(*images.shape)
        spread = self._uniform(images, -1, 1, draws).clamp(min=0) * self.config.noise_hu / hu_range
        return ((changed + noise * spread) * tissue).clamp(0, 1)
