"""The network: raw intensities in, labels out, a compact Swin-Unet between.

`ParotidNet` is the exported model. Its first layers resample native voxels to the model's grid, its last ones resample
the scores to native pixels, so that training and deployment run the same preprocessing.

Swin: Liu et al., ICCV 2021 (arXiv 2103.14030). Swin-Unet: Cao et al., 2021 (arXiv 2105.05537). The encoder is timm's;
the decoder mirrors its stages, as in Swin-Unet. In place of one four-fold patch expansion at the end, two convolutional
stages with skips from a convolutional stem recover the outline's detail.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

from parotid_seg.contract import Grid
from parotid_seg.train.config import NetworkConfig


class ToGrid(nn.Module):
    """Windowing, in-plane resampling and neighbour stacking.

    The lower end of a window is the value of air: voxels outside a scan are 0.
    """

    def forward(self, slices: Tensor, window: Tensor, rows: Tensor, columns: Tensor, neighbours: Tensor) -> Tensor:
        """(C, D, H, W), (C, 2), (G, H), (G, W), (B, K, D) -> (B, C x K, G, G) in 0..1, all K of a channel together."""
        low, high = window[:, 0, None, None, None], window[:, 1, None, None, None]
        windowed = (slices.float().clamp(low, high) - low) / (high - low)
        in_plane = rows @ (windowed @ columns.T)
        stacked = neighbours.flatten(0, 1) @ in_plane.flatten(2)
        by_sample = stacked.reshape(len(slices), *neighbours.shape[:2], *in_plane.shape[2:]).transpose(0, 1)
        return by_sample.flatten(1, 2)


class FromGrid(nn.Module):
    """Resamples scores on the model's grid to native voxels. Outside the grid all scores are 0."""

    def forward(self, logits: Tensor, slices_back: Tensor, rows_back: Tensor, columns_back: Tensor) -> Tensor:
        """(B, C, G, G), (S, B), (H, G), (W, G) -> (S, C, H, W)."""
        mixed = slices_back @ logits.float().flatten(1)
        return rows_back @ (mixed.reshape(-1, *logits.shape[1:]) @ columns_back.T)


