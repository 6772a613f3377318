"""A mask in the formats that were asked for, each file whole or not there at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import OptionError, ScanError
from parotid_seg.files import hash_file
from parotid_seg.flags import Flag
from parotid_seg.runtime.pipeline.sources import Source
from parotid_seg.scan.nifti import NiftiScan, is_own_mask, write_mask
from parotid_seg.scan.volume import Mask

NIFTI, NRRD, RTSTRUCT, SEG, SEG_LABELMAP = "nifti", "nrrd", "rtstruct", "seg", "seg-labelmap"
DICOM = {RTSTRUCT: ".rtstruct.dcm", SEG: ".seg.dcm", SEG_LABELMAP: ".labelmap.dcm"}
ENDINGS = {NIFTI: ".nii.gz", NRRD: ".seg.nrrd", **DICOM}
"""Of the files that are made, by format."""


@dataclass(frozen=True)
class Outputs:
    """What is made of a mask.

    Attributes:
        formats: keys of `ENDINGS`.
        append: an RTSTRUCT whose structures the new one also has.
    """

    formats: tuple[str, ...] = (NIFTI,)
    append: Path | None = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in ENDINGS:
                raise OptionError(f"--format: found {name!r}, expected one of: {', '.join(ENDINGS)}")
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise OptionError("--format: expected at least one format, each once")
        if self.append and RTSTRUCT not in self.formats:
            raise OptionError("--append: it adds to an RTSTRUCT, expected --format rtstruct beside it")
        if self.append and not self.append.is_file():
            raise OptionError(f"--append: {self.append}: no such file")

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """What decides the files beside the mask; nothing for the default."""
        return () if self == Outputs() else (*self.formats, *([_hash_of(self.append)] if self.append else []))

    def names(self, case: str) -> list[str]:
        """Names of a case's files."""
        return [f"{case}{ENDINGS[name]}" for name in self.formats]

    def check(self, source: Source) -> None:
        """Raise ScanError unless a source can have these formats."""
        dicom = [name for name in self.formats if name in DICOM]
        if dicom and not isinstance(source, Series):
            raise ScanError(
                f"a NIfTI file; --format {dicom[0]} refers to DICOM slices, expected a DICOM series", path=source
            )

    def write(
        self, mask: Mask, scan: NiftiScan, source: Source, labels: Sequence[str], model: str, stem: Path
    ) -> tuple[Flag, ...]:
        """Write all formats.

        Args:
            mask: labels (D, H, W) in canonical order.
            scan, source: what was segmented.
            labels: names by label.
            model: what is said of the algorithm in a DICOM object.
            stem: path of the files without their endings.

        Returns:
            What a person should know about the RTSTRUCT that was added to.

        Raises:
            ScanError: if a DICOM object does not give the mask back.
            OutputError: if a file cannot be written.
        """
        flags: tuple[Flag, ...] = ()
        for name in self.formats:
            path = stem.with_name(stem.name + ENDINGS[name])
            if name == NIFTI:
                write_mask(mask, scan, path)
            elif name == NRRD:
                from parotid_seg.scan.slicer import write_seg_nrrd

                write_seg_nrrd(mask, scan, labels, path)
            else:
                assert isinstance(source, Series)
                flags += _write_dicom(name, mask, scan, source, tuple(labels), model, path, self.append)
        return flags


def _hash_of(append: Path) -> str:
    try:
        return hash_file(append)
    except OSError as error:
        raise OptionError(f"--append: {append}: cannot be read ({error.strerror})") from error


def _write_dicom(
    name: str,
    mask: Mask,
    scan: NiftiScan,
    series: Series,
    labels: tuple[str, ...],
    model: str,
    path: Path,
    append: Path | None,
) -> tuple[Flag, ...]:
    from parotid_seg.dicom.read.volume import slices_of

    slices = slices_of(mask, scan)
    if name == RTSTRUCT:
        from parotid_seg.dicom.write.rtstruct import write_rtstruct

        return write_rtstruct(series, slices, labels, path, model=model, append=append)
    from parotid_seg.dicom.write.seg import write_seg

    write_seg(series, slices, labels, path, model=model, kind="labelmap" if name == SEG_LABELMAP else "binary")
    return ()


def is_ours(path: Path) -> bool:
    """Whether a file is a result that was written here."""
    if path.name.endswith(ENDINGS[NIFTI]):
        return is_own_mask(path)
    if path.name.endswith(ENDINGS[NRRD]):
        from parotid_seg.scan.slicer import is_own_segmentation

        return is_own_segmentation(path)
    from parotid_seg.dicom.write.objects import is_own_object

    return is_own_object(path)


def is_result(path: Path, sha256: str) -> bool:
    """Whether a file that the journal names is a result: as it was written, or one that says so itself.

    Args:
        path: in the output folder; a link is none.
        sha256: of the file, by the journal.
    """
    try:
        return path.is_file() and not path.is_symlink() and (hash_file(path) == sha256 or is_ours(path))
    except OSError:
        return False
