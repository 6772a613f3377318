"""Decodes text whose character set is not the one that its file declares (PS3.5, 6.1.2).

Some systems write UTF-8 and declare another character set, or none. Text in another character set is hardly ever valid
UTF-8 by chance, so bytes that are valid UTF-8 are read as UTF-8. Exception: the declared set is a multi-byte, Japanese
or Thai one and the bytes are valid in it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import NamedTuple

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, TEXT_VR_DELIMS

UTF8 = "utf-8"
ONE_BYTE = "iso8859-"
"""Prefixes of Python's names of single-byte character sets: UTF-8 is valid in them, but gives wrong characters."""
ESCAPE = b"\x1b"
ELSEWHERE = ("latin-1", "cp850", "cp1250", "cp1251", "iso8859-5", "cp1253", "shift_jis", "gb18030", "euc_kr", "big5")
"""Other character sets in which text may have been written."""
LOST = "\N{REPLACEMENT CHARACTER}"


class Text(NamedTuple):
    """A text.

    Attributes:
        value: by the declared character set, or UTF-8.
        undeclared: whether it was read as UTF-8 although another character set is declared.
        readings: the text decoded in other character sets; none for ASCII.
    """

    value: str
    undeclared: bool = False
    readings: tuple[str, ...] = ()


def text_of(item: Dataset, keyword: str | int, dataset: Dataset) -> Text:
    """Text of an element, without the spaces at its end.

    Args:
        item: contains the element; a sequence item of `dataset`, or `dataset` itself.
        keyword: or tag of the element. If pydicom has decoded it already, that text is returned.
        dataset: gives the character set where the item does not.
    """
    element = item.get_item(keyword)
    value = element.value if element else None
    if not isinstance(value, bytes):
        return Text(str(item.get(keyword) or "").rstrip(" \0"))
    declared = item.get("SpecificCharacterSet") or dataset.get("SpecificCharacterSet")
    return decoded(value.rstrip(b" \0"), convert_encodings(declared))


def decode_undeclared(item: Dataset, dataset: Dataset | None = None) -> None:
    """Decode the texts that are UTF-8 although another character set is declared; pydicom's `decode` would garble them.

    Args:
        item: the data set to decode, with all nested items.
        dataset: see `text_of`; default: `item`.
    """
    dataset = item if dataset is None else dataset
    for tag in list(item.keys()):
        element = item.get_item(tag)
        kind = element.VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "")
        if kind == "SQ":
            for each in item[tag].value or ():
                decode_undeclared(each, dataset)
        elif kind in CUSTOMIZABLE_CHARSET_VR and isinstance(element, RawDataElement):
            text = text_of(item, tag, dataset)
            if text.undeclared:
                item[tag] = DataElement(tag, kind, text.value)


def decoded(value: bytes, encodings: list[str]) -> Text:
    """A text from its bytes.

    Args:
        value: as in the file.
        encodings: Python's names of the declared character sets.
    """
    if value.isascii() and ESCAPE not in value:
        return Text(value.decode("ascii"))
    text, utf8 = decode_bytes(value, encodings, TEXT_VR_DELIMS), _strictly(value, UTF8)
    name = codecs.lookup(encodings[0]).name
    undeclared = bool(utf8) and name != UTF8 and ESCAPE not in value and (name.startswith(ONE_BYTE) or LOST in text)
    decoded_text = utf8 if undeclared else text
    others = dict.fromkeys((text, utf8, *(_strictly(value, each) for each in ELSEWHERE), *_decoded_twice(decoded_text)))
    return Text(decoded_text, undeclared, tuple(each for each in others if each and each != decoded_text))


def _decoded_twice(text: str) -> Iterator[str]:
    """Candidates for text that was UTF-8, was misread as another character set, and was encoded as UTF-8 again."""
    for name in ("latin-1", "cp1252"):
        try:
            yield _strictly(text.encode(name), UTF8)
        except UnicodeEncodeError:
            continue


def _strictly(value: bytes, name: str) -> str:
    """Bytes in a character set; empty if they are not valid in it."""
    try:
        return value.decode(name)
    except UnicodeDecodeError:
        return ""
