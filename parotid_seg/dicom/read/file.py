"""Reads a DICOM file's header within limits: files are untrusted, and a length in them may have any value."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import dcmread, read_file_meta_info, read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.errors import ScanError
from parotid_seg.files import open_input
from parotid_seg.scan.foreign import FREE_BYTES, MOST_EXPANSION

HEAD = 132
"""Bytes of the preamble and "DICM" at the beginning of a DICOM file (DICOM PS3.10, 7.1)."""
FIRST_GROUPS = (0x0002, 0x0008)
"""Group numbers at the beginning of a data set without a preamble, whose first element is short."""
COPIES = 3
"""Copies of an inflated file in memory: its data set, its pixels, and its voxels."""
LARGEST_INFLATED = FREE_BYTES // COPIES
"""Bytes that any deflated file may inflate to; a large one may reach `MOST_EXPANSION` / `COPIES` times its size."""
MOST_ITEMS = 100_000
"""Most items of all sequences of a small file; a larger one may have an item for every `BYTES_AN_ITEM`."""
BYTES_AN_ITEM = 200
ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""First bytes of a sequence item, in either byte order."""
LONGEST_TEXT = 1 << 16
"""Most bytes of an attribute that is not a sequence; the attributes that are read never need more."""

SMALL = 1 << 16
"""Bytes that may be read without checking how many the file has left."""

IN_META = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
"""Identifiers that are repeated in the file meta information (DICOM PS3.10, 7.1)."""
SEQUENCES = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ModalityLUTSequence"]
# fmt: off
ATTRIBUTES = [
    "SOPClassUID", "SOPInstanceUID", "ImageType", "PatientName", "PatientID", "PatientBirthDate",
    "PatientBirthName", "OtherPatientNames", "OtherPatientIDs",
    "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID",
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "LossyImageCompression", "ConvolutionKernel", "SliceThickness", "IrradiationEventUID", "AcquisitionTime",
    "KVP", "MagneticFieldStrength", "Manufacturer", "ManufacturerModelName",
]
# fmt: on
"""Attributes that are read of a header, including the sequences."""
PIXELS = ["ExtendedOffsetTable", "ExtendedOffsetTableLengths", "FloatPixelData", "DoubleFloatPixelData", "PixelData"]

_SHORT = frozenset(map(Tag, ATTRIBUTES))
_HEADER = [*map(Tag, ATTRIBUTES), *map(Tag, SEQUENCES)]
_ALL = [*_HEADER, *map(Tag, PIXELS)]
_PIXELS = frozenset(map(Tag, PIXELS))


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file.

    Attributes:
        header: its `ATTRIBUTES` and `SEQUENCES`, and its `PIXELS` if requested.
        transfer_syntax: from its meta information, else guessed from its first bytes.
        pixels_at: where in the file the pixel data begin; 0 if the file is deflated.
        bytes_left: from there to the end of the file, or of the pixel data if they were read.
        filled: whether a blank identifier of the header was replaced by that of the meta information.
    """

    path: Path
    header: Dataset
    transfer_syntax: UID
    pixels_at: int
    bytes_left: int
    filled: bool = False


class _Deflated(Exception):  # noqa: N818
    """pydicom has requested the whole rest of a file, as it does to inflate it."""


class _Bounded(io.BufferedReader):
    """A file reader that never reads beyond the end of the file, whatever length the header states, and limits the
    items of sequences to `MOST_ITEMS`."""

    def __init__(self, path: Path) -> None:
        super().__init__(open_input(path).detach())
        self.size = os.fstat(self.fileno()).st_size
        self._path, self._items = path, 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise _Deflated
        content = super().read(size if size < SMALL else max(0, min(size, self.size - self.tell())))
        if size == 8 and content.startswith(ITEMS):
            self._items += 1
            _check_items(self._items, self.size, self._path)
        return content

    def rest(self) -> bytes:
        """The rest of the file."""
        return super().read()


def read_dicom(path: Path, *, pixels: bool = False) -> DicomFile | None:
    """Read a file's header, and its pixel data if requested.

    Returns:
        None if the file is not DICOM. A file without a preamble is DICOM if it begins like a data set and has a SOP
        class.

    Raises:
        ScanError: if it is DICOM and cannot be read.
    """
    with phi_safe(path, "DICOM file"), _Bounded(path) as file:
        start = file.read(HEAD)
        has_magic = start[128:] == b"DICM"
        if not (has_magic or _begins_as_data_set(start)):
            return None
        try:
            dicom = _read(path, file, pixels)
        except Exception:
            if has_magic:
                raise
            return None
    return dicom if has_magic or "SOPClassUID" in dicom.header else None


def kind_in_meta(path: Path) -> str:
    """The SOP class in a file's meta information, even if the rest is damaged; empty if there is none."""
    try:
        with phi_safe(path, "DICOM file"), _Bounded(path) as file:
            meta = read_partial(file, stop_when=lambda tag, vr, length: True).file_meta
            return str(meta.get("MediaStorageSOPClassUID") or "")
    except ScanError:
        return ""


def _begins_as_data_set(start: bytes) -> bool:
    if len(start) < HEAD:
        return False
    vr = start[4:6]
    explicit = vr.isalpha() and vr.isupper()
    big = int.from_bytes(start[:2], "big") in FIRST_GROUPS
    group, element = (int.from_bytes(start[at : at + 2], "big" if big else "little") for at in (0, 2))
    short = explicit or (not big and int.from_bytes(start[4:8], "little") <= HEAD)
    return group in FIRST_GROUPS and element <= 0x0020 and short


