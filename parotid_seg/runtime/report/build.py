"""report.html and report.json: all cases of an output folder, the worst first, for people and for machines."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from parotid_seg.files import is_real_file, read_input, write_text
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.messages import PICTURES, views_of
from parotid_seg.runtime.pipeline.ownership import BUNDLE, PAGE
from parotid_seg.runtime.report.cases import Judged, worst_first
from parotid_seg.runtime.report.fhir import bundle
from parotid_seg.runtime.report.page import Picture, Ran, page
from parotid_seg.runtime.report.patients import Patient
from parotid_seg.runtime.report.summary import PACKAGES
from parotid_seg.system import versions_of

EMBEDDED_CHARACTERS = 8_000_000
"""Pictures in the page, worst cases first, as far as this goes (some 150 cases); the others are linked."""


def write_report(
    entries: Iterable[Entry], ran: Ran, out: Path, patients: Mapping[str, Patient] = MappingProxyType({})
) -> None:
    """Write `out`/report.html and `out`/report.json.

    Args:
        entries: of all cases; those done whose mask is gone are left out.
        ran: see `Ran`.
        out: the folder that masks and pictures lie in.
        patients: by case, of those that are to be told.

    Raises:
        OutputError: if a file cannot be written.
    """
    when = datetime.now(UTC)
    out = out.resolve()
    found = [entry for entry in entries if entry.status == "failed" or _lies_in(out, entry.mask)]
    cases = worst_first(_with_files_that_are_there(entry, out) for entry in found)
    cases = [replace(case, patient=patients.get(case.entry.case)) for case in cases]
    text = page(cases, pictures_of(cases, out), ran, versions_of(PACKAGES), when)
    write_text(text, out / PAGE)
    write_text(bundle(cases, when), out / BUNDLE)


def pictures_of(cases: Sequence[Judged], out: Path) -> list[Picture]:
    """For each case its picture: embedded as long as there is room, then linked, or none."""
    room = EMBEDDED_CHARACTERS
    pictures = []
    for case in cases:
        views, overview = f"{PICTURES}/{views_of(case.name)}", f"{PICTURES}/{case.name}.png"
        found = not case.failed and _lies_in(out / PICTURES, views_of(case.name))
        content = base64.b64encode(read_input(out / views, follow=False)).decode() if found and room > 0 else ""
        embedded = content if len(content) <= room else ""
        room -= len(content)
        links = tuple(
            path for path in (views, overview) if not case.failed and _lies_in(out / PICTURES, Path(path).name)
        )
        pictures.append(Picture(f"data:image/webp;base64,{embedded}" if embedded else "", links))
    return pictures


def _with_files_that_are_there(entry: Entry, out: Path) -> Entry:
    return replace(entry, further={name: sha256 for name, sha256 in entry.further.items() if _lies_in(out, name)})


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a regular file of that name lies in the folder itself, which is no link."""
    return Path(name).name == name and not folder.is_symlink() and is_real_file(folder / name)
