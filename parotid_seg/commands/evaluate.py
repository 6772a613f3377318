"""`parotid-seg evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from parotid_seg.commands.shared import Quiet, UsageError, Verbose, one_line_errors
from parotid_seg.commands.terminal import print_comparison, print_evaluation


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

    DSC, surface DSC at 1, 2 and 3 mm, HD and HD95 in mm, added path length in mm, volume error in ml, MPA, mAcc and
    MIoU; docs/metrics.md defines them. evaluate A B --references R says which of two sets of masks is better.
    """
    with one_line_errors():
        from parotid_seg.runtime.evaluation_record import write

        first = references or common
        if first is None:
            raise UsageError("Missing argument 'REFERENCES'.")
        if out is not None:
            _check_out(out, [place for place in (predictions, references, common) if place], dose)
        if references is None or common is None:
            record, rows, show = _scored(predictions, first, dose)
        else:
            record, rows, show = _compared(predictions, references, common, dose)
        if out is not None:
            write(record, rows, out)
        if not quiet:
            show(every_figure=every_figure)


Outcome = tuple[Any, Iterator[Sequence[object]], Callable[..., None]]
"""The record, its rows as a table, and a function that prints it."""


def _scored(predictions: Path, references: Path, dose: Path | None) -> Outcome:
    """Masks against references."""
    from parotid_seg.runtime.evaluation import evaluate as run
    from parotid_seg.runtime.evaluation_record import record_of, rows_of

    result = run(predictions, references, dose=dose)
    return record_of(result), rows_of(result), partial(print_evaluation, result)


def _compared(a: Path, b: Path, references: Path, dose: Path | None) -> Outcome:
    """Two sets of masks against the same references."""
    from parotid_seg.runtime.compare import compare, rows_of

    result = compare(a, b, references, dose=dose)
    return result, rows_of(result), partial(print_comparison, result)


def _check_out(out: Path, places: list[Path], dose: Path | None) -> None:
    """Check before any work that the output can be written, and is neither an input nor a file that others read.

    Raises:
        OptionError: if it is, or is a folder, or its name has another ending.
        OutputError: if its folder cannot be made or written to.
    """
    from parotid_seg.errors import OptionError
    from parotid_seg.files import check_not_read, exists, make_folder
    from parotid_seg.runtime.evaluation import masks_in
    from parotid_seg.runtime.evaluation_record import CSV, JSON, is_evaluation
    from parotid_seg.runtime.label_match import RUN, naming_file
    from parotid_seg.runtime.pipeline.ownership import OF_A_RUN
    from parotid_seg.scan.label_set import DESCRIPTION
    from parotid_seg.scan.search import search

    masks = [path for place in places for path in masks_in(place).values()]
    named = filter(None, map(naming_file, places))
    check_not_read(out, [*masks, *named, *(search([dose]).files if dose and exists(dose) else ())])
    if out.suffix.lower() not in (JSON, CSV):
        raise OptionError(f"--out: found {out.name}, expected a name ending in {JSON} or {CSV}")
    if exists(out) and not out.is_file():
        raise OptionError(f"--out: {out}: found {'a folder' if out.is_dir() else 'no file'}, expected a file to make")
    beside = exists(out.parent / RUN) or out.parent.resolve() in {path.parent.resolve() for path in masks}
    if beside and out.name in (*OF_A_RUN, DESCRIPTION):
        raise OptionError(f"--out: {out}: beside masks this is a file of infer or of a data set, expected another name")
    if exists(out) and not is_evaluation(out):
        raise OptionError(f"--out: {out}: found a file that is not of evaluate, expected another name")
    make_folder(out.parent)
