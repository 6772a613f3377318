"""report.html: all cases of an output folder, worst first, with their pictures.

It is one HTML file that needs no network and in which no content of a scan can be executed.

`templates/page.html` is filled by Jinja2, which escapes every text. Invisible characters are written as escapes, the
page is plain ASCII, and its Content-Security-Policy allows only the page's own style and script, by their hashes, and
pictures within the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from parotid_seg.calibration import COVERAGE
from parotid_seg.contract import Contract
from parotid_seg.dicom.read.series import SeriesFacts
from parotid_seg.files import is_real_file, read_input, visible, write_text
from parotid_seg.flags import Flag
from parotid_seg.runtime.pipeline.ownership import PAGE
from parotid_seg.runtime.pipeline.protocol.messages import PICTURES, views_of
from parotid_seg.runtime.report.flag_text import sentence
from parotid_seg.runtime.report.results import (
    CaseRecord,
    FlagRecord,
    Results,
    RunRecord,
    StructureRecord,
)
from parotid_seg.runtime.report.sheet import MOST_STRUCTURES, rows_of, webp_size
from parotid_seg.scan.codes import ALL_ROIS, Rois
from parotid_seg.scan.labels import LARGEST_RATIO, PAROTID_ML, from_the_right, plain_name

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
EMBEDDED_CHARACTERS = 8_000_000
"""Most bytes of pictures in the page, worst cases first (about 90 cases); the others are linked."""


@dataclass(frozen=True)
class Shown:
    """A case in the page.

    Attributes:
        name: its name, see `names_of`.
        case: its record in results.json.
        picture: a data: URL; empty if the picture is not in the page.
        size: the picture's width and height; 0 and 0 if they are not known.
        masks, pictures: existing files, as paths in the output folder.
    """

    name: str
    case: CaseRecord
    picture: str
    size: tuple[int, int]
    masks: tuple[str, ...]
    pictures: tuple[str, ...]

    @property
    def structures(self) -> list[StructureRecord]:
        """The structures as they are shown, the patient's right ones first."""
        by_name = {each.name: each for each in self.case.structures}
        return [by_name[name] for name in from_the_right(by_name)]

    @property
    def drawn(self) -> list[str]:
        """The structures of the picture, in the order of its rows."""
        return [each.name for each in self.structures if each.volume_ml][:MOST_STRUCTURES]

    @property
    def rows(self) -> list[list[str]]:
        """The views of each row of the picture, see `sheet.rows_of`."""
        return rows_of(self.size, len(self.case.found))