def _read(path: Path, file: _Bounded, pixels: bool) -> DicomFile:
    def read(source: io.BytesIO | _Bounded) -> tuple[Dataset, int, int]:
        source.seek(0)
        tags = _ALL if pixels else _HEADER
        header = read_partial(source, stop_when=None if pixels else _stop(path), force=True, specific_tags=tags)
        at = source.tell()
        _check_sequences(header, file.size, path)
        return header, at, len(header.get("PixelData") or b"") if pixels else source.seek(0, os.SEEK_END) - at

    try:
        header, at, pixel_bytes = read(file)
    except _Deflated:
        header, _, pixel_bytes = read(_inflated(file, path))
        at = 0
    return DicomFile(path, header, _syntax(header), at, pixel_bytes, fill_blank(header))


def fill_blank(header: Dataset) -> bool:
    """Fill blank or missing identifiers, as after de-identification, from the meta information.

    Returns:
        Whether any identifier was filled.
    """
    filled = False
    for keyword, in_meta in IN_META.items():
        element = header.get_item(keyword)
        value = None if element is None else element.value
        blank = not (value.strip(b" \0") if isinstance(value, bytes) else str(value or "").strip(" \0"))
        if blank and (meta_value := str(header.file_meta.get(in_meta) or "")):
            setattr(header, keyword, meta_value)
            filled = True
    return filled


def series_in_header(path: Path) -> str:
    """The SeriesInstanceUID of a file whose header cannot be read to its end; empty if it ends before that
    attribute."""
    try:
        with phi_safe(path, "DICOM file"), _Bounded(path) as file:
            last = Tag("SeriesInstanceUID")
            begun = read_partial(
                file, stop_when=lambda tag, vr, length: tag > last or length > LONGEST_TEXT, force=True
            )
            return str(begun.get("SeriesInstanceUID") or "")
    except ScanError:
        return ""


def _stop(path: Path) -> Callable[[BaseTag, str | None, int], bool]:
    """A function that stops the reading of a header at the pixels, and at an attribute of absurd length."""

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        if length > LONGEST_TEXT and tag in _SHORT:
            raise ScanError(
                f"damaged: found an attribute of {length} bytes, expected at most {LONGEST_TEXT}", path=path
            )
        return tag in _PIXELS

    return stop


def read_object(path: Path, tags: Iterable[str | BaseTag] | None = None, *, pixels: bool = False) -> FileDataset:
    """A file's data set as pydicom reads it, within the limits of this module; call it within `phi_safe`.

    Args:
        path: the file.
        tags: attributes to read; None for all.
        pixels: whether to read the pixel data as well.

    Raises:
        ScanError: if it grows beyond a limit.
        Exception: of any type, if it cannot be read.
    """
    tag_list = None if tags is None else list(tags)
    with _Bounded(path) as file:
        try:
            dataset = dcmread(file, stop_before_pixels=not pixels, force=True, specific_tags=tag_list)
        except _Deflated:
            content = _inflated(file, path)
            dataset = dcmread(content, stop_before_pixels=not pixels, force=True, specific_tags=tag_list)
            dataset.file_meta = read_file_meta_info(path)
        _check_sequences(dataset, file.size, path)
    dataset.filename, dataset.buffer = str(path), None
    return dataset


def patient_id_of(header: Dataset) -> str:
    """The PatientID of a header, without spaces around it; empty if it has none."""
    return str(header.get("PatientID") or "").strip()


def read_patient_id(path: Path) -> str:
    """The PatientID in a file, as `patient_id_of`.

    Raises:
        ScanError: if it cannot be read.
    """
    with phi_safe(path, "DICOM file"):
        return patient_id_of(read_object(path, ["PatientID"]))


def _check_sequences(dataset: Dataset, size: int, path: Path) -> None:
    """Raise ScanError if sequences that are not decoded yet have more items than a file of this size may have."""
    raw = (each for each in dataset.elements() if isinstance(each, RawDataElement) and each.tag not in _PIXELS)
    values = [each.value for each in raw if isinstance(each.value, bytes)]
    _check_items(sum(value.count(item) for value in values for item in ITEMS), size, path)


def _check_items(count: int, size: int, path: Path) -> None:
    most = max(MOST_ITEMS, size // BYTES_AN_ITEM)
    if count > most:
        raise ScanError(f"damaged: found more than {most} items of sequences in {size} bytes", path=path)


def _inflated(file: _Bounded, path: Path) -> io.BytesIO:
    """The inflated data set of a deflated file, from its current position (DICOM PS3.5, A.5)."""
    most = max(LARGEST_INFLATED, MOST_EXPANSION * file.size // COPIES)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(file.rest(), most)
    if inflater.unconsumed_tail:
        raise ScanError(f"damaged: inflates to more than {most >> 20} MB", path=path)
    if not inflater.eof:
        raise ScanError("damaged: its compressed data end too early", path=path)
    return io.BytesIO(content)


def _syntax(header: Dataset) -> UID:
    uid = header.file_meta.get("TransferSyntaxUID")
    if uid:
        return UID(str(uid))
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian
