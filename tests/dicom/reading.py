"""What is found in folders, and the intensities of a series, as tests look at them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.scan.volume import Volume


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_only(paths: Iterable[Path]) -> tuple[NDArray[Any], Volume]:
    """Intensities (slices, rows, columns) of the one series of some files, all of which are used, and its volume."""
    found = find_series(paths)
    assert found.left_out == ()
    volume = read_series(found.series[0]).volume
    return volume.orientation.to_storage(volume.voxels[0]).T, volume