class ConvBlock(nn.Sequential):
    """3 x 3 convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class PatchExpand(nn.Module):
    """Doubles the resolution by a linear layer and a pixel shuffle; tokens (B, h, w, C) -> (B, 2h, 2w, C')."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels_in, 4 * channels_out, bias=False)
        self.norm = nn.LayerNorm(channels_out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Expand tokens."""
        expanded = F.pixel_shuffle(self.expand(tokens).permute(0, 3, 1, 2), 2)
        normed: Tensor = self.norm(expanded.permute(0, 2, 3, 1))
        return normed


class DecoderStage(nn.Module):
    """Expands, joins the encoder's skip, and applies as many Swin blocks as the encoder stage of this width."""

    def __init__(self, dim: int, resolution: int, depth: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.expand = PatchExpand(2 * dim, dim)
        self.join = nn.Linear(2 * dim, dim)
        self.blocks = nn.Sequential(
            *(
                SwinTransformerBlock(
                    dim,
                    (resolution, resolution),
                    num_heads=heads,
                    window_size=window,
                    shift_size=0 if index % 2 == 0 else window // 2,
                    drop_path=drop_path,
                )
                for index in range(depth)
            )
        )

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:
        """(B, h, w, 2C) and the encoder's (B, 2h, 2w, C) -> (B, 2h, 2w, C)."""
        joined: Tensor = self.join(torch.cat([self.expand(tokens), skip], dim=-1))
        return self.blocks(joined)  # type: ignore[no-any-return]


class SwinUnet(nn.Module):
    """Swin encoder, mirrored Swin decoder, convolutional stem and head; (B, K, G, G) -> logits (B, C, G, G)."""

    def __init__(self, config: NetworkConfig, size: int, channels_in: int, classes: int) -> None:
        super().__init__()
        self.encoder = SwinTransformer(
            img_size=size,
            patch_size=4,
            in_chans=channels_in,
            num_classes=0,
            embed_dim=config.embed_dim,
            depths=config.depths,
            num_heads=config.heads,
            window_size=config.window,
            drop_path_rate=config.drop_path,
        )
        self.encoder.norm = nn.Identity()
        stages = len(config.depths)
        self.widths = dims = [config.embed_dim * 2**stage for stage in range(stages)]
        self.skip_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.decoder = nn.ModuleList(
            DecoderStage(
                dims[stage],
                size // 4 // 2**stage,
                config.depths[stage],
                config.heads[stage],
                config.window,
                config.drop_path / 2,
            )
            for stage in reversed(range(stages - 1))
        )
        full, half = config.stem
        self.stem_full = ConvBlock(channels_in, full)
        self.stem_half = ConvBlock(full, half, stride=2)
        self.expand_half = nn.Conv2d(dims[0], 4 * half, 1)
        self.head_half = ConvBlock(half, half)
        self.expand_full = nn.Conv2d(half, 4 * full, 1)
        self.head_full = ConvBlock(full, full)
        self.classify = init_rare_class_bias(nn.Conv2d(full, classes, 1))

    def encode(self, images: Tensor) -> list[Tensor]:
        """(B, K, G, G) in 0..1 -> features of every encoder stage, finest first, each (B, h, w, C) and normalised."""
        tokens = self.encoder.patch_embed(centred(images))
        features = []
        for layer, norm in zip(self.encoder.layers, self.skip_norms, strict=True):
            tokens = layer(tokens)
            features.append(norm(tokens))
        return features

    def decode(self, images: Tensor, stages: list[Tensor]) -> Tensor:
        """(B, K, G, G) in 0..1 and the result of `encode` -> features (B, F, G, G)."""
        *skips, tokens = stages
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            tokens = stage(tokens, skip)
        full = self.stem_full(centred(images))
        half = self.stem_half(full)
        half = self.head_half(half + F.pixel_shuffle(self.expand_half(tokens.permute(0, 3, 1, 2)), 2))
        return self.head_full(full + F.pixel_shuffle(self.expand_full(half), 2))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """(B, K, G, G) in 0..1 -> logits (B, C, G, G)."""
        return self.classify(self.decode(images, self.encode(images)))  # type: ignore[no-any-return]


C = TypeVar("C", nn.Conv2d, nn.Linear)


def init_rare_class_bias(classifier: C) -> C:
    """Initialise a classifier to predict each structure with a probability of 2 %, about its real frequency.

    With equal probabilities the first hundreds of steps push everything to background, and a short training on few
    patients may not recover from that (Lin et al., arXiv 1708.02002, section 4.1, for the same reason).
    """
    assert classifier.bias is not None
    with torch.no_grad():
        classifier.bias[1:] = math.log(0.02)
        classifier.bias[0] = 0.0
    return classifier


def centred(images: Tensor) -> Tensor:
    """Scale 0..1 to -2..2, approximately the range that the layers expect."""
    return 4.0 * images - 2.0


class ParotidNet(nn.Module):
    """The whole model, native intensities to native labels.

    Args:
        config: sizes of the Swin-Unet.
        grid: the model's sampling of a scan.
        channels: number of a scan's channels.
        classes: number of labels, background included.

    Attributes:
        probabilities: whether `forward` also returns probabilities.
    """

    def __init__(self, config: NetworkConfig, grid: Grid, channels: int, classes: int) -> None:
        super().__init__()
        self.probabilities = False
        self.to_grid = ToGrid()
        self.unet = SwinUnet(config, grid.size, channels * len(grid.offsets_mm), classes)
        self.from_grid = FromGrid()

    def forward(
        self,
        slices: Tensor,
        window: Tensor,
        rows: Tensor,
        columns: Tensor,
        neighbours: Tensor,
        slices_back: Tensor,
        rows_back: Tensor,
        columns_back: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One chunk of a scan (see `scan.chunks.Chunk` for the shapes) -> labels (S, H, W) uint8.

        With `probabilities` also (S, C, H, W) float32, which sum to 1 over C; outside the grid all is background.
        """
        logits = self.unet(self.to_grid(slices, window, rows, columns, neighbours))
        scores: Tensor = self.from_grid(logits, slices_back, rows_back, columns_back)
        labels = scores.argmax(dim=1).to(torch.uint8)
        if not self.probabilities:
            return labels
        covered = (rows_back.sum(dim=1)[:, None] * columns_back.sum(dim=1)).clamp(max=1.0)
        background = torch.tensor([1.0] + [0.0] * (scores.shape[1] - 1)).view(1, -1, 1, 1)
        return labels, scores.softmax(dim=1) * covered + background * (1.0 - covered)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device supports bfloat16 arithmetic. A CPU without it emulates it at a tenth of float32's speed."""
    if device.type != "cpu":
        return True
    return any(has is True for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 if the device supports it, else a context that keeps float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(device))


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, keep: float) -> None:
    """Move the weights of a slow copy towards a network's; `keep` is the share of its own weights that it keeps."""
    now = fast.state_dict()
    for name, value in slow.state_dict().items():
        if value.is_floating_point():
            value.lerp_(now[name], 1 - keep)
        else:
            value.copy_(now[name])


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only, as is usual for transformers."""
    learnt = [parameter for parameter in net.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learnt if parameter.ndim > 1]
    vectors = [parameter for parameter in learnt if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
