"""Pictures of a training run: what they show, whether there are one or many epochs, structures large or none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from parotid_seg.scan.volume import Orientation, Volume
from parotid_seg.train.data.patients import Patient
from parotid_seg.train.plots import COLOURS, SLICES, draw_curves, draw_samples

LABELS = ("background", "parotid_left", "parotid_right")
FIGURES = (("loss", "training loss"), ("validation_dsc", "validation DSC"))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that are saved."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


def visible_points(panel: Any) -> int:
    """Points of a panel that ink is spent on: of a line of one point only a marker."""
    return sum(
        len(line.get_xdata())
        for line in panel.lines
        if len(line.get_xdata()) > 1 or line.get_marker() not in ("None", "")
    )


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_every_epoch_of_the_curves_can_be_seen(tmp_path: Path, figures: list[Figure], epochs: int) -> None:
    curves = tmp_path / "curves.png"
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0.0, "validation_dsc": 0.5}\n')
    draw_curves(tmp_path / "metrics.jsonl", curves, FIGURES)
    assert not curves.exists(), "nothing to draw before the first epoch"
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1.0, "loss": 0.5}\n')
    draw_curves(tmp_path / "metrics.jsonl", curves, FIGURES)
    assert [panel.get_ylabel() for panel in figures.pop().axes] == ["training loss"], "no empty panel"
    records = [{"epoch": number, "loss": 1 / number} for number in range(1, epochs + 1)]
    records[-1]["validation_dsc"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", FIGURES)
    loss, dsc = figures[0].axes
    assert visible_points(loss) == epochs
    assert visible_points(dsc) == 1
    assert (tmp_path / "curves.png").stat().st_size > 0


def patient(name: str, labels: np.ndarray) -> Patient:
    volume = Volume(np.zeros((1, *labels.shape), np.int16), (3.0, 2.0, 2.0), Orientation((0, 1, 2), (False,) * 3))
    return Patient(name, volume, np.array([[-200.0, 300.0]]), labels, (64.0, 64.0), ((), ()), (), ())


def test_a_row_a_patient_cropped_to_the_structures_with_a_legend(tmp_path: Path, figures: list[Figure]) -> None:
    labels = np.zeros((30, 64, 64), np.uint8)
    labels[10:20, 30:36, 8:12] = 2
    labels[10:20, 30:36, 50:54] = 1
    predicted = np.roll(labels, 2, axis=1)
    masks, names = [predicted, labels], ["worse", "better"]
    draw_samples(
        [patient(name, labels) for name in names],
        masks,
        np.array([[0.5, 0.6], [1.0, np.nan]]),
        LABELS,
        tmp_path / "samples.png",
    )
    (figure,) = figures
    panels = figure.axes
    assert len(panels) == 2 * SLICES
    assert panels[0].get_title(loc="left") == "worse: DSC 0.550"
    assert panels[SLICES].get_title(loc="left") == "better: DSC 1.000"
    for panel in panels:
        assert panel.get_xlim() == (8 - 7.5, 53 + 7.5), "structures and 15 mm around them"
        low, high = sorted(panel.get_ylim())
        assert low < 30
        assert 36 < high < 64
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["reference", "parotid_right", "parotid_left"]
    assert [line.get_color() for line in legend.get_lines()] == ["white", COLOURS[1], COLOURS[0]]
    at = [int(panel.texts[0].get_text().removeprefix("slice ")) for panel in panels[:SLICES]]
    assert at == sorted(set(at))
    assert 10 < at[0] < at[-1] <= 20


def test_a_patient_without_structures_is_shown_whole(tmp_path: Path, figures: list[Figure]) -> None:
    empty = np.zeros((30, 64, 64), np.uint8)
    draw_samples([patient("none", empty)], [empty], np.array([[np.nan, np.nan]]), LABELS, tmp_path / "samples.png")
    assert figures[0].axes[0].get_xlim() == (-7.5, 63 + 7.5)


def test_names_in_letters_that_the_font_lacks_give_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    records = [{"epoch": epoch, "loss": 1.0, "validation_dsc": 0.5, "validation_dsc_左腮腺": 0.5} for epoch in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", FIGURES)
    assert not [str(each.message) for each in recwarn if issubclass(each.category, UserWarning)]
