"""The layout of a case's picture: a row of views of the whole scan, then one row for each structure.

`overlay` draws the picture; the page shows its views one by one, arranged as the reader's screen allows.
"""

from __future__ import annotations

PANEL_PX = 180
"""Side of the square of one view."""
GAP_PX = 4
TITLE_PX = 24
"""Height of the text above each row."""
SLICES = 5
"""Axial slices of a structure."""
COLUMNS = SLICES + 2
"""Views of a structure: its slices, a coronal and a sagittal one."""
OVERVIEW = 4
"""Views of the whole scan: projections from the front and from the side, an axial and a coronal slice."""
MOST_STRUCTURES = 6
"""Most structures in a picture. If there are more, the first ones are shown."""
_STEP = PANEL_PX + GAP_PX


def corner(row: int, column: int) -> tuple[int, int]:
    """Left and upper edge of a view; row 0 is the whole scan, and row n the nth structure."""
    return GAP_PX + column * _STEP, row * (TITLE_PX + _STEP) + TITLE_PX


def sheet_size(structures: int) -> tuple[int, int]:
    """Width and height of a picture of some structures."""
    columns = COLUMNS if structures else OVERVIEW
    return GAP_PX + columns * _STEP, (1 + structures) * (TITLE_PX + _STEP)


def rows_of(size: tuple[int, int], structures: int) -> list[list[str]]:
    """The views of each row, as the `viewBox` of each; none for a picture of another size.

    Args:
        size: width and height of the picture.
        structures: how many structures were found.
    """
    shown = min(structures, MOST_STRUCTURES)
    if size != sheet_size(shown):
        return []
    counts = (OVERVIEW, *(COLUMNS for _ in range(shown)))
    return [[_box(row, column) for column in range(count)] for row, count in enumerate(counts)]


def webp_size(content: bytes) -> tuple[int, int]:
    """Width and height of a lossy WebP file, by its header (RFC 9649); 0 and 0 for any other content."""
    if content[:4] != b"RIFF" or content[8:16] != b"WEBPVP8 " or content[23:26] != b"\x9d\x01\x2a":
        return 0, 0
    width, height = (int.from_bytes(content[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height


def _box(row: int, column: int) -> str:
    left, top = corner(row, column)
    return f"{left} {top} {PANEL_PX} {PANEL_PX}"
