"""The report's page: one HTML file that needs no network and in which no content of a scan can be executed.

`templates/page.html` is filled by Jinja2, which escapes every text. Invisible characters are written as escapes, the
page is plain ASCII, and its Content-Security-Policy allows only the page's own style and script, by their hashes, and
pictures within the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from parotid_seg.calibration import COVERAGE
from parotid_seg.files import visible
from parotid_seg.runtime.report.overlay import SCALE_MM
from parotid_seg.runtime.report.results import LARGEST_RATIO, CaseRecord, RunRecord
from parotid_seg.scan.labels import PAROTID_ML, plain_name

TEMPLATES = Path(__file__).with_name("templates")
FLOOR = "DSC floor"
"""Head of the column of the lowest floor."""
MOST_OPEN = 40
"""Cases whose details are open at first."""
WORDS: Mapping[str, str] = {
    "failed": "failed",
    "check": "look at it",
    "unknown": "not calibrated",
    "done": "no flag",
}
"""Names of verdicts on the page, worst first."""


@dataclass(frozen=True)
class Shown:
    """A case in the page.

    Attributes:
        case: its record in results.json.
        picture: a data: URL; empty if the picture is not in the page.
        masks, pictures: existing files, as paths in the output folder.
    """

    case: CaseRecord
    picture: str
    masks: tuple[str, ...]
    pictures: tuple[str, ...]


def page(cases: Sequence[Shown], run: RunRecord) -> str:
    """The page's text, ASCII only.

    Args:
        cases: worst first.
        run: the last run in the folder.
    """
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js"))
    names = {name: f"{plain_name(name)} ml" for name in run.model.contract.labels[1:]}
    doses = {}
    if any(shown.case.dose for shown in cases):
        doses = {name: f"{plain_name(name)} Gy" for name in run.model.contract.labels[1:]}
    agreement = ["Agreement"] if any(shown.case.agreement is not None for shown in cases) else []
    template = environment(TEMPLATES).get_template("page.html")
    text = template.render(
        cases=cases,
        run=run,
        names=names,
        doses=doses,
        heads=[
            "#",
            "Case",
            "Status",
            "What to look at",
            *names.values(),
            FLOOR,
            *doses.values(),
            "Ratio",
            *agreement,
            "Seconds",
        ],
        words=WORDS,
        coverage=COVERAGE,
        calibrated={name for each in run.model.contract.calibrations for name in each.structures},
        floor=FLOOR,
        limits={"ml": PAROTID_ML, "ratio": LARGEST_RATIO, "open": MOST_OPEN, "scale_mm": SCALE_MM},
        style=Markup(style),
        script=Markup(script),
        hashes={"style": hash_of(style), "script": hash_of(script)},
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


@cache
def environment(folder: Path) -> Environment:
    """The environment of a folder of templates. It keeps them compiled, which takes longer than to fill them."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain_name": plain_name, "link": _link, "last_part": lambda path: Path(path).name}
    return environment


def _seen(value: object) -> object:
    """The output of an expression: only visible characters, unless it is markup."""
    return value if isinstance(value, Markup) else visible(value)


def _link(file: str) -> str:
    """The URL of a file in the output folder, in a form that can only mean a file."""
    return f"./{quote(file, errors='surrogateescape')}"


def hash_of(text: str) -> str:
    """The hash of a style or script, as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
