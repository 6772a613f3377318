"""Recognises a patient's identity in a text: names, IDs and birth date, however they are written.

Compared are texts without accents, case and punctuation, with ä, ö and ü also as ae, oe and ue, and dates in the usual
orders.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from pydicom.dataset import Dataset

from parotid_seg.dicom.read.text import Text, text_of

NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName")
IDS = ("PatientID", "OtherPatientIDs")
BIRTH = "PatientBirthDate"
LETTERS = str.maketrans({"ø": "oe", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"})
"""Letters that Unicode does not decompose."""
UMLAUTS = re.compile("([aou])\N{COMBINING DIAERESIS}")
LONG = 5
"""Characters from which an ID or a date is also found if spaces divide it."""


def secrets_of(header: Dataset, shortest: int) -> frozenset[str]:
    """The parts of a patient's identity that a text must not contain.

    Args:
        header: of the file.
        shortest: fewest characters of a part; shorter ones occur in too many words.
    """
    names, ids = ([text_of(header, keyword, header) for keyword in keywords] for keywords in (NAMES, IDS))
    texts = (reading for each in (*names, *ids) for reading in (each.value, *each.readings))
    parts = (part for text in texts for part in (text, *re.split(r"[\^=,;._\s\\-]+", text)))
    words = {word for part in parts for word in _written(part)}
    words |= set(_dates(text_of(header, BIRTH, header).value))
    return frozenset(joined for word in words if len(joined := word.replace(" ", "")) >= shortest)


def contains_any(text: Text, secrets: Iterable[str]) -> bool:
    """Whether a text contains one of some secrets."""
    written = {form for reading in (text.value, *text.readings) for form in _written(reading)}
    joined = {form.replace(" ", "") for form in written}
    return any(any(secret in form for form in (joined if _is_number(secret) else written)) for secret in secrets)


def _is_number(secret: str) -> bool:
    return len(secret) >= LONG and any(character.isdigit() for character in secret)


def _written(text: str) -> set[str]:
    """The ways in which a text may be written, in lower-case letters, digits and spaces."""
    decomposed = unicodedata.normalize("NFKD", text.casefold()).casefold().translate(LETTERS)
    plain = _plain(decomposed)
    shorter = re.sub("([aou])e", r"\1", plain)
    return {plain, _plain(UMLAUTS.sub(r"\1e", decomposed)), shorter if len(shorter) > 2 else plain}


def _plain(text: str) -> str:
    return " ".join("".join(each for each in text if each.isalnum() or each.isspace()).split())


def _dates(date: str) -> Iterator[str]:
    """The usual ways to write a date of DICOM, without punctuation."""
    match = re.fullmatch(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", date.strip())
    if not match:
        yield _plain(date)
        return
    year, month, day = match.groups()
    for each_month, each_day in ((month, day), (month.lstrip("0"), day.lstrip("0"))):
        yield from (f"{year}{each_month}{each_day}", f"{each_day}{each_month}{year}", f"{each_month}{each_day}{year}")
