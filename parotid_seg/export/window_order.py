"""The Swin-Unet for deployment: the same sums, in an order that moves less data.

timm keeps tokens as an image; every block rolls it, cuts it into windows and joins them again. But only attention
depends on the places of tokens. Here they stay in the order of the windows, and one gather leads from the order of one
block to that of the next. Queries, keys and values have a matrix each, since a common result would have to be split;
pixel shuffles are transposed convolutions, or rows of a matrix in another order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from parotid_seg.train.network import ConvBlock, DecoderStage, ParotidNet, PatchExpand, SwinUnet, centred

Order = NDArray[np.intp]
"""The index, row by row, of each token of an image in the order in which the tokens are kept."""


def in_window_order(net: ParotidNet) -> ParotidNet:
    """Convert a network, in place, to one with the same results that keeps its tokens in the order of the windows.

    It stays unchanged if an image is no multiple of its windows, because timm pads such images.
    """
    blocks = [module for module in net.unet.modules() if isinstance(module, SwinTransformerBlock)]
    if all(
        side % window == 0
        for block in blocks
        for side, window in zip(block.input_resolution, block.window_size, strict=True)
    ):
        net.unet = WindowOrderUnet(net.unet).eval()  # type: ignore[assignment]  # `ParotidNet.forward` only calls it
    return net


class WindowOrderUnet(nn.Module):
    """A `SwinUnet` with its tokens (B, N, C) in the order of the attention windows.

    Args:
        unet: its modules are taken over, and some replaced.
    """

    encoder: SwinTransformer
    skip_norms: nn.ModuleList
    decoder: nn.ModuleList
    stem_full: ConvBlock
    stem_half: ConvBlock
    head_half: ConvBlock
    head_full: ConvBlock
    classify: nn.Conv2d

    def __init__(self, unet: SwinUnet) -> None:
        super().__init__()
        for name, module in unet.named_children():
            self.add_module(name, module)
        for block in self.modules():
            if isinstance(block, SwinTransformerBlock):
                block.attn = Attention(block)
        for stage in _stages(self.decoder):
            stage.expand.expand = by_place(stage.expand)
        self.expand_half, self.expand_full = Shuffled(unet.expand_half), Shuffled(unet.expand_full)
        self.to(next(unet.parameters()).device)

    def forward(self, images: Tensor) -> Tensor:
        """(B, K, G, G) in 0..1 -> logits (B, C, G, G)."""
        images = centred(images)
        embed = self.encoder.patch_embed
        tokens = embed.norm(embed.proj(images).flatten(2).transpose(1, 2))
        order: Order = np.arange(int(tokens.shape[1]))
        skips: list[tuple[Tensor, Order]] = []
        for layer, norm in zip(self.encoder.layers, self.skip_norms, strict=True):
            if isinstance(layer.downsample, PatchMerging):
                tokens, order = _merge(tokens, order, layer.downsample, layer.blocks[0])
            tokens, order = _run_blocks(tokens, order, layer.blocks)
            skips.append((norm(tokens), order))
        tokens, order = skips.pop()
        for stage, (skip, skip_order) in zip(_stages(self.decoder), reversed(skips), strict=True):
            tokens, order = _decode(tokens, order, skip, skip_order, stage)
        side = round(len(order) ** 0.5)
        image = _reordered(tokens, order, np.arange(len(order))).transpose(1, 2)
        image = image.reshape(-1, image.shape[1], side, side)
        full = self.stem_full(images)
        half = self.head_half(self.stem_half(full) + self.expand_half(image))
        return cast(Tensor, self.classify(self.head_full(full + self.expand_full(half))))


class Attention(nn.Module):
    """Self-attention within the windows of a block; tokens (B, N, C) in the order of the windows.

    Args:
        block: its block, which has the masks of shifted windows.
    """

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        attention = cast(WindowAttention, block.attn)
        self.area, self.heads, self.scale = attention.window_area, attention.num_heads, attention.scale
        qkv = attention.qkv
        thirds = zip(qkv.weight.detach().chunk(3), qkv.bias.detach().chunk(3), strict=True)
        self.queries, self.keys, self.values = itertools.starmap(_linear, thirds)
        self.proj = attention.proj
        bias = attention._get_rel_pos_bias().detach()
        self.register_buffer("position_bias", bias if block.attn_mask is None else bias + block.attn_mask[:, None])

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens, mixed within each window."""
        _, count, features = tokens.shape
        shape = (-1, self.area, self.heads, features // self.heads)
        queries, keys, values = (
            linear(tokens).reshape(shape).transpose(1, 2) for linear in (self.queries, self.keys, self.values)
        )
        scores = (queries * self.scale) @ keys.transpose(-2, -1)
        bias = cast(Tensor, self.position_bias)
        masked = len(bias) > 1  # each window of an image has a mask of its own
        scores = (scores.reshape(-1, *bias.shape) + bias).flatten(0, 1) if masked else scores + bias
        mixed = scores.softmax(dim=-1) @ values
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(-1, count, features)))


