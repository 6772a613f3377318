"""`parotid-seg dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.options import with_options
from parotid_seg.commands.shared import Quiet, Verbose, one_line_errors
from parotid_seg.commands.terminal import following
from parotid_seg.dataset.options import DataSetOptions


@with_options
def dataset(
    dicom: Annotated[
        list[Path], typer.Argument(metavar="DICOM_DIR...", help="Folders of DICOM studies, searched at any depth.")
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
    Exit status: 0 all done, 1 nothing done, 3 something that looks usable was not used, 130 interrupted.
    """
    with one_line_errors("finished cases are kept"), following(quiet) as line:
        from parotid_seg.dataset.build import build

        built = build(dicom, out, options, say=line.say, progress=line.phase)
        counts = f"{built.labelled} scans with contours, {built.unlabelled} without ({built.made} made now)"
        if built.flagged:
            line.say(
                f"{built.flagged} of the scans with contours need review: see their notes in {built.private}/cases.csv"
            )
        line.say(
            f"{counts}; {built.left_out} items not used, {built.look_at} need review: {built.private}/left_out.csv"
        )
    raise typer.Exit(built.exit_status)
