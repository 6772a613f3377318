"""Text files: the same bytes in every locale."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parotid_seg.errors import OutputError
from parotid_seg.files import write_text

WRITES = """
import sys
from pathlib import Path
from parotid_seg.files import write_text
path = Path(sys.argv[1])
write_text(f"{path.name}\\r\\n\\u00e9\\n", path)
"""


def test_a_name_that_is_no_ascii_under_an_ascii_locale(tmp_path: Path) -> None:
    """Python reads the locale as UTF-8 where it is C, unless it is told not to; other locales are not UTF-8 at all."""
    path = tmp_path / "Müller-李.csv"
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", WRITES, os.fsencode(path)], env=plain, check=True, timeout=60)
    assert path.read_bytes() == "Müller-李.csv\r\né\n".encode()


def test_bytes_of_a_name_that_is_no_utf8_are_told(tmp_path: Path) -> None:
    write_text(os.fsdecode(b"M\xfcller\n"), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text("utf-8") == "M\\xfcller\n"


def test_a_long_name_of_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xfc" * 240 + b".csv")
    write_text("a", path)
    assert path.read_bytes() == b"a"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_text("a", tmp_path / "none" / "a.csv")
