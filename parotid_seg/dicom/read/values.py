"""Values of a DICOM header as plain Python values, or a reason without any of the header's text.

pydicom creates an object of a special class for every value, which would dominate the time of finding series. The few
plain types in image headers are therefore decoded here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Several
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from parotid_seg.errors import ScanError
from parotid_seg.wording import counted

LONGEST_UID = 64
ASCII = frozenset(("AS", "CS", "DA", "DS", "IS", "TM", "UI"))
"""Value representations of plain text that is independent of the character set (DICOM PS3.5, 6.2)."""


class Unusable(ScanError):  # noqa: N818
    """Why an image or a series cannot be read: a phrase without the name of the file or series."""


class NotAnImage(Unusable):
    """Why an object is not an image of a scan; skipping it loses nothing."""


def of_several(unusable: Several[tuple[Path, Unusable]], files: int) -> Unusable:
    """Why a series with unusable files cannot be read."""
    path, first = min(unusable, key=lambda each: each[0])
    if files == 1:
        return first
    kind = (
        NotAnImage if len(unusable) == files and all(isinstance(each, NotAnImage) for _, each in unusable) else Unusable
    )
    return kind(f"{len(unusable)} of {files} files cannot be used, such as {path.name}: {first}")


def values_of(dataset: Dataset, keyword: str) -> list[Any]:
    """The values of an attribute, text or numbers; none if it is absent or empty."""
    tag, usual = _known(keyword)
    try:
        element = dataset.get_item(tag)
        if isinstance(element, RawDataElement):
            vr, raw = element.VR or usual, element.value or b""
            if vr in ASCII:
                values: Any = raw.decode("ascii").strip(" \0").split("\\")
            elif vr == "US":
                values = np.frombuffer(raw, "<u2" if element.is_little_endian else ">u2").tolist()
            else:
                values = dataset[tag].value
        else:
            values = None if element is None else element.value
    except Exception:
        raise Unusable(f"{keyword} cannot be read") from None
    several = values if isinstance(values, (MultiValue, Sequence, list, tuple)) else [values]
    return [] if len(several) == 1 and several[0] in (None, "") else list(several)


@cache
def _known(keyword: str) -> tuple[BaseTag, str]:
    """An attribute's tag, and its value representation for files without explicit ones."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return Tag(tag), dictionary_VR(tag)


def numbers_of(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """A given number of finite numbers.

    Raises:
        Unusable: if there are more, fewer or other values.
    """
    return _numbers(values_of(dataset, keyword), keyword, count)


def _numbers(values: list[Any], keyword: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise Unusable(f"no usable {keyword}, expected {counted(count, 'number')}")
    return numbers


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """A finite number; None if there is none.

    Raises:
        Unusable: if it is of another type.
    """
    values = values_of(dataset, keyword)
    return _numbers(values, keyword, 1)[0] if values else None


def integer_of(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """A whole number.

    Raises:
        Unusable: if it is of another type, or absent and has no default.
    """
    number = number_of(dataset, keyword)
    if number is None and default is not None:
        return default
    if number is None or number != int(number):
        raise Unusable(f"no usable {keyword}, expected a whole number")
    return int(number)


def text_of(dataset: Dataset, keyword: str) -> str:
    """Text as in the file; empty if there is none."""
    return "\\".join(map(str, values_of(dataset, keyword))).strip()


def words_of(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an attribute such as ImageType, in capitals."""
    return tuple(str(each).strip().upper() for each in values_of(dataset, keyword))


def uid_of(dataset: Dataset, keyword: str) -> str:
    """A UID; empty if there is none.

    Raises:
        Unusable: if it has other characters than digits and dots, or too many (DICOM PS3.5, 9.1).
    """
    uid = text_of(dataset, keyword)
    if len(uid) > LONGEST_UID or not set(uid) <= set("0123456789."):
        raise Unusable(f"no usable {keyword}, expected at most {LONGEST_UID} digits and dots")
    return uid


def items_of(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence.

    Raises:
        Unusable: if it is of another type.
    """
    if dataset.get_item(_known(keyword)[0]) is None:
        return []
    items = values_of(dataset, keyword)
    if not all(isinstance(item, Dataset) for item in items):
        raise Unusable(f"{keyword} cannot be read")
    return items


def item_of(dataset: Dataset, keyword: str) -> Dataset | None:
    """The first item of a sequence; None if there is none."""
    return next(iter(items_of(dataset, keyword)), None)