class Shuffled(nn.Module):
    """A 1 x 1 convolution to four times the channels and its pixel shuffle, as a transposed convolution.

    The bias differs by place, so it is an image of one 2 x 2 patch, which is repeated.
    """

    def __init__(self, expand: nn.Conv2d) -> None:
        super().__init__()
        assert expand.bias is not None
        channels = expand.out_channels // 4
        self.weight = nn.Parameter(expand.weight.detach().view(channels, 2, 2, -1).permute(3, 0, 1, 2).contiguous())
        self.bias = nn.Parameter(expand.bias.detach().view(1, channels, 2, 2))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)."""
        height, width = image.shape[-2:]
        return F.conv_transpose2d(image, self.weight, stride=2) + self.bias.repeat(1, 1, height, width)


def _stages(decoder: nn.ModuleList) -> list[DecoderStage]:
    return cast(list[DecoderStage], list(decoder))


def by_place(expand: PatchExpand) -> nn.Linear:
    """The linear layer of a patch expansion with the features of each of the four places together."""
    features = expand.norm.normalized_shape[0]
    return _linear(expand.expand.weight.detach().view(features, 4, -1).transpose(0, 1).flatten(0, 1).contiguous())


def window_order(block: SwinTransformerBlock) -> Order:
    """The order in which the windows of a block have the tokens."""
    height, width = block.input_resolution
    rows, columns = block.window_size
    rolled = np.roll(np.arange(height * width).reshape(height, width), [-shift for shift in block.shift_size], (0, 1))
    return rolled.reshape(height // rows, rows, width // columns, columns).swapaxes(1, 2).ravel()


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def _reordered(tokens: Tensor, now: Order, wanted: Order) -> Tensor:
    if np.array_equal(now, wanted):
        return tokens
    return tokens.index_select(1, torch.from_numpy(np.argsort(now)[wanted]).to(tokens.device))


def _run_blocks(tokens: Tensor, order: Order, blocks: Iterable[SwinTransformerBlock]) -> tuple[Tensor, Order]:
    """Apply Swin blocks; returns the tokens and their order."""
    for block in blocks:
        wanted = window_order(block)
        tokens, order = _reordered(tokens, order, wanted), wanted
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return tokens, order


def _merge(tokens: Tensor, order: Order, downsample: PatchMerging, block: SwinTransformerBlock) -> tuple[Tensor, Order]:
    """Join 2 x 2 tokens each, in the order of the block that follows."""
    wanted = window_order(block)
    width = block.input_resolution[1]
    four = [_place(wanted, width, row, column) for column in (0, 1) for row in (0, 1)]
    tokens = _reordered(tokens, order, np.stack(four, axis=1).ravel())
    joined = tokens.reshape(-1, len(wanted), 4 * tokens.shape[2])
    return cast(Tensor, downsample.reduction(downsample.norm(joined))), wanted


def _decode(tokens: Tensor, order: Order, skip: Tensor, skip_order: Order, stage: DecoderStage) -> tuple[Tensor, Order]:
    """Expand each token to 2 x 2, join the skip, and apply the blocks. See `DecoderStage`."""
    wanted = window_order(stage.blocks[0])
    side = round(len(order) ** 0.5)
    four = [_place(order, side, row, column) for row in (0, 1) for column in (0, 1)]
    fine = stage.expand.norm(stage.expand.expand(tokens).reshape(-1, 4 * len(order), skip.shape[2]))
    parts = (_reordered(fine, np.stack(four, axis=1).ravel(), wanted), _reordered(skip, skip_order, wanted))
    return _run_blocks(stage.join(torch.cat(parts, dim=-1)), wanted, stage.blocks)


def _place(coarse: Order, width: int, row: int, column: int) -> Order:
    """The index in an image of twice the size of one of the four places within each place of a coarse one.

    Args:
        coarse: indices in the coarse image.
        width: of the coarse image.
        row, column: 0 or 1.
    """
    return (2 * (coarse // width) + row) * 2 * width + 2 * (coarse % width) + column
