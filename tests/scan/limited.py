"""Reads a scan in a process with little memory."""

import resource
from pathlib import Path

import nrrd  # noqa: F401 (imported before memory is limited)

from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.errors import ScanError
from parotid_seg.runtime.pipeline.sources import read_scan, voxels_of


def read(path: Path, room: int) -> None:
    """Print why a scan is refused, or its flags.

    Args:
        path: a file, or the folder of a series.
        room: bytes that this process may have beyond what it has now.
    """
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + room,) * 2)
    try:
        if path.is_dir():
            found = find_series(sorted(path.iterdir()))
            reason = "; ".join(each.reason for each in found.left_out)
            for series in found.series:
                read_series(series)
        else:
            voxels_of((path,))
            scan = read_scan((path,))
            reason = " ".join(("read", *(flag.code for flag in scan.volume.flags)))
    except ScanError as error:
        reason = error.reason
    print(reason)  # noqa: T201
