"""`parotid-seg dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parotid_seg.commands.option_parameters import with_options
from parotid_seg.commands.shared import Quiet, Verbose, one_line_errors
from parotid_seg.commands.terminal import following
from parotid_seg.dataset.dataset_options import DataSetOptions
from parotid_seg.wording import counted

if TYPE_CHECKING:
    from parotid_seg.dataset.build import Built


@with_options
def dataset(
    dicom: Annotated[
        list[Path], typer.Argument(metavar="DICOM_DIR", help="Folders of DICOM studies, searched at any depth.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DATA", help="Folder for the data set; a rerun continues it.")],
    options: DataSetOptions,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Make a data set for 'parotid-seg train' from DICOM studies with RTSTRUCT contours.

    Writes DATA in nnU-Net's raw layout: dataset.json, imagesTr, labelsTr, imagesUn (scans without usable contours) and
    splits.json, with all scans of a patient in one list. DATA.private/cases.csv lists the source of each case and the
    problems of its contours; DATA.private/left_out.csv lists every series, RTSTRUCT and ROI that was not used, and why.
    Exit status: 0 all done, 1 nothing done, 2 wrong option or argument, 3 something that looks usable was not used,
    130 interrupted.
    """
    with one_line_errors("finished cases are kept"), following(quiet) as line:
        from parotid_seg.dataset.build import build

        built = build(dicom, out, options, say=line.say, progress=line.phase)
        line.say(_last_line(built))
    raise typer.Exit(built.exit_status)


def _last_line(built: Built) -> str:
    """The counts, and where to read more."""
    scans = f"{counted(built.labelled, 'scan')} with contours{_to_review(built.flagged)}"
    items = f"{counted(built.left_out, 'item')} not used{_to_review(built.look_at)}"
    tables = f"cases.csv and left_out.csv in {built.private}"
    return f"{scans}, {built.unlabelled} without, {built.made} made now; {items}; see {tables}"


def _to_review(count: int) -> str:
    return f" ({count} need{'s' * (count == 1)} review)" if count else ""
