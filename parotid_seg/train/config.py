"""Training settings: frozen dataclasses that check themselves, presets, and TOML over them."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from parotid_seg.contract import Grid
from parotid_seg.errors import InputError

C = TypeVar("C")

STAGES = ("organs", "segment")
"""In the order they can follow each other."""
SCRATCH = "scratch"
PARTS = ("encoder", "decoder")
"""Of the network, that can start from another model's weights."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the Swin-Unet.

    Attributes:
        embed_dim: width of the first stage; it doubles with each further one.
        depths: Swin blocks a stage.
        heads: attention heads a stage.
        window: side of the attention window in tokens of 4 x 4 pixels.
        drop_path: rate of stochastic depth at the deepest block.
        stem: channels of the convolutional stages at full and at half resolution.
    """

    embed_dim: int = 64
    depths: tuple[int, ...] = (2, 2, 4)
    heads: tuple[int, ...] = (2, 4, 8)
    window: int = 6
    drop_path: float = 0.1
    stem: tuple[int, int] = (16, 32)

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise InputError(f"network: found {len(self.depths)} depths and {len(self.heads)} heads, expected as many")
        for stage, heads in enumerate(self.heads):
            if (self.embed_dim * 2**stage) % heads:
                raise InputError(f"network.heads: {heads} does not divide the width {self.embed_dim * 2**stage}")


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of the random changes; a probability where the name says so, else the largest amount.

    Of a channel without units (MR), 500 HU mean the width of its window.
    """

    mirror_probability: float = 0.5
    rotation_deg: float = 10.0
    scale: float = 0.12
    shift_mm: float = 15.0
    warp_mm: float = 4.0
    slice_scale: float = 0.12
    noise_hu: float = 25.0
    blur_px: float = 0.9
    contrast: float = 0.15
    offset_hu: float = 20.0
    couch_probability: float = 0.4
    field_of_view_probability: float = 0.1
    volume_end_probability: float = 0.1

    def halved(self) -> AugmentConfig:
        """Half of every amount and probability but mirroring."""
        halves = {item.name: getattr(self, item.name) / 2 for item in dataclasses.fields(self)}
        return dataclasses.replace(self, **{**halves, "mirror_probability": self.mirror_probability})


