"""`parotid-seg evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from parotid_seg.commands.shared import Quiet, UsageError, Verbose, one_line_errors
from parotid_seg.terminal import print_comparison, print_evaluation


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of masks, or one mask.")],
    references: Annotated[
        Path | None,
        typer.Argument(
            metavar="REFERENCES",
            help="Folder of reference masks, or one mask; with --references, other masks to compare with.",
        ),
    ] = None,
    common: Annotated[
        Path | None,
        typer.Option(
            "--references",
            metavar="PATH",
            help="Reference masks of both sets of masks, A and B: compares them patient by patient.",
        ),
    ] = None,
    dose: Annotated[
        Path | None,
        typer.Option(
            "--dose",
            metavar="PATH",
            help="The planned dose of each case by its name, RTDOSE or NIfTI in Gy: also compares mean doses.",
        ),
    ] = None,
    every_figure: Annotated[bool, typer.Option("--all", help="Print all figures of all cases.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write all figures to this file: .json, or .csv as a table."),
    ] = None,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Compare masks with reference masks: mean figures of each structure, with 95 % bootstrap intervals.

    DSC, surface DSC at 1, 2 and 3 mm, HD and HD95 in mm, added path length in mm, volume difference in ml, MPA, mAcc
    and MIoU; docs/metrics.md defines them. evaluate A B --references R tells which of two sets of masks is better.
    """
    with one_line_errors():
        from parotid_seg.files import check_not_read, exists
        from parotid_seg.runtime import compare
        from parotid_seg.runtime.evaluate import evaluate as run
        from parotid_seg.runtime.evaluate import masks_in
        from parotid_seg.runtime.evaluation_record import record_of, rows_of, write
        from parotid_seg.scan.search import search

        if references is None and common is None:
            raise UsageError("Missing argument 'REFERENCES'.")
        places = [place for place in (predictions, references, common) if place is not None]
        if out is not None:
            inputs = [path for place in places for path in masks_in(place).values()]
            check_not_read(out, [*inputs, *(search([dose]).files if dose and exists(dose) else ())])
        result: Any
        record: Any
        show: Any
        if len(places) == 3:
            result = record = compare.compare(places[0], places[1], places[2], dose=dose)
            rows, show = compare.rows_of(result), print_comparison
        else:
            result = run(places[0], places[1], dose=dose)
            record, rows, show = record_of(result), rows_of(result), print_evaluation
        if out is not None:
            write(record, rows, out)
        if not quiet:
            show(result, every_figure=every_figure)
