"""CSV files: one writer for all, and no cell that a spreadsheet runs as a formula."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from parotid_seg.files import write_text

FORMULA = frozenset("=+-@\t\r\n")
"""First characters of what a spreadsheet runs as a formula, or looks behind for one (OWASP, "CSV Injection")."""
SEPARATORS = ";\t\r\n"
"""Where a spreadsheet that expects another separator than the comma splits a cell, whatever quotes are around it."""


def write_csv(rows: Iterable[Iterable[object]], path: Path) -> None:
    """Write a table whole: every cell is quoted, and no text is a formula, see `csv_safe`.

    Args:
        rows: the names of the columns, then the cells; numbers stay numbers, None is an empty cell.
        path: the file to make.

    Raises:
        OutputError: if that fails.
    """
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for row in rows:
        writer.writerow([csv_safe(cell) if isinstance(cell, str) else cell for cell in row])
    write_text(text.getvalue(), path)


def csv_safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula, nor any part of it where one may split it (`SEPARATORS`).

    An apostrophe is put in front of what begins like a formula. Full-width forms of these characters count as well:
    spreadsheets in Japanese take them for the same.
    """
    parts = re.split(f"([{SEPARATORS}])", text)
    parts[::2] = map(_guarded, parts[::2])
    guarded = "".join(parts)
    return f"'{guarded}" if guarded[:1] in FORMULA else guarded


def _guarded(part: str) -> str:
    """A part of a cell with an apostrophe in front if it begins like a formula, be it after quotes or spaces."""
    first = part.lstrip(' "')[:1]
    return f"'{part}" if unicodedata.normalize("NFKC", first) in FORMULA else part