@dataclass(frozen=True)
class SegmentConfig:
    """Schedule of the supervised stage.

    Attributes:
        epochs, images_per_epoch, batch_size: an epoch is a number of slices drawn, not a pass over all of them.
        learning_rate: peak of a linear warm-up and cosine decay (AdamW).
        cross_entropy_share: the loss is this x CE + (1 - this) x Dice.
        gland_share, border_share: of the slices drawn, those that show a gland, and those within `border_mm` beyond a
            gland's ends; the rest come from anywhere.
        average_decay: of the moving average of the weights, which is what is validated and kept.
        validate_every: epochs between validations on whole patients.
        calm_epochs: last epochs, in which augmentation is halved so that the model settles on undistorted scans.
    """

    epochs: int = 84
    images_per_epoch: int = 3000
    batch_size: int = 24
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    cross_entropy_share: float = 0.4
    gland_share: float = 0.55
    border_share: float = 0.2
    border_mm: float = 15.0
    average_decay: float = 0.997
    gradient_norm: float = 2.0
    validate_every: int = 12
    calm_epochs: int = 12

    def __post_init__(self) -> None:
        for name in ("epochs", "images_per_epoch", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"segment.{name}: found {getattr(self, name)}, expected at least 1")
        if self.gland_share + self.border_share > 1:
            raise InputError("segment.gland_share + segment.border_share: found more than 1, expected shares")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Attributes:
        stages: of `STAGES`, in their order.
        init: "scratch", "imagenet" or a weights file; see `transfer.start_from`.
        transfer: parts of the network that start from it, or from the stage before.
        window_hu: intensities that a channel named CT is seen between; those of other channels come from each scan.
        organs: supervised pre-training on other organs.
        segment: training on the data set's labels.
    """

    preset: str = "compact"
    seed: int = 0
    stages: tuple[str, ...] = ("segment",)
    init: str = SCRATCH
    transfer: tuple[str, ...] = PARTS
    window_hu: tuple[float, float] = (-200.0, 300.0)
    grid: Grid = field(default_factory=Grid)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    organs: SegmentConfig = field(default_factory=lambda: SegmentConfig(epochs=20, validate_every=10, calm_epochs=4))
    segment: SegmentConfig = field(default_factory=SegmentConfig)

    def __post_init__(self) -> None:
        if not self.stages or list(self.stages) != [stage for stage in STAGES if stage in self.stages]:
            found = ", ".join(map(str, self.stages))
            raise InputError(f"stages: found {found!r}, expected one or more of: {', '.join(STAGES)}, in this order")
        if not self.transfer or not set(self.transfer) <= set(PARTS):
            raise InputError(
                f"transfer: found {', '.join(map(str, self.transfer))!r}, expected one or both of: {', '.join(PARTS)}"
            )
        tokens = self.grid.size // 4
        smallest = tokens // 2 ** (len(self.network.depths) - 1)
        if self.grid.size % (4 * 2 ** (len(self.network.depths) - 1)) or smallest < 1:
            raise InputError(
                f"grid.size: found {self.grid.size}, expected a multiple of "
                f"{4 * 2 ** (len(self.network.depths) - 1)} for {len(self.network.depths)} stages"
            )

    def for_stage(self, stage: str) -> TrainConfig:
        """What decides one stage, its own settings under `segment`; nothing of the stages after it."""
        until = self.stages[: self.stages.index(stage) + 1]
        return dataclasses.replace(self, stages=until, segment=getattr(self, stage))


PRESETS = {"compact": TrainConfig()}


def load_config(preset: str, file: Path | None = None, **overrides: Any) -> TrainConfig:
    """A preset, with a TOML file's values over it, with keyword overrides of top-level values over both.

    Raises:
        InputError: for an unknown preset or key, a value of the wrong type, or a file that is missing or not TOML.
    """
    if preset not in PRESETS:
        raise InputError(f"--preset: found {preset!r}, expected one of: {', '.join(PRESETS)}")
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except OSError as error:
            raise InputError(f"--config: {file} cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"--config: {file} is not TOML: {error}") from error
    return merge(PRESETS[preset], {**values, **overrides}, where=str(file) if file else "arguments")


def merge(config: C, values: dict[str, Any], *, where: str) -> C:
    """A copy of a config dataclass with some values replaced, nested tables included.

    Raises:
        InputError: for an unknown key or a value of another type than the default's.
    """
    known = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}, expected one of: {', '.join(known)}")
        default = known[key]
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise InputError(f"{where}: {key}: found {value!r}, expected a table")
            changes[key] = merge(default, value, where=f"{where}: {key}")
        elif isinstance(default, tuple):
            if not isinstance(value, list | tuple):
                raise InputError(f"{where}: {key}: found {value!r}, expected a list")
            changes[key] = tuple(value)
        elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            changes[key] = float(value)
        elif type(value) is not type(default):
            raise InputError(f"{where}: {key}: found {value!r}, expected {type(default).__name__}")
        else:
            changes[key] = value
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def to_toml(config: Any, table: str = "") -> str:
    """A config dataclass as TOML text that `load_config` reads back."""
    lines, tables = [], []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        name = f"{table}.{item.name}" if table else item.name
        if dataclasses.is_dataclass(value):
            tables.append(f"\n[{name}]\n{to_toml(value, name)}")
        elif isinstance(value, tuple):
            lines.append(f"{item.name} = [{', '.join(map(_toml_value, value))}]")
        else:
            lines.append(f"{item.name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n" + "".join(tables)


def _toml_value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)
