"""report.html of a commissioning: one page without a script that loads nothing, as the report of `infer`."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from parotid_seg.commission.conditions import in_words
from parotid_seg.commission.drift import MASKS
from parotid_seg.commission.expected import in_words as expected_in_words
from parotid_seg.commission.faults import FEWEST
from parotid_seg.commission.labelled import Chosen
from parotid_seg.commission.limits import FEW, LIMITS
from parotid_seg.commission.record import CommissionRecord, LimitRecord
from parotid_seg.commission.tested_models import in_words as in_words_of
from parotid_seg.files import visible, write_text
from parotid_seg.runtime.compare import LOWER_IS_BETTER, Difference
from parotid_seg.runtime.label_match import match_labels
from parotid_seg.runtime.pipeline.ownership import PAGE
from parotid_seg.runtime.pipeline.sources import read_scan
from parotid_seg.runtime.report.overlay import draw_case, webp_of
from parotid_seg.runtime.report.page import TEMPLATES as OF_INFER
from parotid_seg.runtime.report.page import environment, hash_of
from parotid_seg.runtime.report.sheet import MOST_STRUCTURES, rows_of
from parotid_seg.scan.intensity import Window, window_of
from parotid_seg.scan.labels import from_the_right, plain_name
from parotid_seg.scan.nifti import read_mask
from parotid_seg.wording import counted

TEMPLATES = Path(__file__).with_name("templates")
MOST_PICTURES = 6
"""Patients with pictures, the worst ones."""
MOST_GLANDS = 10
"""Glands below or nearest to their floor that are shown."""
FIGURES = {
    "dsc": ("DSC", 3),
    "surface_dsc_2mm": ("surface DSC at 2 mm", 3),
    "hd95_mm": ("HD95, mm", 1),
    "apl_mm": ("added path length, mm", 0),
    "volume_error_ml": ("volume error, ml", 1),
    "mean_error_gy": ("error of the mean dose, Gy", 2),
    "mean_error_abs_gy": ("its absolute value, Gy", 2),
}
"""The main figures and their decimals."""
OTHER_FIGURES = {
    "surface_dsc_1mm": ("surface DSC at 1 mm", 3),
    "surface_dsc_3mm": ("surface DSC at 3 mm", 3),
    "iou": ("IoU", 3),
    "accuracy": ("accuracy (recall)", 3),
    "hd_mm": ("HD, mm", 1),
    "mpa": ("MPA (right voxels of the scan)", 4),
    "macc": ("mAcc (mean recall)", 4),
    "miou": ("MIoU", 4),
}
"""The others."""
OF_A_PATIENT = ("dsc", "hd95_mm", "volume_error_ml", "mean_error_gy")
"""Those in the table of all patients."""


@dataclass(frozen=True)
class Picture:
    """A patient's picture.

    Attributes:
        patient: name.
        url: a data: URL.
        size: width and height.
        structures: those of mask or reference, one for each row of the picture.
        rows: the views of each row, see `sheet.rows_of`.
    """

    patient: str
    url: str
    size: tuple[int, int]
    structures: list[str]
    rows: list[list[str]]


def write_page(record: CommissionRecord, out: Path, chosen: Chosen, window: Window | None) -> None:
    """Write `out`/report.html.

    Args:
        record: what it shows.
        out: folder of the commissioning, with its masks.
        chosen: the patients.
        window: the first channel's intensities shown as black and white; None for those of each scan.

    Raises:
        OutputError: if it cannot be written.
        ScanError: if a scan or mask that is drawn cannot be read.
    """
    write_text(page(record, list(_pictures(record, out, chosen, window))), out / PAGE)


def page(record: CommissionRecord, pictures: list[Picture]) -> str:
    """The page's text, ASCII only."""
    style = (OF_INFER / "page.css").read_text("utf-8") + (TEMPLATES / "commission.css").read_text("utf-8")
    means = record.evaluation.means
    structures = from_the_right(record.evaluation.labels)
    together = next(name for name in ("glands", "structures") if f"{name} dsc" in means)
    figures = [name for name in FIGURES if f"{together} {name}" in means]
    text = (
        environment(TEMPLATES, OF_INFER)
        .get_template("commission.html")
        .render(
            record=record,
            title=f"Commissioning: {verdict_in_words(record)}",
            few=len(record.patients.names) < FEW,
            fewest_for_shift=FEWEST,
            seeks_shift=len(record.patients.names) >= FEWEST,
            limits=[_limit(each) for each in record.limits],
            figures=FIGURES,
            shown=figures,
            others=OTHER_FIGURES,
            of_a_patient=[name for name in OF_A_PATIENT if name in figures],
            columns=[*structures, together],
            structures=structures,
            trained_on=trained_on(record),
            lower_is_better=LOWER_IS_BETTER,
            differences=_differences(record, figures),
            pictures=pictures,
            in_order=from_the_right,
            expected=expected_in_words(record.expected) if record.expected else "",
            most_glands=MOST_GLANDS,
            changes=[in_words(each) for each in record.drift.conditions] if record.drift else [],
            style=Markup(style),
            hashes={"style": hash_of(style)},
        )
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _differences(record: CommissionRecord, figures: list[str]) -> list[Difference]:
    """The differences of the models that are shown, the patient's right structures first."""
    every = record.against.comparison.differences if record.against else []
    shown = [each for each in every if each.figure in figures]
    order = from_the_right(dict.fromkeys(each.structure for each in shown))
    return sorted(shown, key=lambda each: order.index(each.structure))


def trained_on(record: CommissionRecord) -> list[tuple[str, bool]]:
    """Whether each model was trained on some of the tested patients: in words, and as a bool."""
    models = [record.model, *([record.against.model] if record.against and record.against.equal != "file" else [])]
    return [(in_words_of(each, len(record.patients.names)), bool(each.trained_on)) for each in models]


def verdict_in_words(record: CommissionRecord) -> str:
    """Whether the limits are met, and whether faults were found."""
    missed = sum(not each.met for each in record.limits)
    parts = [f"{missed} of {len(record.limits)} limits missed" if missed else "all limits met"]
    if record.faults:
        parts.append(f"{counted(len(record.faults), 'fault')} found")
    if record.drift and record.drift.faults:
        parts.append(f"{counted(len(record.drift.faults), 'fault')} against the earlier masks")
    return ", ".join(parts)


def limit_in_words(each: LimitRecord) -> tuple[str, str, str]:
    """A limit in words: what is limited, by what, and what was found."""
    limit = LIMITS[each.key]
    sign = "+" if limit.either_way else ""
    digits = 0 if each.key.endswith("patients") else 3 if limit.largest == 1 else 2
    unit = f" {limit.unit}" if limit.unit else ""
    title = f"{limit.title}, {plain_name(each.structure)}" if each.structure else limit.title
    bound = f"at {'least' if each.at_least else 'most'} {each.limit:g}{unit}"
    bound += " either way" if limit.either_way else ""
    found, low, high = (
        "none" if number is None else f"{number:{sign}.{digits}f}" for number in (each.found, each.low, each.high)
    )
    interval = "" if each.low is None or each.high is None else f" ({low} to {high})"
    return title, bound, found if each.found is None else f"{found}{interval}{unit}"


def _limit(each: LimitRecord) -> Mapping[str, Any]:
    title, bound, found = limit_in_words(each)
    return {"title": title, "bound": bound, "found": found, "record": each}


def _pictures(record: CommissionRecord, out: Path, chosen: Chosen, window: Window | None) -> Iterator[Picture]:
    """The worst patients' masks and references."""
    labels = match_labels(out / MASKS, chosen.references)
    for name in record.worst[:MOST_PICTURES]:
        patient = chosen.patients[name]
        volume = read_scan((patient.scan,)).volume
        stored = read_mask(out / MASKS / record.masks[name].mask)[0]
        mask, reference, _ = labels.common(stored, read_mask(patient.reference)[0])
        shown = window_of(volume.voxels[0], window)
        picture = draw_case(
            volume, shown, mask, labels.names, record.masks[name].volumes_ml, visible(name), reference=reference
        )
        url = f"data:image/webp;base64,{base64.b64encode(webp_of(picture)).decode()}"
        scores = record.evaluation.cases[name].labels
        found = [each for each in from_the_right(scores) if scores[each].dsc is not None]
        yield Picture(name, url, picture.size, found[:MOST_STRUCTURES], rows_of(picture.size, len(found)))
