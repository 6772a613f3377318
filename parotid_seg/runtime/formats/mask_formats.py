"""The output formats of masks. A new one is a module in this folder and a line in `FORMATS`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from parotid_seg.scan.codes import ALL_ROIS, Rois

if TYPE_CHECKING:
    from parotid_seg.flags import Flag
    from parotid_seg.runtime.pipeline.sources import Source
    from parotid_seg.scan.nifti import NiftiScan
    from parotid_seg.scan.volume import Mask


@dataclass(frozen=True)
class MaskResult:
    """A mask with its scan and labels.

    Attributes:
        mask: labels (D, H, W) in canonical order.
        scan, source: the segmented scan.
        labels: names by value, background first.
        model: description of the algorithm in a DICOM object.
        append: an RTSTRUCT whose structures a new one also has.
        rois: which structures are written, and their names and colours.
        notes: by label, a sentence for the structure's description in a DICOM object.
    """

    mask: Mask
    scan: NiftiScan
    source: Source
    labels: tuple[str, ...]
    model: str
    append: Path | None = None
    rois: Rois = ALL_ROIS
    notes: Mapping[str, str] = field(default_factory=dict)


class FormatModule(Protocol):
    """The functions of a format's module."""

    def write(self, result: MaskResult, path: Path) -> tuple[Flag, ...]:
        """Write a mask completely or not at all.

        Returns:
            Flags on the result.

        Raises:
            ScanError: if the written file does not reproduce the mask.
            OutputError: if the file cannot be written.
        """
        ...

    def is_ours(self, path: Path) -> bool:
        """Whether a file states that `write` made it."""
        ...


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: its name for --format.
        ending: of the files.
        module: name of its module in this folder, which is loaded when needed.
        use: its purpose, for --help.
        dicom: whether it refers to the slices of a DICOM series, and so requires one.
    """

    name: str
    ending: str
    module: str
    use: str
    dicom: bool = False

    def load(self) -> FormatModule:
        """Its module."""
        return cast(FormatModule, importlib.import_module(f"{__package__}.{self.module}"))


NIFTI, RTSTRUCT = "nifti", "rtstruct"
"""The default format, and the one for --append."""
FORMATS = {
    each.name: each
    for each in (
        Format(NIFTI, ".nii.gz", "nifti_output", "the default"),
        Format("nrrd", ".seg.nrrd", "nrrd_output", "for 3D Slicer"),
        Format(RTSTRUCT, ".rtstruct.dcm", "rtstruct_output", "contours for planning systems", dicom=True),
        Format("seg", ".seg.dcm", "seg_output", "a DICOM segmentation", dicom=True),
        Format("seg-labelmap", ".labelmap.dcm", "labelmap_output", "the same as one label map", dicom=True),
    )
}
"""The formats by name, in the order of --help."""


def formats_help() -> str:
    """The formats in one sentence, for --help."""
    names = [f"{each.name} ({each.use})" for each in FORMATS.values() if not each.dicom]
    of_series = [f"{each.name} ({each.use})" for each in FORMATS.values() if each.dicom]
    return f"{', '.join(names)}; of DICOM series also {', '.join(of_series)}."
