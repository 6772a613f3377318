"""report.html: all cases of an output folder, worst first, with their pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.files import is_real_file, read_input, write_text
from parotid_seg.runtime.pipeline.ownership import PAGE
from parotid_seg.runtime.pipeline.protocol.messages import PICTURES, views_of
from parotid_seg.runtime.report.results import CaseRecord, Results
from parotid_seg.runtime.report.sheet import webp_size
from parotid_seg.scan.codes import ALL_ROIS, Rois

if TYPE_CHECKING:
    from parotid_seg.runtime.report.page import Shown

EMBEDDED_CHARACTERS = 8_000_000
"""Most bytes of pictures in the page, worst cases first (about 90 cases); the others are linked."""


def write_report(results: Results, out: Path, rois: Rois = ALL_ROIS) -> None:
    """Write `out`/report.html.

    Args:
        results: done cases whose mask is missing are skipped.
        out: the folder with masks and pictures.
        rois: the user's choice of structures, and names for them.

    Raises:
        OutputError: if it cannot be written.
    """
    from parotid_seg.runtime.report.page import page

    out = out.resolve()
    write_text(page(shown_of(results.cases, out), results.run, rois), out / PAGE)


def shown_of(cases: Sequence[CaseRecord], out: Path) -> list[Shown]:
    """The cases whose files exist, with their pictures: embedded as long as there is room, then linked."""
    from parotid_seg.runtime.report.page import Shown

    room = EMBEDDED_CHARACTERS
    shown_cases = []
    for case in cases:
        masks = [name for name in case.files if _lies_in(out, name)]
        failed = case.status == "failed"
        if not failed and next(iter(case.files), "") not in masks:
            continue
        view, picture = views_of(case.name), f"{case.name}.png"
        pictures = [] if failed else [name for name in (view, picture) if _lies_in(out / PICTURES, name)]
        content, size = "", (0, 0)
        if room > 0 and view in pictures:
            drawn = read_input(out / PICTURES / view, follow=False)
            content, size = base64.b64encode(drawn).decode(), webp_size(drawn)
        room -= len(content)
        embedded = f"data:image/webp;base64,{content}" if content and room >= 0 else ""
        files = tuple(f"{PICTURES}/{name}" for name in pictures)
        shown_cases.append(Shown(case, embedded, size, tuple(masks), files))
    return shown_cases


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a regular file of that name lies in the folder itself, and the folder is not a link."""
    return Path(name).name == name and not folder.is_symlink() and is_real_file(folder / name)
