"""Options of a run over a folder of scans."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from parotid_seg.errors import OptionError
from parotid_seg.files import exists
from parotid_seg.options import Option
from parotid_seg.runtime.formats.mask_formats import NIFTI, formats_help
from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions

if TYPE_CHECKING:
    from parotid_seg.runtime.pipeline.writers import Outputs
    from parotid_seg.scan.codes import Rois

T = TypeVar("T")


@dataclass(frozen=True)
class InferOptions(SegmentationOptions, panel="Run and output"):
    """How scans are segmented, and what is written. The object is passed from the command to every worker."""

    batch_size: Annotated[
        int | None,
        Option(
            "--batch-size",
            "Slices at once. This limits memory and does not change the result. Default: the number with which the "
            "engine is fastest.",
            metavar="N",
            least=1,
        ),
    ] = None
    workers: Annotated[
        int | None,
        Option(
            "--workers",
            "Largest number of processes that read scans and write masks. Default: one per core, from 2 to 16, started "
            "as they are needed. With --cluster: largest number of copies of the model, each with its own cores. "
            "Default: as many as there is room for.",
            metavar="N",
            least=1,
        ),
    ] = None
    pictures: Annotated[
        bool, Option("--pictures/--no-pictures", "Write an overlay picture of each case to DIR/pictures.")
    ] = True
    report: Annotated[
        bool,
        Option("--report/--no-report", "Write report.html, all cases of DIR with pictures, worst first."),
    ] = True
    formats: Annotated[
        tuple[str, ...],
        Option("--format", f"{formats_help()} May be given several times.", metavar="NAME"),
    ] = (NIFTI,)
    append: Annotated[
        Path | None,
        Option(
            "--append",
            "An existing RTSTRUCT of the scan; the new RTSTRUCT also contains its structures.",
            metavar="FILE",
        ),
    ] = None
    dose: Annotated[
        Path | None,
        Option(
            "--dose",
            "The planned dose: an RTDOSE or NIfTI file (in Gy), or a folder of them. Adds the mean dose of each "
            "structure to summary.csv, results.json and the report. An RTDOSE belongs to the DICOM scan in its frame "
            "of reference, other doses to the case of their name; a case without one fails.",
            metavar="PATH",
        ),
    ] = None
    only: Annotated[
        tuple[str, ...],
        Option("--only", "Write this structure only, by its label in the model. May be given several times.", "LABEL"),
    ] = ()
    roi_names: Annotated[
        tuple[str, ...],
        Option(
            "--roi-name",
            "Name of a structure in RTSTRUCT, SEG, .seg.nrrd, pictures and the report. Default: TG-263, as Parotid_L, "
            "in files, and plain words in the others. May be given several times.",
            "LABEL=NAME",
        ),
    ] = ()
    roi_colours: Annotated[
        tuple[str, ...],
        Option(
            "--roi-colour", "Colour of a structure in the same places. May be given several times.", "LABEL=#RRGGBB"
        ),
    ] = ()
    identify: Annotated[
        bool,
        Option(
            "--identify",
            "Show patients' names, IDs and birth dates of DICOM scans in summary.csv, results.json and the report, for "
            "the SCANs of this run, including cases done before. Otherwise only DICOM results contain them.",
        ),
    ] = False
    overwrite: Annotated[bool, Option("--overwrite", "Run finished cases again. Default: skip them.")] = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: as `OptionGroup`, for unknown formats or formats that do not fit each other, and for a dose
                that does not exist.
        """
        super().__post_init__()
        if self.dose and not exists(self.dose):
            raise OptionError(f"--dose: {self.dose}: no such file or folder")
        _ = self.outputs

    @cached_property
    def outputs(self) -> Outputs:
        """The formats of the masks."""
        from parotid_seg.runtime.pipeline.writers import Outputs

        return Outputs(self.formats, self.append, self.rois)

    @cached_property
    def rois(self) -> Rois:
        """The structures that are written, their names and colours."""
        from parotid_seg.scan.codes import Rois

        names = _pairs("--roi-name", self.roi_names, "a name of 1 to 64 characters", _name)
        colours = _pairs("--roi-colour", self.roi_colours, "a colour as #RRGGBB", _colour)
        return Rois(self.only, names, colours)

    @property
    def views(self) -> bool:
        """Whether pictures are also saved for the report."""
        return self.pictures and self.report


def _pairs(option: str, texts: tuple[str, ...], expected: str, read: Callable[[str], T | None]) -> dict[str, T]:
    """Values by label, from texts as LABEL=VALUE.

    Raises:
        OptionError: if a text has another form, or for a label that is given twice.
    """
    values: dict[str, T] = {}
    for text in texts:
        label, _, written = (part.strip() for part in text.partition("="))
        value = read(written)
        if not label or value is None:
            raise OptionError(f"{option}: found {text!r}, expected a label, = and {expected}")
        if label in values:
            raise OptionError(f"{option}: found {label} twice, expected once")
        values[label] = value
    return values


def _name(text: str) -> str | None:
    from parotid_seg.scan.codes import LONGEST_LINE, plain

    return text if 1 <= len(text) <= LONGEST_LINE and plain(text) == text else None


def _colour(text: str) -> tuple[int, int, int] | None:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        return None
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
