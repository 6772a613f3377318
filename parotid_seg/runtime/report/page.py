"""The report's page: one HTML file that needs no network and in which nothing from a scan can run.

`templates/page.html` is filled by Jinja2, which escapes every text. Characters that cannot be seen are written as
their numbers, the page is plain ASCII, and its Content-Security-Policy allows the page's own style and script by their
hashes, pictures within the page, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from parotid_seg.files import visible
from parotid_seg.runtime.report.build import Shown
from parotid_seg.runtime.report.overlay import SCALE_MM
from parotid_seg.runtime.report.results import LARGEST_RATIO, RunRecord
from parotid_seg.scan.labels import PAROTID_ML, plain_name

TEMPLATES = Path(__file__).with_name("templates")
MOST_OPEN = 40
"""Cases whose details are open when the page is."""
WORDS: Mapping[str, str] = {"failed": "failed", "check": "look at it", "done": "no flag"}
"""What the page calls a case's verdict, gravest first."""


def page(cases: Sequence[Shown], run: RunRecord) -> str:
    """The page's text, ASCII only.

    Args:
        cases: worst first.
        run: what ran last in the folder.
    """
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js"))
    names = {name: f"{plain_name(name)} ml" for name in run.model.contract.labels[1:]}
    agreement = ["Agreement"] if any(shown.case.agreement is not None for shown in cases) else []
    template = _environment().get_template("page.html")
    text = template.render(
        cases=cases,
        run=run,
        names=names,
        heads=["#", "Case", "Status", "What to look at", *names.values(), "Ratio", *agreement, "Seconds"],
        words=WORDS,
        limits={"ml": PAROTID_ML, "ratio": LARGEST_RATIO, "open": MOST_OPEN, "scale_mm": SCALE_MM},
        style=Markup(style),
        script=Markup(script),
        hashes={"style": _hash(style), "script": _hash(script)},
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain_name": plain_name, "link": _link, "last_part": lambda path: Path(path).name}
    return environment


def _seen(value: object) -> object:
    """What is written of an expression: unless it is markup, only characters that can be seen."""
    return value if isinstance(value, Markup) else visible(value)


def _link(file: str) -> str:
    """The address of a file in the output folder, which cannot be taken for anything but a file."""
    return f"./{quote(file, errors='surrogateescape')}"


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
