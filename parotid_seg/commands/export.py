"""`parotid-seg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.option_parameters import with_options
from parotid_seg.commands.shared import Quiet, Verbose, extra, one_line_errors
from parotid_seg.commands.terminal import following
from parotid_seg.export.export_options import ExportOptions


@with_options
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="best.pt or last.pt of a training run.")],
    out: Annotated[Path, typer.Option("--out", metavar="MODEL.onnx", help="The model file to make.")],
    options: ExportOptions,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Export a checkpoint to one self-describing ONNX file that is verified against the trained model.

    The file and the trained model segment the same scans, at several native sizes and batch sizes. If their masks
    differ by more than the tolerance, or the network does not compute in the requested precision, the file is not
    written and the exit status is 1. MODEL.parity.json holds the comparison; if it failed, MODEL.parity.png shows the
    differences. An engine is MODEL.engine with its sidecar MODEL.engine.json. Needs the extra:
    pip install 'parotid-seg[export]'; to build engines also [tensorrt] or [rtx], for --triton also [triton].
    """
    with one_line_errors(), extra("export"), following(quiet) as line:
        from parotid_seg.export.verified_export import export as run
        from parotid_seg.files import check_not_read

        check_not_read(out, [checkpoint])
        run(checkpoint, out, options, report=line.say, progress=line.phase)
