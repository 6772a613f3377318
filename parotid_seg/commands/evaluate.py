"""`parotid-seg evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.shared import Quiet, Verbose, one_line_errors
from parotid_seg.terminal import print_evaluation


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of masks, or one mask.")],
    references: Annotated[Path, typer.Argument(metavar="REFERENCES", help="Folder of reference masks, or one mask.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Also write all figures to this file.")
    ] = None,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Compare masks with reference masks: per case and label, and the mean with its 95 % bootstrap interval.

    DSC, MPA, mAcc, MIoU, HD and HD95 in mm, volume difference in ml; docs/metrics.md defines them.
    """
    with one_line_errors():
        from parotid_seg.files import check_not_read, write_text
        from parotid_seg.runtime.evaluate import evaluate as run
        from parotid_seg.runtime.evaluate import files_of

        if out is not None:
            check_not_read(out, files_of(predictions, references))
        result = run(predictions, references)
        if out is not None:
            write_text(result.to_json(), out)
        if not quiet:
            print_evaluation(result)
