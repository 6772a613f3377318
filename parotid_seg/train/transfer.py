"""Initialises a network's weights from a source, with a record of every weight: taken, not used and why, or random.

A source is a parotid-seg checkpoint or model file, a file of the official Swin repository (weights under the key
"model"), a state dict of timm's Swin Transformer, or timm's ImageNet model. If a source has no decoder, as after
contrastive training of the encoder, the decoder gets the encoder's stages, which have the same widths (as in the
follow-up of arXiv 2208.12413)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models import adapt_input_conv, clean_state_dict, load_state_dict
from torch import Tensor

from parotid_seg.contract import Grid
from parotid_seg.errors import InputError
from parotid_seg.records import write_record
from parotid_seg.scan.intensity import Window, fixed_windows
from parotid_seg.train.checkpoint import checked_weights, is_checkpoint, load_checkpoint
from parotid_seg.train.config import IMAGENET, PARTS
from parotid_seg.train.model_weights import is_model, network_weights, read_model_weights, unfold_norms
from parotid_seg.train.network import SwinUnet
from parotid_seg.train.settings import check_init
from parotid_seg.train.torch_file import load_torch_file

IMAGENET_MODELS = {
    96: "swin_tiny_patch4_window7_224.ms_in1k",
    128: "swin_base_patch4_window7_224.ms_in1k",
    192: "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
}
"""timm's models by the width of the first stage."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Transfer:
    """The record of a transfer of weights.

    Attributes:
        source: file or name of the source.
        parts: the parts to be filled.
        taken: the model's weights that came from the source.
        left_out: the source's weights that were not used, with the reason.
        random: the model's weights that stayed random.
        channels: of the scans that the source was trained on; empty if unknown.
        grid, windows: of the source; None and empty if unknown.
    """

    source: str
    parts: tuple[str, ...]
    taken: tuple[str, ...]
    left_out: dict[str, str]
    random: tuple[str, ...]
    channels: tuple[str, ...] = ()
    grid: Grid | None = None
    windows: tuple[Window | None, ...] = ()

    def fits(self, grid: Grid, windows: tuple[Window | None, ...]) -> bool:
        """Whether the source, as far as is known, has the same grid and windows."""
        return self.grid in (None, grid) and self.windows in ((), windows)

    def lines(self) -> list[str]:
        """A summary: one line per part and one per reason."""
        lines = []
        for part in PARTS:
            taken, random = (sum(part_of(name) == part for name in names) for names in (self.taken, self.random))
            lines.append(f"{part}: {taken} of {taken + random} weights from {self.source}")
        reasons = list(self.left_out.values())
        lines += [f"not used: {reasons.count(reason)} because {reason}" for reason in dict.fromkeys(reasons)]
        return lines

    def save(self, path: Path) -> None:
        """Write the whole record as JSON. Raises OutputError if that fails."""
        write_record(self, path)


class Offered(NamedTuple):
    """The weights of a source under the Swin-Unet's names, and what it was trained on; empty if unknown."""

    weights: Weights
    labels: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    grid: Grid | None = None
    windows: tuple[Window | None, ...] = ()


def part_of(name: str) -> str:
    """The part of the Swin-Unet that a weight belongs to: one of `PARTS`, or the classifier."""
    if name.startswith("classify."):
        return "classifier"
    return "encoder" if name.startswith(("encoder.", "skip_norms.", "stem_")) else "decoder"


def training_of(source: str) -> dict[str, Any] | None:
    """The record of the training of a parotid-seg checkpoint or model; None for other weights.

    Raises:
        InputError: if it cannot be read.
    """
    if is_model(source):
        return read_model_weights(source).contract.training
    if source != IMAGENET and is_checkpoint(Path(source)):
        return load_checkpoint(Path(source)).training
    return None


def start_from(
    source: str,
    net: SwinUnet,
    parts: Iterable[str],
    *,
    labels: tuple[str, ...] = (),
    channels: tuple[str, ...] = (),
    mirror: bool = True,
    images: Iterable[Tensor] | None = None,
) -> Transfer:
    """Fill parts of a new network with a source's weights.

    The classifier is taken together with the decoder of a model with the same labels; else it stays random.

    Args:
        source: "packaged", "imagenet" or a file.
        net: changed in place.
        parts: of `PARTS`.
        labels, channels: the network's.
        mirror: copy the encoder's stages to the decoder if the source has no decoder; otherwise it stays random.
        images: for the batch norms of a model file, see `unfold_norms`; None leaves them folded.

    Raises:
        InputError: if the source cannot be read, no weight fits a requested part, or the source was trained on the
            same channels in another order.
    """
    parts = tuple(parts)
    offered, offered_labels, offered_channels, grid, windows = _offered(source, net)
    if channels != offered_channels and sorted(channels) == sorted(offered_channels):
        found, expected = ", ".join(channels), ", ".join(offered_channels)
        raise InputError(f"--init {source}: found the channels {found}, expected them in its order: {expected}")
    if not any(part_of(name) == "decoder" for name in offered):
        offered |= _mirrored(offered, net) if mirror else {}
        parts = parts if mirror else tuple(part for part in parts if part != "decoder")
    classifier = ("classifier",) if "decoder" in parts and labels == offered_labels else ()
    weights = net.state_dict()
    taken: Weights = {}
    left_out = {}
    for name, value in offered.items():
        if name not in weights:
            left_out[name] = "the model has no such weight"
        elif part_of(name) == "classifier" and not classifier:
            left_out[name] = "a classifier is only used with its decoder and for the same labels"
        elif part_of(name) not in (*parts, *classifier):
            left_out[name] = f"only {' and '.join(parts)} was asked for"
        elif value.shape != weights[name].shape:
            left_out[name] = f"its shape {tuple(value.shape)} differs from the model's {tuple(weights[name].shape)}"
        else:
            taken[name] = value
    for part in parts:
        if not any(part_of(name) == part for name in taken):
            reason = next(iter(left_out.values()), "it holds no weights")
            raise InputError(f"--init {source}: no weight fits the model's {part}: {reason}")
    net.load_state_dict(taken, strict=False)
    if images is not None and is_model(source):
        unfold_norms(net, images)
    random = tuple(name for name in weights if name not in taken)
    return Transfer(source, parts, tuple(taken), left_out, random, offered_channels, grid, windows)


