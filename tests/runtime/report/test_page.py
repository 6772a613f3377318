"""What the page says of model, scan and structures, how it shows pictures, and whether it can be read."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from parotid_seg.dicom.read.series import SeriesFacts
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.report.page import TEMPLATES, about, known_accuracy, trained_on, write_report
from parotid_seg.runtime.report.results import results_of
from parotid_seg.runtime.report.sheet import COLUMNS, OVERVIEW, PANEL_PX, sheet_size
from parotid_seg.scan.codes import ALL_ROIS, Rois
from tests.calibrations import BOTH
from tests.runtime.report.records import LABELS, entry, run_of
from tests.runtime.report.test_report import Page

LEFT, RIGHT = LABELS[1:]


def made(folder: Path, case: Entry, size: tuple[int, int] = (0, 0), rois: Rois = ALL_ROIS) -> tuple[Page, str]:
    """The page of a case, with a picture of some size."""
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / case.mask).write_bytes(b"mask")
    if any(size):
        content = io.BytesIO()
        Image.new("RGB", size).save(content, "WEBP", quality=80)
        (folder / "pictures" / f"{case.case}.webp").write_bytes(content.getvalue())
    write_report(results_of([case], run_of()), folder, rois)
    text = (folder / "report.html").read_text("ascii")
    return Page(text), text


def facts_in(text: str) -> dict[str, str]:
    """The facts of lists on a page, without tags."""
    pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text, re.DOTALL)
    return {name: re.sub("<.*?>", "", fact) for name, fact in pairs}


@pytest.mark.parametrize(
    ("training", "calibrations", "accuracy", "data"),
    [
        ({}, (), "not stated", "not stated"),
        ({"data": "Ours"}, (), "not stated", "Ours"),
        (
            {"data": "Ours", "train_patients": 9, "validation_patients": 3, "validation_dsc": 0.756},
            (),
            "mean DSC 0.76 on the 3 validation patients of its training",
            "Ours, 9 patients",
        ),
        (
            {"data": "Ours", "validation_patients": 3, "validation_dsc": 0.756},
            (BOTH,),
            f"mean DSC {BOTH.mean_dsc:.2f} on {BOTH.glands} structures of {BOTH.patients} patients "
            f"(right parotid, left parotid; {BOTH.made})",
            "Ours",
        ),
        (
            {"validation_patients": 3, "validation_dsc": 0.756, "validation_patients_seen": 1},
            (),
            "mean DSC 0.76 on the 3 validation patients of its training, 1 of whom its initial weights were trained on",
            "not stated",
        ),
        ({"validation_dsc": "high", "validation_patients": "many", "train_patients": "?"}, (), *2 * ("not stated",)),
    ],
)
def test_what_is_known_of_the_model(training: dict[str, Any], calibrations: Any, accuracy: str, data: str) -> None:
    contract = replace(run_of().model.contract, training=training, calibrations=calibrations)
    assert known_accuracy(contract) == accuracy
    assert trained_on(contract) == data


def test_an_unchanged_model_was_not_trained_on_the_patients_of_its_run() -> None:
    training = {"data": "Mine", "train_patients": 6, "epochs": 0, "images": 0}
    contract = replace(run_of().model.contract, training=training)
    assert trained_on(contract) == "not stated: the model of train --init, unchanged"
    assert trained_on(replace(contract, training={**training, "images": 8})) == "Mine, 6 patients"


def test_the_head_of_the_page(tmp_path: Path) -> None:
    _, text = made(tmp_path, entry())
    facts = facts_in(text.partition("</header>")[0])
    assert facts["Made"] == "2026-11-28 12:01 UTC"
    assert facts["Model"] == "model.onnx (abababababab)"
    assert facts["Engine"] == "onnxruntime 1.32.0 on cpu, fp32"
    assert facts["Version"] == "parotid-seg 0.1.0"
    assert facts["Known accuracy"] == facts["Trained on"] == "not stated"
    run = run_of()
    named = run.__class__(**{name: getattr(run, name) for name in run.__struct_fields__} | {
        "model": run.model.__class__(sha256=run.model.sha256, contract=run.model.contract, name="mine.onnx")
    })  # fmt: skip
    assert about(named)["Model"] == "mine.onnx (abababababab)"


def test_facts_of_the_scan(tmp_path: Path) -> None:
    said = SeriesFacts("CT", 3, "Neck <b>", kv=120.0, kernel="Br40/3", scanner="Maker 7")
    of_ct: dict[str, Any] = {
        "series": "CT series 3 (1f0c2a9b)",
        "facts": said,
        "shape": (9, 8, 7),
        "spacing_mm": (3.0, 0.9, 0.9),
    }
    _, text = made(tmp_path, entry(**of_ct))
    facts = facts_in(text.partition("</header>")[2])
    assert facts["Series"] == "CT series 3 (1f0c2a9b)"
    assert facts["Description"] == "Neck &lt;b&gt;"
    assert (facts["Tube voltage"], facts["Kernel"], facts["Scanner"]) == ("120 kV", "Br40/3", "Maker 7")
    assert facts["Scan"] == "9 slices of 8 x 7 voxels"
    assert "Field" not in facts
    _, text = made(tmp_path, entry(series="MR series 4 (1f0c2a9b)", facts=SeriesFacts("MR", tesla=1.5)))
    facts = facts_in(text.partition("</header>")[2])
    assert facts["Field"] == "1.5 T"
    assert not {"Tube voltage", "Kernel", "Scanner", "Description"} & set(facts)


def test_each_view_is_a_part_of_one_picture(tmp_path: Path) -> None:
    size = sheet_size(2)
    page, text = made(tmp_path, entry(), size)
    assert text.count("data:image/webp;base64,") == 1
    (image,) = page.all("image")
    assert (int(image["width"] or 0), int(image["height"] or 0)) == size
    uses = [each["href"] for each in page.all("use")]
    assert uses == [f"#{image['id']}"] * (OVERVIEW + 2 * COLUMNS)
    boxes = [tuple(map(int, (each["viewbox"] or "").split())) for each in page.all("svg") if each.get("viewbox")]
    boxes = [box for box in boxes if box[2:] == (PANEL_PX, PANEL_PX)]
    assert len(set(boxes)) == len(uses)
    assert all(left + PANEL_PX <= size[0] and top + PANEL_PX <= size[1] for left, top, _, _ in boxes)
    texts = [each["aria-label"] or "" for each in page.all("div") if each.get("role") == "img"]
    assert [text.partition(" on ")[0] for text in texts[1:]] == ["right parotid", "left parotid"]
    assert texts[0].startswith("a: the whole scan")
    assert {each.get("aria-hidden") for each in page.all("svg")} == {"true"}


@pytest.mark.parametrize("size", [(492, 1512), sheet_size(1), sheet_size(3)])
def test_a_picture_of_another_layout_is_shown_as_a_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    page, _ = made(tmp_path, entry(), size)
    (image,) = page.all("img")
    assert image["alt"] == "Outlines of right parotid, left parotid on a"
    assert not page.all("use")


def test_the_users_names_colours_and_choice(tmp_path: Path) -> None:
    rois = Rois(only=(RIGHT,), names={RIGHT: "PG <re>"}, colours={RIGHT: (1, 2, 255)})
    flags = (Flag(FlagCode.UNUSUAL_VOLUME, RIGHT, 70.5), Flag(FlagCode.OBLIQUE, value=9.0))
    case = replace(entry(flags=flags), volumes_ml={RIGHT: 70.5})
    page, text = made(tmp_path, case, sheet_size(1), rois)
    assert "left parotid" not in "".join(page.texts), "--only"
    assert text.count("PG &lt;re&gt;") >= 5
    assert "PG &lt;re&gt; ml</button>" in text
    assert "PG &lt;re&gt; of unusual volume (70.5 ml)" in text
    assert "oblique by 9 degrees" in text
    assert {each["fill"] for each in page.all("rect")} == {"#0102ff"}
    earlier, _ = made(tmp_path, entry(), sheet_size(2), rois)
    assert "left parotid" in "".join(earlier.texts), "an earlier run wrote it"


def test_structures_of_another_model_are_shown(tmp_path: Path) -> None:
    page, text = made(tmp_path, replace(entry(), volumes_ml={"cord": 5.0, LEFT: 20.0}), sheet_size(2))
    assert re.findall(r"<figcaption>.*<bdi>(.*?)</bdi>", text) == ["cord", "left parotid"]
    assert '<bdi>cord</bdi></th><td class="number">5.0</td>' in text
    assert "cord ml" not in text
    assert len(page.all("use")) == OVERVIEW + 2 * COLUMNS


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (WCAG 2.2), 1 to 21."""
    lights = []
    for colour in (one, other):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_text_has_enough_contrast_on_screens_and_on_paper() -> None:
    """At least 4.5, level AA of WCAG 2.2 for text of any size."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    style = (TEMPLATES / "page.css").read_text("utf-8")
    modes = [dict(re.findall(r"--(\w+): (#[0-9a-f]+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(modes) == 3
    for colours in modes:
        whole = {name: "#" + "".join(2 * each for each in colour[1:]) if len(colour) == 4 else colour
                 for name, colour in colours.items()}  # fmt: skip
        for text in ("ink", "soft", "link", "failed", "check", "done"):
            for ground in ("paper", "card"):
                assert contrast(whole[text], whole[ground]) >= 4.5, (text, ground)
