"""`parotid-seg train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.shared import Quiet, Verbose, extra, listed, one_line_errors
from parotid_seg.terminal import following, print_error


def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Data set in nnU-Net's raw layout.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for checkpoints, metrics and pictures.")],
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="compact (the packaged model's), few (the same network, for about ten patients: 18,000 slices from "
            "scratch, or a few thousand from --init) or paper (Swin-T widths, 224 px, the published schedule).",
        ),
    ] = "compact",
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file with settings that override the preset.")
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            "--stages",
            metavar="LIST",
            help="Some of organs,contrast,dense,segment in this order. organs: pre-training on DATA/organsTr; "
            "contrast, dense: contrastive pre-training of the encoder, of the decoder, without labels; segment: "
            "training on the labels. Default: contrast,segment.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="NAME_OR_FILE",
            help="Initial weights of the first stage: scratch, packaged (the model that comes with the package), "
            "imagenet (timm), or a file: a checkpoint or model of parotid-seg, or weights of a Swin Transformer. "
            "Default: the preset's.",
        ),
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            "--transfer",
            metavar="PARTS",
            help="Parts whose weights a stage with labels takes over: encoder, decoder or encoder,decoder (default).",
        ),
    ] = None,
    labelled: Annotated[
        int | None, typer.Option("--labelled", metavar="N", help="Use N of the labelled patients, drawn with the seed.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Default: the preset's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from RUN/last.pt.")] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            metavar="N",
            help="Stop after N minutes, with the best weights so far; --resume continues.",
        ),
    ] = None,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Train the model: contrastive pre-training without labels, then training on labelled scans.

    From ten patients of your own: parotid-seg train DATA --out RUN --init packaged --preset few

    Pre-training without labels uses the scans of all training patients and of DATA/imagesUn. Each earlier stage writes
    to RUN/STAGE. Several GPUs or machines: torchrun --nproc-per-node N -m parotid_seg train DATA --out RUN.

    Writes RUN/best.pt (best on the validation patients), RUN/last.pt (to resume), RUN/config.toml (resolved),
    RUN/metrics.jsonl, RUN/curves.png and RUN/samples.png. With initial weights, RUN/transfer.json lists for every
    weight whether it was taken over, and if not, why. Needs the extra: pip install 'parotid-seg[train]'.
    """

    def advice() -> str:
        from parotid_seg.train.settings import resume_advice

        return resume_advice(out)

    with one_line_errors(advice), extra("train"), following(quiet) as line:
        from parotid_seg.train.dataset import open_data_sets
        from parotid_seg.train.settings import load_config

        options = {"seed": seed, "init": init, "stages": listed(stages), "transfer": listed(transfer)}
        overrides = {name: value for name, value in options.items() if value is not None}
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            open_data_sets(data, load_config(preset, config, **overrides), labelled)  # errors before torch is imported

        from parotid_seg.train.exit_status import report_once
        from parotid_seg.train.stages import train as run

        with report_once(out, print_error):
            settings = load_config(preset, config, **overrides)
            run(
                settings,
                data,
                out,
                labelled=labelled,
                device=device,
                resume=resume,
                max_minutes=max_minutes,
                report=line.say,
                progress=line.phase,
            )
