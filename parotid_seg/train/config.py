"""The configuration of a training run: frozen dataclasses that validate themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parotid_seg.contract import Grid
from parotid_seg.errors import InputError
from parotid_seg.records import shown

STAGES = ("organs", "contrast", "dense", "segment")
"""Stages of a run, in their order."""
UNLABELLED_STAGES = ("contrast", "dense")
"""Stages that need no labels."""
SCRATCH, IMAGENET = "scratch", "imagenet"
MOST_STAGES, MOST_BLOCKS, LARGEST_SIZE = 6, 64, 4096
"""Largest size of a network. Larger ones are mistakes, and building them would exhaust the memory."""
LARGEST_COUNT, LARGEST_SEED = 10**6, 2**32 - 1
MOST_DROPPED, SLOWEST_DECAY = 0.9, 0.999999
PARTS = ("encoder", "decoder")
"""Parts of the network that can be initialised with another model's weights."""
INITIAL = "the model of --init, unchanged"
"""What `best.pt` is before an epoch was better than the start."""
SO_FAR = "the weights so far"
"""What `best.pt` is if the first epoch was cut off."""


def _check(config: object, names: str, least: float, most: float = math.inf, *, above: bool = False) -> None:
    """Check that fields are within bounds; of a list each number.

    Args:
        config: a dataclass.
        names: of its fields, with spaces between.
        least, most: bounds; `above` if the lower one is not allowed itself.

    Raises:
        InputError: if one is not.
    """
    for name in names.split():
        found = getattr(config, name)
        numbers = found if isinstance(found, tuple) else (found,)
        if not all(least <= number <= most and not (above and number == least) for number in numbers):
            if math.isinf(most):
                expected = f"more than {least}" if above else f"{least} or more"
            else:
                expected = f"more than {least} and at most {most}" if above else f"{least} to {most}"
            raise InputError(f"{name}: found {shown(found)}, expected {expected}")


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the Swin-Unet.

    Attributes:
        embed_dim: width of the first stage; it doubles with each further one.
        depths: Swin blocks per stage.
        heads: attention heads per stage.
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
        _check(self, "embed_dim window depths heads stem", 1, LARGEST_SIZE)
        _check(self, "drop_path", 0, MOST_DROPPED)
        if not 1 <= len(self.depths) <= MOST_STAGES or sum(self.depths) > MOST_BLOCKS:
            raise InputError(
                f"depths: found {list(self.depths)}, expected 1 to {MOST_STAGES} stages and at most "
                f"{MOST_BLOCKS} blocks in all"
            )
        if len(self.depths) != len(self.heads):
            raise InputError(f"depths, heads: found {len(self.depths)} and {len(self.heads)} stages, expected as many")
        for stage, heads in enumerate(self.heads):
            if (self.embed_dim * 2**stage) % heads:
                raise InputError(f"heads: {heads} does not divide the width {self.embed_dim * 2**stage}")


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of the augmentation; a probability if its name says so, else the largest amount.

    `crop` is different: the smallest share of the field's side that is drawn and enlarged to the whole grid.
    For a channel without units (MR), 500 HU mean the width of its window.
    """

    mirror_probability: float = 0.5
    rotation_deg: float = 10.0
    scale: float = 0.12
    crop: float = 1.0
    shift_mm: float = 15.0
    warp_mm: float = 4.0
    slice_scale: float = 0.12
    noise_hu: float = 25.0
    blur_px: float = 0.9
    contrast: float = 0.15
    offset_hu: float = 20.0
    couch_probability: float = 0.4
    bolus_probability: float = 0.2
    field_of_view_probability: float = 0.1
    volume_end_probability: float = 0.1

    def __post_init__(self) -> None:
        names = [item.name for item in dataclasses.fields(self)]
        _check(self, " ".join(name for name in names if name.endswith("_probability")), 0, 1)
        _check(self, " ".join(names), 0)
        _check(self, "crop", 0, 1, above=True)

    def halved(self) -> AugmentConfig:
        """A copy with half of every amount and probability except mirroring."""
        halves = {item.name: getattr(self, item.name) / 2 for item in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{**halves, "mirror_probability": self.mirror_probability, "crop": (1 + self.crop) / 2}
        )


@dataclass(frozen=True)
class Schedule:
    """Settings of every stage's training.

    Attributes:
        epochs, images_per_epoch, batch_size: an epoch is a number of drawn slices, not a pass over all of them; the
            batch is that of all processes together.
        learning_rate: peak of a linear warm-up and cosine decay (AdamW).
        warmup_epochs: length of the warm-up.
        gradient_norm: larger gradients are clipped to this norm.
    """

    epochs: int = 84
    images_per_epoch: int = 3000
    batch_size: int = 24
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    gradient_norm: float = 2.0

    def __post_init__(self) -> None:
        _check(self, "epochs images_per_epoch batch_size", 1, LARGEST_COUNT)
        _check(self, "learning_rate", 0, 1, above=True)
        _check(self, "weight_decay warmup_epochs", 0)
        _check(self, "gradient_norm", 0, above=True)

    @property
    def steps_per_epoch(self) -> int:
        """Batches drawn in one epoch."""
        return max(1, self.images_per_epoch // self.batch_size)

    @property
    def steps(self) -> int:
        """Batches drawn in all."""
        return self.epochs * self.steps_per_epoch

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warmup = self.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return self.learning_rate * min(1.0, (step + 1) / warmup)  # an epoch may have no whole number of steps
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(frozen=True)
class SegmentConfig(Schedule):
    """A supervised stage.

    Attributes:
        cross_entropy_share: the loss is this x CE + (1 - this) x Dice.
        encoder_share: share of the loss for deep supervision: the same loss on a linear classifier of every encoder
            stage at its own resolution; without it the deepest stage may learn nothing.
        gland_share, border_share: shares of the drawn slices that show a gland, and that lie within `border_mm` beyond
            a gland's ends; the rest are drawn from all slices.
        images_per_patient: an epoch has no more slices than this for each training patient; 0 for no such bound.
        soft_share: share of the targets that comes from the soft labels in DATA/softTr, for patients who have them;
            the rest comes from their label maps. Only for the stage "segment".
        average_decay: of the moving average of the weights, which is validated and saved.
        initial_share: the weights that are validated and saved are this x the initial weights + (1 - this) x the moving
            average, so that less of what the initial model does is lost (Wortsman et al., CVPR 2022, arXiv 2109.01903);
            not used if some initial weights are random.
        validate_every: epochs between validations on whole patients.
        calm_epochs: last epochs, in which augmentation is halved so that the model adapts to undistorted scans.
    """

    cross_entropy_share: float = 0.4
    encoder_share: float = 0.0
    gland_share: float = 0.55
    border_share: float = 0.2
    border_mm: float = 15.0
    images_per_patient: int = 0
    soft_share: float = 0.0
    average_decay: float = 0.997
    initial_share: float = 0.0
    validate_every: int = 12
    calm_epochs: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "validate_every", 1)
        _check(self, "images_per_patient border_mm calm_epochs", 0)
        _check(self, "cross_entropy_share encoder_share gland_share border_share soft_share initial_share", 0, 1)
        _check(self, "average_decay", 0, SLOWEST_DECAY)
        if self.gland_share + self.border_share > 1:
            total = self.gland_share + self.border_share
            raise InputError(f"gland_share + border_share: found {total:g}, expected at most 1")


FIRST_VIEW = AugmentConfig(
    rotation_deg=15.0,
    crop=0.6,
    noise_hu=40.0,
    blur_px=1.5,
    contrast=0.3,
    offset_hu=60.0,
    couch_probability=0.3,
    bolus_probability=0.0,
)
SECOND_VIEW = dataclasses.replace(FIRST_VIEW, noise_hu=10.0, blur_px=0.6, couch_probability=0.1)


@dataclass(frozen=True)
class ContrastConfig(Schedule):
    """A stage of momentum contrast (He et al., arXiv 1911.05722; Chen et al., arXiv 2104.02057).

    Attributes:
        temperature: of the contrastive softmax; the loss is scaled by twice the temperature.
        momentum: share of the momentum encoder that a step keeps at the start; it rises to 1 by a cosine.
        hidden, features: widths of projector and predictor.
        queue: keys of earlier batches as additional negatives (MoCo v2, for small batches); 0 for none.
        drop_path: in place of the network's.
        dense_share: the loss is this x dense contrast of the decoder + (1 - this) x contrast of the encoder.
        points: positions per image that dense contrast compares.
        apart_mm: positions of an image at least this far apart are negatives of each other.
        dense_negatives: "image" for positions of the same image only, "batch" for those of other images as well.
        first, second: augmentation of the two views, of different strength.
    """

    epochs: int = 20
    batch_size: int = 60
    learning_rate: float = 5e-4
    warmup_epochs: float = 2.0
    temperature: float = 0.2
    momentum: float = 0.99
    hidden: int = 512
    features: int = 128
    queue: int = 0
    drop_path: float = 0.1
    dense_share: float = 0.0
    points: int = 48
    apart_mm: float = 15.0
    dense_negatives: str = "image"
    first: AugmentConfig = FIRST_VIEW
    second: AugmentConfig = SECOND_VIEW

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "temperature", 0, above=True)
        _check(self, "momentum dense_share", 0, 1)
        _check(self, "hidden features", 1, LARGEST_SIZE)
        _check(self, "queue", 0, LARGEST_COUNT)
        _check(self, "points", 2, LARGEST_COUNT)
        _check(self, "drop_path", 0, MOST_DROPPED)
        _check(self, "apart_mm", 0)
        if self.batch_size < 2:
            raise InputError("batch_size: found 1, expected at least 2: an image needs others to differ from")
        if self.dense_negatives not in ("image", "batch"):
            raise InputError(f"dense_negatives: found {self.dense_negatives!r}, expected image or batch")

    def momentum_at(self, step: int) -> float:
        """A cosine from `momentum` to 1 over the stage."""
        return 1 - (1 - self.momentum) * 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps)))


ORGANS = SegmentConfig(epochs=30, warmup_epochs=2.0, encoder_share=0.3, validate_every=10, calm_epochs=3)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run.

    Attributes:
        stages: of `STAGES`, in their order.
        init: "scratch", "packaged", "imagenet" or a file; see `transfer.start_from`.
        transfer: parts of the network that a supervised stage takes from `init`, or from the previous stage.
        window_hu: window of a channel named CT; windows of other channels come from each scan.
        organs: supervised pre-training on other organs.
        contrast: momentum contrast on scans without labels.
        dense: the same for the decoder, after it.
        segment: training on the data set's labels.
    """

    preset: str = "compact"
    seed: int = 0
    stages: tuple[str, ...] = ("contrast", "segment")
    init: str = SCRATCH
    transfer: tuple[str, ...] = PARTS
    window_hu: tuple[float, float] = (-200.0, 300.0)
    grid: Grid = field(default_factory=Grid)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    organs: SegmentConfig = ORGANS
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    dense: ContrastConfig = field(default_factory=lambda: ContrastConfig(epochs=8, batch_size=24, dense_share=1.0))
    segment: SegmentConfig = field(default_factory=SegmentConfig)

    def __post_init__(self) -> None:
        if not self.stages or list(self.stages) != [stage for stage in STAGES if stage in self.stages]:
            found = ", ".join(map(str, self.stages))
            raise InputError(f"stages: found {found!r}, expected one or more of: {', '.join(STAGES)}, in this order")
        if self.organs.soft_share:
            raise InputError(
                f"organs.soft_share: found {self.organs.soft_share}, expected 0: soft labels are for the stage segment"
            )
        _check(self, "seed", 0, LARGEST_SEED)
        if not self.window_hu[0] < self.window_hu[1]:
            raise InputError(f"window_hu: found {list(self.window_hu)}, expected two rising numbers")
        if not self.transfer or not set(self.transfer) <= set(PARTS) or len(set(self.transfer)) < len(self.transfer):
            raise InputError(
                f"transfer: found {', '.join(map(str, self.transfer))!r}, expected one or both of: {', '.join(PARTS)}"
            )
        stages = len(self.network.depths)
        if self.grid.size % (multiple := 4 * 2 ** (stages - 1)):
            raise InputError(
                f"grid.size: found {self.grid.size}, expected a multiple of {multiple} for {stages} stages"
            )

    def with_patients(self, patients: Mapping[str, int]) -> TrainConfig:
        """The configuration for a number of training patients in each stage; see `SegmentConfig.images_per_patient`."""
        bounded: dict[str, Any] = {}
        for stage, count in patients.items():
            schedule = getattr(self, stage)
            if isinstance(schedule, SegmentConfig) and schedule.images_per_patient:
                most = min(schedule.images_per_epoch, count * schedule.images_per_patient)
                bounded[stage] = dataclasses.replace(schedule, images_per_epoch=most)
        return dataclasses.replace(self, **bounded)

    def for_stage(self, stage: str) -> TrainConfig:
        """The configuration of one stage: without the settings of later stages and of stages that are not in the
        run."""
        until = self.stages[: self.stages.index(stage) + 1]
        default = TrainConfig()
        unused = {name: getattr(default, name) for name in STAGES if name not in until}
        if stage in UNLABELLED_STAGES or (self.init == SCRATCH and stage == self.stages[0]):
            unused["transfer"] = PARTS
        return dataclasses.replace(self, stages=until, **unused)

    @property
    def schedule(self) -> SegmentConfig | ContrastConfig:
        """The schedule of the last stage."""
        schedule: SegmentConfig | ContrastConfig = getattr(self, self.stages[-1])
        return schedule
