"""Text whose character set is undeclared or wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.charset import convert_encodings

from parotid_seg.dicom.read.text import decoded


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "declared", [None, "ISO_IR 6", "ISO_IR 100", "ISO_IR 144", "ISO 8859-1", ["", "ISO 2022 IR 100"]]
)
@pytest.mark.parametrize("text", ["Parótida Izq", "Ohrspeicheldrüse links", "腮腺", "Glândula parótida direita"])
def test_utf8_is_read_whatever_a_file_declares(text: str, declared: str | list[str] | None) -> None:
    found = decoded(text.encode(), convert_encodings(declared))
    assert (found.value, found.undeclared) == (text, True)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("text", "codec", "declared"),
    [
        ("Parótida Izq", "utf-8", "ISO_IR 192"),
        ("Ohrspeicheldrüse links", "latin-1", "ISO_IR 100"),
        ("Ohrspeicheldrüse links", "latin-1", None),
        ("左耳下腺", "shift_jis", "ISO_IR 13"),
        ("左耳下腺", "iso2022_jp", ["", "ISO 2022 IR 87"]),
        ("腮腺", "gb18030", "GB18030"),
        ("联通", "gb18030", "GB18030"),
        ("이하선", "euc_kr", ["", "ISO 2022 IR 149"]),
        ("Околоушная", "iso8859-5", "ISO_IR 144"),
        ("Parotid_L", "ascii", None),
    ],
)
def test_what_is_declared_rightly_stays(text: str, codec: str, declared: str | list[str] | None) -> None:
    value = text.encode(codec)
    if codec == "euc_kr":
        value = b"\x1b$)C" + value
    found = decoded(value, convert_encodings(declared))
    assert (found.value, found.undeclared) == (text, False)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("value", "declared", "meant"),
    [
        ("Ohrspeicheldrüse links".encode("latin-1"), "ISO_IR 192", "Ohrspeicheldrüse links"),
        ("左耳下腺".encode("shift_jis"), None, "左耳下腺"),
        ("腮腺".encode("gb18030"), "ISO_IR 100", "腮腺"),
        ("Parótida".encode(), "GB18030", "Parótida"),
        ("Parótida".encode().decode("latin-1").encode(), "ISO_IR 192", "Parótida"),
    ],
)
def test_what_else_it_may_be_is_kept(value: bytes, declared: str | None, meant: str) -> None:
    found = decoded(value, convert_encodings(declared))
    assert found.value != meant
    assert meant in found.readings


@given(st.text(st.characters(codec="latin-1", exclude_characters="\x1b")))
def test_latin_text_is_never_taken_for_utf8_unless_it_is_valid(text: str) -> None:
    value = text.encode("latin-1")
    found = decoded(value, ["latin_1"])
    try:
        valid = value.decode()
    except UnicodeDecodeError:
        valid = text
    assert found.value == valid
