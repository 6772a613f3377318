"""`parotid-seg train`."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.option_parameters import with_options
from parotid_seg.commands.shared import Quiet, Verbose, extra, one_line_errors
from parotid_seg.commands.terminal import following, print_error
from parotid_seg.train.train_options import TrainOptions


@with_options
def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Data set in nnU-Net's raw layout.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for checkpoints, metrics and pictures.")],
    options: TrainOptions,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Train the model: contrastive pre-training without labels, then training on labelled scans.

    From ten patients of your own: parotid-seg train DATA --out RUN --init packaged --preset few

    Pre-training without labels uses the scans of all training patients and of DATA/imagesUn. Each earlier stage writes
    to RUN/STAGE. Several GPUs or machines: torchrun --nproc-per-node N -m parotid_seg train DATA --out RUN.

    Writes RUN/best.pt (best on the validation patients; with initial weights and fewer than six of them, the last
    epoch), RUN/last.pt (to resume), RUN/config.toml (all settings), RUN/metrics.jsonl, RUN/curves.png and
    RUN/samples.png. With initial weights, RUN/transfer.json lists for every weight whether it was taken over, and if
    not, why. Needs the extra: pip install 'parotid-seg[train]'.
    """
    started = time.monotonic()

    def advice() -> str:
        from parotid_seg.train.time_limit import resume_advice

        return resume_advice(out)

    with one_line_errors(advice), extra("train"), following(quiet) as line:
        from parotid_seg.models import PACKAGED, model_file
        from parotid_seg.runtime.engines.model_file import read_model
        from parotid_seg.train.data.data_set import open_data_sets
        from parotid_seg.train.settings import check_init, load_config

        config = partial(load_config, options.preset, options.config, **options.overrides)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            settings = config()  # errors before torch is imported
            open_data_sets(data, settings, options.labelled)
            if not options.resume:
                check_init(settings.init)
                if settings.init == PACKAGED or settings.init.endswith(".onnx"):
                    read_model(model_file(settings.init))  # its seal, which training's own reader does not know

        from parotid_seg.train.exit_status import report_once
        from parotid_seg.train.stages import train as run

        with report_once(out, print_error):
            run(
                config(),
                data,
                out,
                labelled=options.labelled,
                device=options.device,
                resume=options.resume,
                max_minutes=options.max_minutes,
                started=started,
                report=line.say,
                progress=line.phase,
            )
