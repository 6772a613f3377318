"""Options that say how a data set is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parotid_seg.options import Option, OptionGroup, comma_separated

LEFT, RIGHT = "parotid_left", "parotid_right"
"""The labels that the built-in rules for ROI names know."""


@dataclass(frozen=True)
class DataSetOptions(OptionGroup, panel="Options"):
    """How a data set is made from DICOM studies."""

    labels: Annotated[
        tuple[str, ...],
        Option("--labels", "Labels, in the order of their values from 1.", metavar="LIST", parse=comma_separated),
    ] = (LEFT, RIGHT)
    names: Annotated[
        Path | None,
        Option(
            "--names",
            'Which ROI names mean a label: label = ["name", ...], in upper or lower case. Overrides the '
            "built-in rules, which cover the parotid glands only.",
            metavar="FILE.toml",
        ),
    ] = None
    partial: Annotated[
        bool,
        Option(
            "--partial",
            "Keep scans without contours of some labels; training treats the missing structures as background.",
        ),
    ] = False
    prefer: Annotated[
        str | None,
        Option(
            "--prefer",
            "Of several RTSTRUCTs of a series take the one of this label. Default: most labels, approved, newest.",
            metavar="LABEL",
        ),
    ] = None
    validation: Annotated[
        int | None,
        Option(
            "--validation",
            "Patients to hold out for validation, with all their scans. Default: a fifth. A rerun adds to them, "
            "but moves none.",
            metavar="N",
        ),
    ] = None
    test: Annotated[
        int,
        Option(
            "--test",
            "Patients to lock for a test, in all: nothing is trained or chosen on them. They stay locked in reruns; a "
            "larger N locks new patients, too, but moves none.",
            metavar="N",
        ),
    ] = 0
    private: Annotated[
        Path | None,
        Option(
            "--private",
            "Folder for records that must not be passed on with DATA. Default: DATA.private.",
            metavar="DIR",
        ),
    ] = None
    identify: Annotated[
        bool, Option("--identify", "Write patient IDs and UIDs to cases.csv in the private folder.")
    ] = False


DEFAULTS = DataSetOptions()
