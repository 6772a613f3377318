"""The formats that masks are written in. A new one is a module in this folder and a line in `FORMATS`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from parotid_seg.flags import Flag
    from parotid_seg.runtime.pipeline.sources import Source
    from parotid_seg.scan.nifti import NiftiScan
    from parotid_seg.scan.volume import Mask


@dataclass(frozen=True)
class MaskResult:
    """A mask and what it belongs to.

    Attributes:
        mask: labels (D, H, W) in canonical order.
        scan, source: what was segmented.
        labels: names by value, background first.
        model: what is said of the algorithm in a DICOM object.
        append: an RTSTRUCT whose structures a new one also has.
    """

    mask: Mask
    scan: NiftiScan
    source: Source
    labels: tuple[str, ...]
    model: str
    append: Path | None = None


class FormatModule(Protocol):
    """What the module of a format has."""

    def write(self, result: MaskResult, path: Path) -> tuple[Flag, ...]:
        """Write a mask whole or not at all.

        Returns:
            What a person should know about it.

        Raises:
            ScanError: if what is written does not give the mask back.
            OutputError: if the file cannot be written.
        """
        ...

    def is_ours(self, path: Path) -> bool:
        """Whether a file says of itself that `write` made it."""
        ...


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: as --format takes it.
        ending: of the files.
        module: name of its module in this folder, which is loaded when it is needed.
        use: what it is good for, in --help.
        dicom: whether it refers to the slices of a DICOM series, so that other scans cannot have it.
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
"""The default, and the one that --append is about."""
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
"""By name, in the order of --help."""


def formats_help() -> str:
    """The formats in one sentence, for --help."""
    names = [f"{each.name} ({each.use})" for each in FORMATS.values() if not each.dicom]
    of_series = [f"{each.name} ({each.use})" for each in FORMATS.values() if each.dicom]
    return f"{', '.join(names)}; of DICOM series also {', '.join(of_series)}."