def _offered(source: str, net: SwinUnet) -> Offered:
    if source == IMAGENET:
        return Offered(_encoder(_imagenet(net.encoder.embed_dim), net))
    if is_model(source):
        model = read_model_weights(source)
        contract = model.contract
        weights = network_weights(source, model, net)
        return Offered(weights, contract.labels, contract.channels, contract.grid, contract.windows)
    check_init(source)
    path = Path(source)
    if is_checkpoint(path):
        checkpoint = load_checkpoint(path)
        weights = {name.removeprefix("unet."): value for name, value in checkpoint.weights.items()}
        windows = fixed_windows(checkpoint.channels, checkpoint.config.window_hu)
        return Offered(weights, checkpoint.labels, checkpoint.channels, checkpoint.config.grid, windows)
    try:
        return Offered(_encoder(checked_weights(_foreign(path)), net))
    except InputError as error:
        raise InputError(f"--init {source}: {error.reason}") from error
    except (IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:  # of timm, on other shapes
        reason = f"its weights do not fit a Swin Transformer ({type(error).__name__})"
        raise InputError(f"--init {source}: {reason}") from error


def _foreign(path: Path) -> dict[str, Any]:
    """The weights in a file that is not a parotid-seg checkpoint, under timm's or the official names."""
    if path.suffix == ".safetensors":
        try:
            return dict(load_state_dict(str(path), device="cpu"))
        except Exception as error:  # safetensors' error for a damaged file
            raise InputError(f"not a readable weights file ({type(error).__name__})") from error
    content = load_torch_file(path)
    keys = content if isinstance(content, dict) else ()
    key = next((each for each in ("state_dict_ema", "model_ema", "state_dict", "model") if each in keys), None)
    weights = content if key is None else content[key]
    if not isinstance(weights, dict) or not weights or not all(isinstance(each, Tensor) for each in weights.values()):
        raise InputError("found no weights in it, expected tensors by name or under 'model'")
    cleaned: dict[str, Any] = clean_state_dict({str(name): value for name, value in weights.items()})
    return cleaned


def _imagenet(width: int) -> Weights:
    if width not in IMAGENET_MODELS:
        widths = ", ".join(map(str, IMAGENET_MODELS))
        raise InputError(f"--init imagenet: found network.embed_dim {width}, expected one of {widths}, as published")
    try:
        model = timm.create_model(IMAGENET_MODELS[width], pretrained=True)
    except Exception as error:  # the hub's client raises exceptions of several packages
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"--init imagenet: {IMAGENET_MODELS[width]} cannot be fetched ({reason}); "
            "without internet, give a downloaded weights file instead"
        ) from error
    weights: Weights = model.state_dict()
    return weights


def _encoder(weights: Weights, net: SwinUnet) -> Weights:
    """A Swin Transformer's weights as the encoder's."""
    return {f"encoder.{name}": value for name, value in _as_timm(weights, net).items()}


def _mirrored(encoder: Weights, net: SwinUnet) -> Weights:
    """The blocks of the encoder's stages under the names of the decoder's."""
    stages = len(net.decoder)
    mirrored = {}
    for name, value in encoder.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(blocks\..+)", name)
        if match and int(match[1]) < stages:
            mirrored[f"decoder.{stages - 1 - int(match[1])}.{match[2]}"] = value
    return mirrored


def _as_timm(weights: Weights, net: SwinUnet) -> Weights:
    """Weights with names and sizes of timm's Swin Transformer for the network's window and channels."""
    state = net.encoder.state_dict()
    official = "layers.0.downsample.reduction.weight" in weights  # it downsamples at a stage's end, timm at its start
    converted = {}
    for name, value in weights.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue  # computed, not learnt
        later = r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample"
        new_name = re.sub(*later, name) if official else name
        converted[new_name] = _fitted(new_name, value, state[new_name].shape) if new_name in state else value
    return converted


def _fitted(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Adapt position biases to another window and filters to other channels, as timm does."""
    if name.endswith("relative_position_bias_table") and value.shape[0] != shape[0]:
        side = (int(shape[0] ** 0.5) + 1) // 2
        return resize_rel_pos_bias_table(value, (side, side), (shape[0], value.shape[1]))  # type: ignore[no-any-return]
    if name == "patch_embed.proj.weight" and value.shape[1] == 3 != shape[1]:
        return adapt_input_conv(shape[1], value)  # type: ignore[no-any-return]
    return value
