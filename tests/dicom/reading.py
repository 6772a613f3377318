"""What is found in folders, the intensities of a series, and files that GDCM compresses, as tests look at them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
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


def compress_with_gdcm(path: Path, syntax: str) -> None:
    """Compress a file in place; `syntax` is GDCM's name of a transfer syntax."""
    gdcm = pytest.importorskip("gdcm")
    reader, changer, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    changer.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    changer.SetInput(reader.GetImage())
    assert changer.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(changer.GetOutput())
    assert writer.Write()
