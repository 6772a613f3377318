"""The network of `teacher.py`: a residual 3-D U-Net with deep supervision, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (24, 48, 96, 160)
"""Channels of each level; every level has half the resolution of the one before."""
SUPERVISED = 3
"""Levels of the decoder whose scores enter the loss."""


class InstanceNorm(nn.Module):
    """Instance norm with scale and offset of one image, (1, C, D, H, W).

    It is computed as batch norm of a batch of one, which is the same and keeps channels last on a CPU: torch's own
    instance norm copies there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, image: Tensor) -> Tensor:
        """The normalised image, of the same shape."""
        assert len(image) == 1
        return F.batch_norm(image, None, None, self.weight, self.bias, training=True)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution of 3 x 3 x 3 and its norm."""
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), InstanceNorm(outputs))


class Block(nn.Module):
    """Two convolutions beside a way around them, which has a convolution of its own if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = convolution(inputs, outputs, stride), convolution(outputs, outputs)
        around: list[nn.Module] = [nn.AvgPool3d(stride)] if stride > 1 else []
        if inputs != outputs:
            around += [nn.Conv3d(inputs, outputs, 1, bias=False), InstanceNorm(outputs)]
        self.around = nn.Sequential(*around)

    def forward(self, image: Tensor) -> Tensor:
        """(1, inputs, D, H, W) -> (1, outputs, D / stride, H / stride, W / stride)."""
        within = F.leaky_relu(self.first(image), 0.01)
        return F.leaky_relu(self.second(within) + self.around(image), 0.01)


class TeacherNet(nn.Module):
    """Residual encoder of one block a level, two on the lower levels, and a decoder of one convolution a level.

    Args:
        classes: number of labels with background.
        widths: see `WIDTHS`.
    """

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = convolution(1, widths[0])
        self.encoder = nn.ModuleList([Block(widths[0], widths[0])])
        for above, below in pairwise(widths):
            self.encoder.append(nn.Sequential(Block(above, below, stride=2), Block(below, below)))
        self.up, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for above, below in reversed(list(pairwise(widths))):
            self.up.append(nn.ConvTranspose3d(below, above, 2, 2, bias=False))
            self.decoder.append(convolution(2 * above, above))
            self.heads.append(nn.Conv3d(above, classes, 1))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Scores of one image.

        Args:
            image: (1, 1, D, H, W), in 0..1; sides are multiples of 8, or 2 to the number of lower levels.

        Returns:
            Logits (1, classes, D, H, W), then those of half the resolution and so on, `SUPERVISED` at most.
        """
        image = F.leaky_relu(self.stem(image), 0.01)
        skipped = []
        for block in self.encoder:
            image = block(image)
            skipped.append(image)
        skipped.pop()
        scores: list[Tensor] = []
        for up, decode, head in zip(self.up, self.decoder, self.heads, strict=True):
            image = F.leaky_relu(decode(torch.cat([up(image), skipped.pop()], dim=1)), 0.01)
            scores.insert(0, head(image))
        return scores[:SUPERVISED]


def loss_of(scores: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy plus the mean of 1 - Dice over the glands; each supervised level counts half the one before.

    Args:
        scores: see `TeacherNet.forward`.
        targets: shares of the labels (1, classes, D, H, W), which sum to 1 in every voxel.
    """
    total, weights = targets.new_zeros(()), 0.0
    for level, logits in enumerate(each.float() for each in scores):
        if level:
            targets = F.avg_pool3d(targets, 2)
        entropy = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        found, wanted = logits.softmax(dim=1)[:, 1:], targets[:, 1:]
        shared = (found * wanted).sum(dim=(2, 3, 4))
        dice = (2 * shared + 1) / (found.sum(dim=(2, 3, 4)) + wanted.sum(dim=(2, 3, 4)) + 1)
        total = total + 0.5**level * (entropy + (1 - dice).mean())
        weights += 0.5**level
    return total / weights
