"""The sources of a case: image files or DICOM series, one for each of the model's channels."""

from __future__ import annotations

import hashlib
from pathlib import Path

from parotid_seg.dicom.read.series import Series, SeriesFacts
from parotid_seg.files import hash_file
from parotid_seg.scan.nifti import NiftiScan, count_voxels, is_nifti, read_nifti
from parotid_seg.scan.other_formats import count_voxels_of, files_of_image, read_image

Source = Path | Series
"""An image file (absolute path, which may not exist), or a DICOM series."""
Scan = tuple[Source, ...]
"""The sources of a scan's channels, in the model's order."""


def place_of(source: Source) -> Path:
    """A unique, readable and stable identifier of a source."""
    return source if isinstance(source, Path) else source.folder / f"series-{source.key}"


def series_of(source: Source) -> str:
    """A DICOM series' name in messages; empty for a file."""
    return source.title if isinstance(source, Series) else ""


def facts_of(source: Source) -> SeriesFacts | None:
    """What a DICOM series' header says of its acquisition; None for a file."""
    return source.facts if isinstance(source, Series) else None


def hash_source(source: Source) -> str:
    """Hash of a source's bytes, of the choice of its slices, and of remarks on what lies beside it.

    Raises:
        OSError: if a file cannot be read.
    """
    if isinstance(source, Path):
        hashes = [hash_file(path) for path in files_of_image(source)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    files = {each.path: hash_file(each.path) for each in source.slices}
    slices = ((files[each.path], str(each.frame)) for each in source.slices)
    parts = [*(part for each in slices for part in each), *map(str, source.flags)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def read_scan(scan: Scan) -> NiftiScan:
    """Read the channels of a scan; a series is read as a converter to NIfTI would store it.

    Files must have the same voxels. Series must only share a frame of reference: they are resampled to the voxels of
    the first one, to whose slices the mask belongs.

    Raises:
        ScanError: as `read_nifti` and `read_on_one_grid`.
    """
    paths = [each for each in scan if isinstance(each, Path)]
    if len(paths) == len(scan):
        return read_image(paths[0]) if len(paths) == 1 and not is_nifti(paths[0]) else read_nifti(*paths)
    from parotid_seg.dicom.mr.resample import read_on_one_grid

    first, *further = (each for each in scan if isinstance(each, Series))
    assert len(further) == len(scan) - 1
    return read_on_one_grid(first, further)


def voxels_of(scan: Scan) -> int:
    """Voxels in memory while a scan is read, by its headers; 0 for files that cannot be read."""
    first, *further = (_voxels_of(each) for each in scan)
    if isinstance(scan[0], Path):
        return first + sum(further)
    return first * len(scan) + max(further, default=0)  # they are resampled one by one


def _voxels_of(source: Source) -> int:
    if isinstance(source, Path):
        return count_voxels(source) if is_nifti(source) else count_voxels_of(source)
    return source.voxels
