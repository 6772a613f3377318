"""Options of a training run: settings that override its configuration, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from parotid_seg.options import Option, OptionGroup, comma_separated


@dataclass(frozen=True)
class TrainOptions(OptionGroup, panel="Options"):
    """The settings of a run, and where and how long it runs."""

    preset: Annotated[
        str,
        Option(
            "--preset",
            "compact (the packaged model's), few (the same network, for about ten patients: 18,000 slices from "
            "scratch, or a few thousand from --init) or paper (Swin-T widths, 224 px, the published schedule).",
        ),
    ] = "compact"
    config: Annotated[
        Path | None, Option("--config", "TOML file with settings that override the preset.", metavar="FILE")
    ] = None
    stages: Annotated[
        tuple[str, ...] | None,
        Option(
            "--stages",
            "Some of organs,contrast,dense,segment in this order. organs: pre-training on DATA/organsTr; "
            "contrast, dense: contrastive pre-training of the encoder, of the decoder, without labels; segment: "
            "training on the labels. Default: contrast,segment.",
            metavar="LIST",
            parse=comma_separated,
        ),
    ] = None
    init: Annotated[
        str | None,
        Option(
            "--init",
            "Initial weights of the first stage: scratch, packaged (the model that comes with the package), "
            "imagenet (timm), or a file: a checkpoint or model of parotid-seg, or weights of a Swin Transformer. "
            "Default: the preset's.",
            metavar="NAME_OR_FILE",
        ),
    ] = None
    transfer: Annotated[
        tuple[str, ...] | None,
        Option(
            "--transfer",
            "Parts whose weights a stage with labels takes over: encoder, decoder or encoder,decoder (default).",
            metavar="PARTS",
            parse=comma_separated,
        ),
    ] = None
    labelled: Annotated[
        int | None,
        Option("--labelled", "Use N of the labelled patients, drawn with the seed. Default: all.", metavar="N"),
    ] = None
    device: Annotated[str, Option("--device", "auto, cpu, cuda or cuda:N.")] = "auto"
    seed: Annotated[int | None, Option("--seed", "Seed of all random numbers. Default: the preset's.", metavar="N")] = (
        None
    )
    resume: Annotated[bool, Option("--resume", "Continue from RUN/last.pt.")] = False
    max_minutes: Annotated[
        float | None,
        Option(
            "--max-minutes",
            "Stop N minutes after the start of the command, with the best weights so far; --resume continues after the "
            "last finished epoch, if there is one.",
            metavar="N",
        ),
    ] = None

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings that override those of preset and file."""
        values = {"seed": self.seed, "init": self.init, "stages": self.stages, "transfer": self.transfer}
        return {name: value for name, value in values.items() if value is not None}
