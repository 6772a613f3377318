"""The report's page: one HTML file that needs no network and in which nothing from a scan can run.

Every text goes through `shown`, the page is plain ASCII, and its Content-Security-Policy allows the page's own style
and script by their hashes, pictures within the page, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from parotid_seg.files import visible
from parotid_seg.runtime.report.cases import LARGEST_RATIO, Judged
from parotid_seg.runtime.report.closeups import SCALE_MM
from parotid_seg.runtime.report.flag_text import sentence, sentences
from parotid_seg.scan.labels import PAROTID_ML, plain_name

STYLE = Path(__file__).with_name("page.css").read_text("utf-8")
SCRIPT = Path(__file__).with_name("page.js").read_text("utf-8")
MOST_OPEN = 40
"""Cases whose details are open when the page is."""
STATUS_WORDS = {"failed": "failed", "check": "look at it", "done": "no flag"}


@dataclass(frozen=True)
class Ran:
    """What a run was made with, for the report.

    Attributes:
        model_sha256: the model file's hash.
        engine: backend, device and precision in one line.
        labels: label names by value, background first.
        missing: cases that the run was to do and did not come to.
    """

    model_sha256: str
    engine: str
    labels: tuple[str, ...]
    missing: int = 0


@dataclass(frozen=True)
class Picture:
    """A case's pictures: a data: address, or empty, and the files in the output folder."""

    embedded: str
    links: tuple[str, ...]


def shown(text: object) -> str:
    """A text as HTML shows it: markup as it is written, and characters that cannot be seen by their numbers."""
    return html.escape(visible(text))


def shown_apart(text: object) -> str:
    """As `shown`; letters that are written from right to left do not change the order of what is around it."""
    return f"<bdi>{shown(text)}</bdi>"


