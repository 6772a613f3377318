"""Writes a received object to disk: it is never held in memory as a whole, and never trusted."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.filereader import data_element_generator, read_partial

OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
"""Statuses of C-STORE (DICOM PS3.4, section B.2.3)."""
INVALID_INSTANCE = 0x0117
CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNISED_OPERATION = 0x0211
"""General statuses (DICOM PS3.7, annex C)."""

UID = re.compile(r"[0-9.]{1,64}")
WANTED = (0x00080016, 0x00080018, 0x0020000E)
"""SOP class, SOP instance and series instance UID."""
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)


class Refused(Exception):  # noqa: N818 (an answer, no error of ours)
    """An object is refused; the status goes to the peer, the reason to the log."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


OVER = Refused(OUT_OF_RESOURCES, "its association is over")


class Spool(BytesIO):
    """Writes the data set of a message to a file as it arrives. Never raises; after a refusal it drops the rest.

    It is a BytesIO only because pynetdicom requires one; as such it stays empty.

    Args:
        path: of the file, made with the first bytes.
        limit: most bytes of a data set.
        begin: called before the first bytes; returns the bytes before the data set, or raises Refused.

    Attributes:
        path: as above.
        refusal: why the object is refused; None if it is not.
    """

    def __init__(self, path: Path, limit: int, begin: Callable[[], bytes]) -> None:
        super().__init__()
        self.path = path
        self.refusal: Refused | None = None
        self._limit, self._begin = limit, begin
        self._size = 0
        self._file: BinaryIO | None = None

    def write(self, data: Any, /) -> int:
        """Append to the file."""
        if self.refusal is None:
            try:
                self._append(data)
            except Refused as refusal:
                self.discard(refusal)
            except OSError as error:
                self.discard(Refused(OUT_OF_RESOURCES, f"it cannot be written ({error.strerror})"))
        return len(data)

    def _append(self, data: bytes) -> None:
        if self._file is None:
            begin = self._begin()
            self._file = self.path.open("xb")
            self._file.write(begin)
        self._size += len(data)
        if self._size > self._limit:
            raise Refused(OUT_OF_RESOURCES, f"it has more than {self._limit >> 20} MiB")
        self._file.write(data)

    def finish(self) -> BinaryIO:
        """The file with the complete data set.

        Raises:
            Refused: if the object is refused.
            OSError: if it cannot be written.
        """
        if self.refusal is not None:
            raise self.refusal
        if self._file is None:
            raise Refused(CANNOT_UNDERSTAND, "it has no data set")
        self._file.flush()
        return self._file

    def discard(self, refusal: Refused) -> None:
        """Accept nothing more, and remove the file, unless it was moved away."""
        self.refusal = self.refusal or refusal
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Identity:
    """UIDs in an object's data set."""

    sop_class: str
    sop_instance: str
    series: str


def identify(path: Path, sop_class: str, sop_instance: str) -> Identity:
    """Read the UIDs of a received file, and check that its pixels are complete.

    Args:
        path: the file.
        sop_class, sop_instance: UIDs in the request.

    Raises:
        Refused: if the data set is cut off, invalid, or another object than in the request.
    """
    try:
        with path.open("rb") as file:
            header = read_partial(file, lambda tag, vr, length: tag in PIXELS, specific_tags=list(WANTED))
            identity = Identity(*(str(header[tag].value) if tag in header else "" for tag in WANTED))
            implicit, little = header.original_encoding
            pixels_whole = _pixels_are_whole(file, implicit, little, path.stat().st_size)
    except Exception as error:  # any error that a hostile data set causes in the parser; its text may quote the file
        raise Refused(CANNOT_UNDERSTAND, f"its data set cannot be read ({type(error).__name__})") from error
    if not UID.fullmatch(identity.series):
        raise Refused(CANNOT_UNDERSTAND, "its data set has no valid SeriesInstanceUID")
    if (identity.sop_class, identity.sop_instance) != (sop_class, sop_instance):
        raise Refused(DOES_NOT_MATCH, "its data set is another object than the request names")
    if not pixels_whole:
        raise Refused(CANNOT_UNDERSTAND, "its pixels are missing or cut off")
    return identity


def _pixels_are_whole(file: BinaryIO, implicit: bool | None, little: bool | None, size: int) -> bool:
    """Whether a file has pixels and they end within it; with undefined length a delimiter must end them."""
    if implicit is None or little is None:
        return False
    element = next(data_element_generator(file, implicit, little, defer_size=0), None)
    if element is None or element.tag not in PIXELS:
        return False
    length = getattr(element, "length", 0)
    return 0 < length <= size - element.value_tell if length != 0xFFFFFFFF else True
