"""`parotid-seg dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.shared import Quiet, Verbose, listed, one_line_errors
from parotid_seg.terminal import following


def dataset(
    dicom: Annotated[
        list[Path], typer.Argument(metavar="DICOM_DIR...", help="Folders of DICOM studies, searched at any depth.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DATA", help="Folder for the data set; a rerun continues it.")],
    labels: Annotated[
        str, typer.Option("--labels", metavar="LIST", help="Labels, in the order of their values from 1.")
    ] = "parotid_left,parotid_right",
    names: Annotated[
        Path | None,
        typer.Option(
            "--names",
            metavar="FILE.toml",
            help='Which ROI names mean a label: label = ["name", ...], in upper or lower case. Overrides the '
            "built-in rules, which cover the parotid glands only.",
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Keep scans without contours of some labels; training treats the missing structures as background.",
        ),
    ] = False,
    prefer: Annotated[
        str | None,
        typer.Option(
            "--prefer",
            metavar="LABEL",
            help="Of several RTSTRUCTs of a series take the one of this label. Default: most labels, approved, newest.",
        ),
    ] = None,
    validation: Annotated[
        int | None,
        typer.Option(
            "--validation",
            metavar="N",
            help="Patients to hold out for validation, with all their scans. Default: a fifth. A rerun adds to them, "
            "but moves none.",
        ),
    ] = None,
    test: Annotated[
        int,
        typer.Option(
            "--test",
            metavar="N",
            help="Patients to lock for a test: nothing is trained or chosen on them. They stay locked in reruns.",
        ),
    ] = 0,
    private: Annotated[
        Path | None,
        typer.Option(
            "--private",
            metavar="DIR",
            help="Folder for records that must not be passed on with DATA. Default: DATA.private.",
        ),
    ] = None,
    identify: Annotated[
        bool, typer.Option("--identify", help="Write patient IDs and UIDs to cases.csv in the private folder.")
    ] = False,
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
        from parotid_seg.dataset.build import DataSetOptions, build

        options = DataSetOptions(
            labels=tuple(listed(labels) or ()),
            names=names,
            partial=partial,
            prefer=prefer,
            validation=validation,
            test=test,
            identify=identify,
            private=private,
        )
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