def page(
    cases: Sequence[Judged],
    pictures: Sequence[Picture],
    ran: Ran,
    versions: Mapping[str, str],
    when: datetime,
) -> str:
    """The page's text, ASCII only.

    Args:
        cases: worst first.
        pictures: one for each case.
        ran: what ran last in the folder.
        versions: of packages.
        when: time of the report.
    """
    names = sorted(ran.labels[1:], key=lambda name: "left" in plain_name(name).split())
    heads = _heads(cases, names)
    title = f"Parotid glands: {len(cases)} case{'' if len(cases) == 1 else 's'}"
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_hash(STYLE)}'; script-src 'sha256-{_hash(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = "\n".join(
        _section(number, case, picture, names, ran.model_sha256)
        for number, (case, picture) in enumerate(zip(cases, pictures, strict=True), start=1)
    )
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#details">Skip the table</a>
<header>
<h1>{title}</h1>
<p class="soft">{when:%Y-%m-%d %H:%M} UTC &middot; {shown(ran.engine)} &middot; model {shown(ran.model_sha256[:12])}</p>
<p class="note"><strong>Not a medical device.</strong> The outlines were drawn by a neural network. Somebody who knows
the anatomy has to look at each of them before it is used. A case without a flag is not known to be right.</p>
{_counts(cases, ran.missing)}
</header>
<main>
<h2 id="table">All cases</h2>
<div id="tools" hidden>
<label>Find <input type="search" id="find" autocomplete="off"></label>
<label><input type="checkbox" id="flagged"> only those to look at</label>
{_order(heads)}
<span id="shown" class="soft" role="status"></span>
</div>
{_table(cases, names, heads)}
<h2 id="details">Case by case</h2>
{_told_of_pictures(pictures)}
{sections}
</main>
<footer>
<h2>About this report</h2>
{_about(ran.model_sha256, versions, any(case.patient for case in cases))}
</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _counts(cases: Sequence[Judged], missing: int) -> str:
    counts = {status: sum(case.status == status for case in cases) for status in STATUS_WORDS}
    told = {"failed": "failed", "check": "to look at first", "done": "without a flag"}
    items = [f'<li class="{status}"><b>{counts[status]}</b>{text}</li>' for status, text in told.items()]
    if missing:
        items.append(f"<li><b>{missing}</b>not done: the run was stopped; the same command goes on</li>")
    return f'<ul class="counts">{"".join(items)}</ul>'


def _heads(cases: Sequence[Judged], names: Sequence[str]) -> list[str]:
    """Headings of the table, as HTML."""
    flipped = any(case.entry.agreement for case in cases)
    volumes = (f"{shown(plain_name(name))}&nbsp;ml" for name in names)
    return ["#", "Case", "Status", "What to look at", *volumes, "Ratio", *(["Agreement"] if flipped else []), "Seconds"]


def _order(heads: Sequence[str]) -> str:
    """What sorts where there is no room for the table's headings; the page's style shows it only there."""
    options = "".join(f"<option>{head}</option>" for head in ("Worst first", *heads[1:]))
    return (
        f'<span id="order"><label>Sort by <select id="sort" autocomplete="off">{options}</select></label> '
        '<button type="button" id="turn">&uarr; rising</button></span>'
    )


def _table(cases: Sequence[Judged], names: Sequence[str], heads: Sequence[str]) -> str:
    flipped = "Agreement" in heads
    numbers = {0, *range(4, len(heads))}
    head = "".join(
        f'<th scope="col"{" class=number" if column in numbers else ""}'
        f'{" aria-sort=ascending" if column == 0 else ""}><button type="button">{text}</button></th>'
        for column, text in enumerate(heads)
    )
    rows = []
    for number, case in enumerate(cases, start=1):
        entry = case.entry
        cells = [
            (f"{number}", number),
            (f'<a href="#case-{number}">{shown_apart(case.name)}</a>{_patient(case)}', case.name),
            (f'<span class="{case.status}">{STATUS_WORDS[case.status]}</span>', list(STATUS_WORDS).index(case.status)),
            (_told(case), sentences(case.flags) or case.reason),
            *(_number(entry.volumes_ml.get(name), 1) for name in names),
            _number(case.ratio, 2),
            *([_number(min(entry.agreement.values(), default=None), 2)] if flipped else []),
            _number(sum(entry.seconds.values()) if entry.seconds else None, 1),
        ]
        row = "".join(
            f'<td data-label="{heads[column]}" data-value="{shown(value)}"'
            f"{' class=number' if column in numbers else ''}>{text}</td>"
            for column, (text, value) in enumerate(cells)
        )
        rows.append(f'<tr data-status="{case.status}" data-section="#case-{number}">{row}</tr>')
    caption = (
        "Worst first: failed, then by how grave the flags are, low agreement, unequal sides. "
        "Ratio: the larger gland&#8217;s volume to the smaller one&#8217;s."
    )
    return (
        f'<p class="soft">{caption}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="table"><table id="cases">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _patient(case: Judged) -> str:
    return f'<br><span class="soft">{shown_apart(case.patient)}</span>' if case.patient else ""


def _number(value: float | None, digits: int) -> tuple[str, object]:
    return ("", "") if value is None else (f"{value:.{digits}f}", value)


def _told(case: Judged) -> str:
    if case.failed:
        return f'<span class="reason">{shown(case.reason)}</span>'
    if not case.flags:
        return ""
    return f'<ul class="flags">{"".join(f"<li>{shown(sentence(flag))}</li>" for flag in case.flags)}</ul>'


def _engine(case: Judged) -> str:
    return ", ".join(filter(None, (case.entry.backend, case.entry.device, case.entry.precision)))


def _section(number: int, case: Judged, picture: Picture, names: Sequence[str], model_sha256: str) -> str:
    entry = case.entry
    facts = [("Patient", shown_apart(case.patient))] if case.patient else []
    facts += [("Status", f'<span class="{case.status}">{STATUS_WORDS[case.status]}</span>')]
    if told := _told(case):
        facts.append(("Look at", told))
    facts += [
        (shown(plain_name(name)), f"{entry.volumes_ml[name]:.1f} ml") for name in names if name in entry.volumes_ml
    ]
    if case.ratio:
        facts.append(("Ratio", f"{case.ratio:.2f}"))
    facts += [
        (f"Agreement, {shown(plain_name(name))}", f"{dsc:.3f}")
        for name, dsc in entry.agreement.items()
        if name in names
    ]
    if entry.seconds:
        parts = ", ".join(f"{shown(stage)} {seconds:.2f}" for stage, seconds in entry.seconds.items())
        facts.append(("Seconds", f"{sum(entry.seconds.values()):.2f} ({parts})"))
    if engine := _engine(case):
        facts.append(("Engine", shown(engine)))
    if entry.model and entry.model != model_sha256:
        facts.append(("Model", f"another one, <code>{shown(entry.model[:12])}</code>"))
    files = [*([entry.mask] if entry.mask else []), *entry.further, *picture.links]
    if files:
        facts.append(("Files", ", ".join(_link(file) for file in files)))
    told = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts)
    plain_names = ", ".join(plain_name(name) for name in names if entry.volumes_ml.get(name))
    drawn = (
        f'<figure><img src="{picture.embedded}" loading="lazy" alt="'
        f'{shown(f"Close-ups of {case.name}, axial, coronal and sagittal, with outlines: {plain_names}")}">'
        f"<figcaption>Each gland&#8217;s middle. The patient&#8217;s left is on the right. The bar is {SCALE_MM} mm."
        "</figcaption></figure>"
        if picture.embedded
        else ""
    )
    opened = " open" if number == 1 or (number <= MOST_OPEN and case.status != "done") else ""
    return (
        f'<details id="case-{number}"{opened}><summary>{number}. {shown_apart(case.name)} '
        f'<span class="{case.status}">{STATUS_WORDS[case.status]}</span></summary>'
        f'<div class="case{"" if drawn else " bare"}">{drawn}<dl>{told}</dl></div></details>'
    )


def _link(file: str) -> str:
    """A link to a file of the output folder, which cannot be taken for anything but a file."""
    return f'<a href="./{quote(file, errors="surrogateescape")}">{shown_apart(Path(file).name)}</a>'


def _told_of_pictures(pictures: Sequence[Picture]) -> str:
    linked = sum(not picture.embedded and bool(picture.links) for picture in pictures)
    if not linked:
        return ""
    within = sum(bool(picture.embedded) for picture in pictures)
    return (
        f'<p class="soft">This page holds the pictures of {within} cases, the worst. Those of {linked} others lie '
        "beside it in the folder pictures, as far as they were drawn; each case links to its own.</p>"
    )


def _about(model_sha256: str, versions: Mapping[str, str], identified: bool) -> str:
    who = (
        "tells who the patients are (--identify)"
        if identified
        else "holds names of scan files and folders, no other data on who the patient is"
    )
    packages = ", ".join(f"{shown(name)} {shown(version)}" for name, version in versions.items())
    return (
        f"<p>Model file: SHA-256 <code>{shown(model_sha256)}</code>. Versions: {packages}.</p>"
        f"<p>Glands are flagged that are missing, outside {PAROTID_ML[0]:g} to {PAROTID_ML[1]:g} ml, on the "
        "other side than their name tells, cut off where the scan or the model's field of view ends, uncertain (only "
        "with --tta), or unequal by a ratio above "
        f"{LARGEST_RATIO:g}. The limits come from the contours of the training and validation patients. Agreement is "
        "how far the look at the scan and the look at its mirror image overlap (DSC); 1 is best.</p>"
        "<p>The same for machines: report.json (in the shape of FHIR R4), summary.csv, run.json. This page "
        f"{who}, and loads nothing from anywhere.</p>"
    )
