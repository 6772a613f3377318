"""Shared parts of the written DICOM objects: equipment, references, codes, and saving."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr, dcmwrite

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import read_object
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import InputError, ScanError
from parotid_seg.files import check_not_read
from parotid_seg.scan.codes import LEARNING, LONGEST_LINE, MODIFYING, Coded, plain
from parotid_seg.scan.volume import Mask
from parotid_seg.version import VERSION

MAKER = "parotid-seg"
SERIES_NUMBER = 1000
"""Series number of written objects: listed after the scans."""
NO_NOTES: Mapping[str, str] = MappingProxyType({})


def check_mask(series: Series, mask: Mask, labels: tuple[str, ...], path: Path, *read: Path | None) -> None:
    """Raise InputError unless a mask fits its series and labels, and the output is not one of the input files."""
    expected = (len(series.slices), series.rows, series.columns)
    if mask.shape != expected:
        raise InputError(f"found a mask of shape {mask.shape}, expected {expected} as the series has", path=path)
    if len(labels) < 2 or int(mask.max()) >= len(labels):
        raise InputError(
            f"found label {int(mask.max())} in the mask, expected names for it: {len(labels)} labels", path=path
        )
    check_not_read(path, [*(each.path for each in series.slices), *filter(None, read)])


def described(note: str = "") -> str:
    """The description of an object or a structure, with a sentence on it."""
    made = f"Made by {MAKER} {VERSION}, not reviewed"
    return f"{made}. {note}" if note else made


def add_maker(dataset: Dataset, model: str) -> None:
    """Add the equipment and the time of creation."""
    dataset.Manufacturer, dataset.ManufacturerModelName = MAKER, MAKER
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = VERSION, line(model)
    stamp(dataset)


def add_contributor(dataset: Dataset) -> None:
    """Add this package as a contributor to an object of other equipment."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded(MODIFYING)]
    item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions = MAKER, MAKER, VERSION
    item.ContributionDescription = "Structures added"
    dataset.ContributingEquipmentSequence = [*(dataset.get("ContributingEquipmentSequence") or ()), item]
    stamp(dataset)


def stamp(dataset: Dataset) -> None:
    """Set the time of an object's creation."""
    now = now_in(dataset)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"


def now_in(dataset: Dataset) -> datetime:
    """The time now in the time zone that a dataset states for all of its times; else in this machine's."""
    offset = str(dataset.get("TimezoneOffsetFromUTC") or "")
    if not re.fullmatch(r"[+-][0-1][0-9][0-5][0-9]", offset):
        return datetime.now()
    return datetime.now(datetime.strptime(offset, "%z").tzinfo)


def is_own_object(path: Path) -> bool:
    """Whether a file is a DICOM object that this package wrote or added to."""
    tags = ["Manufacturer", "ContributingEquipmentSequence"]
    try:
        with phi_safe(path, "DICOM object"):
            header = read_object(path, tags)
            equipment = [header, *(header.get("ContributingEquipmentSequence") or ())]
            return any(each.get("Manufacturer") == MAKER for each in equipment)
    except ScanError:
        return False


def algorithm(model: str) -> Dataset:
    """The model of a mask as an item of an algorithm identification sequence."""
    item = Dataset()
    item.AlgorithmFamilyCodeSequence = [coded(LEARNING)]
    item.AlgorithmName, item.AlgorithmVersion, item.AlgorithmSource = MAKER, VERSION, MAKER
    item.AlgorithmParameters = line(f"model={model}")
    return item


def line(text: str) -> str:
    """A text as a LO value."""
    return plain(text)[:LONGEST_LINE].strip()


def coded(code: Coded) -> Dataset:
    """A code as an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def save(dataset: Dataset, path: Path, shown: Path) -> None:
    """Write an object in the encoding of its `file_meta`.

    Args:
        shown: the name for errors.

    Raises:
        ScanError: if a copied attribute cannot be encoded.
    """
    with phi_safe(shown, "DICOM object"):
        correct_ambiguous_vr(dataset, dataset.file_meta.TransferSyntaxUID.is_little_endian)
        content = BytesIO()
        dcmwrite(content, dataset, enforce_file_format=True)
    path.write_bytes(content.getvalue())