def page(cases: Sequence[Shown], run: RunRecord, rois: Rois = ALL_ROIS) -> str:
    """The page's text, ASCII only.

    Args:
        cases: worst first.
        run: the last run in the folder.
        rois: the user's choice of structures, and names for them.
    """
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js"))
    labels = run.model.contract.labels
    written = {*rois.written(labels), *(name for shown in cases for name in shown.case.volumes_ml)}
    names = {name: rois.shown_name(name) for name in from_the_right(labels[1:]) if name in written}
    dosed = any(shown.case.dose for shown in cases)
    agreement = ["Agreement"] if any(shown.case.agreement is not None for shown in cases) else []
    template = environment(TEMPLATES).get_template("page.html")
    text = template.render(
        cases=cases,
        run=run,
        about=about(run),
        names=names,
        named=rois.shown_name,
        in_order=from_the_right,
        colours=_colours(cases, labels, rois),
        dosed=dosed,
        facts=_facts,
        flag_text=partial(_flag_text, rois=rois),
        heads=[
            "#",
            "Case",
            "Status",
            "What to look at",
            *(f"{name} ml" for name in names.values()),
            FLOOR,
            *(f"{name} Gy" for name in names.values() if dosed),
            "Ratio",
            *agreement,
            "Seconds",
        ],
        words=WORDS,
        coverage=COVERAGE,
        calibrated={name for each in run.model.contract.calibrations for name in each.structures},
        floor=FLOOR,
        limits={"ml": PAROTID_ML, "ratio": LARGEST_RATIO, "open": MOST_OPEN},
        style=Markup(style),
        script=Markup(script),
        hashes={"style": hash_of(style), "script": hash_of(script)},
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def about(run: RunRecord) -> dict[str, str]:
    """What is known of the model, and what ran, by name."""
    name, sha256, contract = run.model.name, run.model.sha256[:12], run.model.contract
    return {
        "Model": f"{name} ({sha256})",
        "Accuracy when calibrated" if contract.calibrations else "Known accuracy": known_accuracy(contract),
        "Trained on": trained_on(contract),
        "Engine": str(run.ran),
        "Version": f"parotid-seg {run.versions.get('parotid-seg', 'not stated')}",
    }


def known_accuracy(contract: Contract) -> str:
    """The accuracy that a model file states, with the patients it was measured on."""
    parts = [
        f"mean DSC {each.mean_dsc:.2f} on {each.glands} structures of {each.patients} patients "
        f"({', '.join(map(plain_name, from_the_right(each.structures)))}; {each.made})"
        for each in contract.calibrations
    ]
    dsc, patients = (contract.training.get(f"validation_{each}") for each in ("dsc", "patients"))
    if not parts and isinstance(dsc, (int, float)) and isinstance(patients, int):
        seen = contract.training.get("validation_patients_seen", 0)
        too_good = f", {seen} of whom its initial weights were trained on" if seen else ""
        parts = [f"mean DSC {dsc:.2f} on the {patients} validation patients of its training{too_good}"]
    return "; ".join(parts) or "not stated"


def trained_on(contract: Contract) -> str:
    """The training data, as far as a model file names them."""
    data, patients, epochs, images = (
        contract.training.get(each) for each in ("data", "train_patients", "epochs", "images")
    )
    if (epochs, images) == (0, 0):
        return "not stated: the model of train --init, unchanged"
    parts = (str(data or ""), f"{patients} patients" if isinstance(patients, int) else "")
    return ", ".join(filter(None, parts)) or "not stated"


def _colours(cases: Sequence[Shown], labels: Sequence[str], rois: Rois) -> dict[str, str]:
    """The colour of each structure as #rrggbb; cases of another model may have structures that this one lacks."""
    values = {each.name: value for shown in cases for value, each in enumerate(shown.case.structures, start=1)}
    values |= {name: value for value, name in enumerate(labels)}
    return {name: "#{:02x}{:02x}{:02x}".format(*rois.colour_of(name, value)) for name, value in values.items()}


def _facts(facts: SeriesFacts) -> dict[str, str]:
    """What a series' header says, by name; empty where it says nothing."""
    return {
        "Description": facts.description,
        "Tube voltage": "" if facts.kv is None else f"{facts.kv:g} kV",
        "Kernel": facts.kernel,
        "Field": "" if facts.tesla is None else f"{facts.tesla:g} T",
        "Scanner": facts.scanner,
    }


def _flag_text(flag: FlagRecord, rois: Rois) -> str:
    """A flag in English, with the user's name of its structure."""
    if flag.structure not in rois.names:
        return flag.text
    return sentence(Flag(flag.code, flag.structure, flag.value, flag.detail), rois.shown_name)


@cache
def environment(*folders: Path) -> Environment:
    """The environment of folders of templates. It keeps them compiled, which takes longer than to fill them."""
    environment = Environment(
        loader=FileSystemLoader(folders),
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


def write_report(results: Results, out: Path, rois: Rois = ALL_ROIS) -> None:
    """Write `out`/report.html.

    Args:
        results: done cases whose mask is missing are skipped.
        out: the folder with masks and pictures.
        rois: the user's choice of structures, and names for them.

    Raises:
        OutputError: if it cannot be written.
    """
    out = out.resolve()
    write_text(page(shown_of(results.cases, out), results.run, rois), out / PAGE)


def shown_of(cases: Sequence[CaseRecord], out: Path) -> list[Shown]:
    """The cases whose files exist, with their pictures: embedded as long as there is room, then linked."""
    room = EMBEDDED_CHARACTERS
    shown_cases = []
    for name, case in zip(names_of(cases), cases, strict=True):
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
        shown_cases.append(Shown(name, case, embedded, size, tuple(masks), files))
    return shown_cases


def names_of(cases: Sequence[CaseRecord]) -> list[str]:
    """Names to tell the cases apart. One without a name in the output folder is called by the last part of its path,
    and by the folders before it as far as others are called the same."""
    names = {case.scan.source: case.name for case in cases if not case.case}
    taken = {case.case for case in cases}
    for depth in range(2, 9):
        uses = Counter(names.values())
        for source, name in names.items():
            if uses[name] > 1 or name in taken:
                names[source] = "/".join(Path(source).parts[-depth:])
    return [case.case or names[case.scan.source] for case in cases]


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a regular file of that name lies in the folder itself, and the folder is not a link."""
    return Path(name).name == name and not folder.is_symlink() and is_real_file(folder / name)
