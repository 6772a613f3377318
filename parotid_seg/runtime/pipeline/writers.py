"""Writes a mask in the requested formats, each file completely or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from parotid_seg.errors import OptionError, OutputError, ParotidSegError, ScanError
from parotid_seg.files import hash_file, partial_path
from parotid_seg.runtime.formats.mask_formats import FORMATS, NIFTI, RTSTRUCT, MaskResult
from parotid_seg.scan.codes import ALL_ROIS, Rois

if TYPE_CHECKING:  # this module checks options, before the libraries that read scans are imported
    from parotid_seg.flags import Flag
    from parotid_seg.runtime.pipeline.sources import Source
    from parotid_seg.scan.nifti import NiftiScan
    from parotid_seg.scan.volume import Mask


@dataclass(frozen=True)
class Outputs:
    """The output files of a mask.

    Attributes:
        formats: keys of `FORMATS`, which get its order: the same files asked for in another order are the same.
        append: an RTSTRUCT whose structures the new one also has.
        rois: which structures are written, and their names and colours.
    """

    formats: tuple[str, ...] = (NIFTI,)
    append: Path | None = None
    rois: Rois = ALL_ROIS

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise OptionError(f"--format: found {name!r}, expected one of: {', '.join(FORMATS)}")
        if not self.formats or len(set(self.formats)) < len(self.formats):
            found = " ".join(self.formats) or "none"
            raise OptionError(f"--format: found {found}, expected at least one format, each once")
        if self.append and RTSTRUCT not in self.formats:
            raise OptionError("--append: it adds to an RTSTRUCT, expected --format rtstruct beside it")
        if self.append and not self.append.is_file():
            raise OptionError(f"--append: {self.append}: no such file")
        object.__setattr__(self, "formats", tuple(name for name in FORMATS if name in self.formats))

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Everything besides the mask that determines the files; empty for the default."""
        if self == Outputs():
            return ()
        chosen = () if self.rois == ALL_ROIS else (repr(self.rois),)
        return (*self.formats, *([_hash_of(self.append)] if self.append else []), *chosen)

    def names(self, case: str) -> list[str]:
        """Names of a case's files."""
        return [f"{case}{FORMATS[name].ending}" for name in self.formats]

    def check(self, source: Source) -> None:
        """Raise ScanError unless these formats can be written for a source."""
        dicom = [name for name in self.formats if FORMATS[name].dicom]
        if dicom and isinstance(source, Path):
            raise ScanError(
                f"a NIfTI file; --format {dicom[0]} refers to DICOM slices, expected a DICOM series", path=source
            )

    def check_some(self, sources: Iterable[Source]) -> None:
        """Raise OptionError if these formats can be written for none of the sources."""
        dicom = [name for name in self.formats if FORMATS[name].dicom]
        if dicom and all(isinstance(source, Path) for source in sources):
            raise OptionError(
                f"--format {dicom[0]}: it refers to DICOM slices, found only NIfTI files, expected DICOM series"
            )

    def write(
        self,
        mask: Mask,
        scan: NiftiScan,
        source: Source,
        labels: Sequence[str],
        model: str,
        stem: Path,
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Flag, ...]:
        """Write all formats, or none.

        Args:
            mask, scan, source, labels, model, notes: see `MaskResult`.
            stem: path of the files without their endings.

        Returns:
            Flags on the written files.

        Raises:
            ScanError: if a DICOM object does not reproduce the mask.
            OutputError: if a file cannot be written.
        """
        result = MaskResult(mask, scan, source, tuple(labels), model, self.append, self.rois, notes)
        flags: tuple[Flag, ...] = ()
        paths = [stem.with_name(name) for name in self.names(stem.name)]
        with _together(paths) as partials:
            for name, partial in zip(self.formats, partials, strict=True):
                flags += FORMATS[name].load().write(result, partial)
        return flags


@contextmanager
def _together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Names to write files under, which become `paths` when the block ends without an error.

    Raises:
        ParotidSegError: any error of the block, about the file of `paths`.
        OutputError: if a file cannot get its name.
    """
    partials = [partial_path(path) for path in paths]
    try:
        yield partials
        for partial, path in zip(partials, paths, strict=True):
            try:
                partial.replace(path)
            except OSError as error:
                raise OutputError(f"cannot be written ({error.strerror})", path=path) from error
    except ParotidSegError as error:
        for partial, path in zip(partials, paths, strict=True):
            if error.path == partial:
                raise type(error)(error.reason, path=path) from error
        raise
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def _hash_of(append: Path) -> str:
    try:
        return hash_file(append)
    except OSError as error:
        raise OptionError(f"--append: {append}: cannot be read ({error.strerror})") from error


def is_ours(path: Path) -> bool:
    """Whether a file is a result of parotid-seg."""
    return any(path.name.endswith(each.ending) and each.load().is_ours(path) for each in FORMATS.values())


def is_result(path: Path, sha256: str) -> bool:
    """Whether a file that the journal names is a result: unchanged, or marked as written by parotid-seg.

    Args:
        path: in the output folder; a link is not a result.
        sha256: of the file, by the journal.
    """
    try:
        return path.is_file() and not path.is_symlink() and (hash_file(path) == sha256 or is_ours(path))
    except OSError:
        return False
