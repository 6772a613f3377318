"""Writes CSV files in which no cell can act as a spreadsheet formula."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from parotid_seg.files import write_text

FORMULA = frozenset("=+-@\t\r\n")
"""First characters of text that a spreadsheet may treat as a formula (OWASP, "CSV Injection")."""
SEPARATORS = ";\t\r\n"
"""Separators at which a spreadsheet may split a cell if it does not expect commas, despite quotes."""


def write_csv(rows: Iterable[Iterable[object]], path: Path) -> None:
    """Write a table completely or not at all: every cell is quoted, and no text is a formula, see `csv_safe`.

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
    """A text that no spreadsheet treats as a formula, as a whole or split at one of `SEPARATORS`.

    Text that begins like a formula gets an apostrophe in front. Full-width forms of these characters count as well,
    because Japanese spreadsheets treat them alike.
    """
    parts = re.split(f"([{SEPARATORS}])", text)
    parts[::2] = map(_guarded, parts[::2])
    guarded = "".join(parts)
    return f"'{guarded}" if guarded[:1] in FORMULA else guarded


def _guarded(part: str) -> str:
    """A part of a cell with an apostrophe in front if it begins like a formula, also after quotes or spaces."""
    first = part.lstrip(' "')[:1]
    return f"'{part}" if unicodedata.normalize("NFKC", first) in FORMULA else part
