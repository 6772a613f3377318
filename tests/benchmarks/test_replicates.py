"""The study with replicates: what is done in which order, a training of each kind, and what its table says."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "training"))
import replicates
import replicates_report
from masked import MaskedAutoencoder, hidden_patches
from replicates import Run
from study import BOTH, Start

from parotid_seg.train.config import NetworkConfig
from parotid_seg.train.network import SwinUnet
from parotid_seg.train.settings import load_config
from tests.train.conftest import balls, short_config, without_pictures, write_patient  # noqa: F401

Write = Callable[..., None]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a result."""
    monkeypatch.setattr(replicates, "RESULTS", tmp_path)

    def write(run: Run, *dsc: float) -> None:
        test = {f"p{number}": {"dsc": value} for number, value in enumerate(dsc)}
        (tmp_path / f"{run.name}.json").write_text(json.dumps({"validation_dsc": 0.5, "test": test}))

    return write


def test_draws_differ_and_are_the_same_each_time() -> None:
    patients = [f"p{number}" for number in range(160)]
    first, second = (replicates.drawn(patients, draw) for draw in (0, 1))
    assert len(set(first)) == replicates.LABELLED
    assert first != second
    assert replicates.drawn(patients[::-1], 0) == first


def test_what_is_done_in_which_order(results: Write, tmp_path: Path) -> None:
    scratch = [f"scratch-encoder-decoder-p0-d{draw}" for draw in (0, 1)]
    assert list(replicates.work(tmp_path))[:3] == [*scratch, "organs-p0"]
    for name in scratch:
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.pt").touch()
    (tmp_path / "organs-p0").mkdir()
    (tmp_path / "organs-p0" / "finished").touch()
    assert list(dict.fromkeys(replicates.work(tmp_path)))[:8] == [
        *(f"test:{name}" for name in scratch),
        "organs+contrast-p0",
        *(f"organs-encoder-decoder-p0-d{draw}" for draw in (0, 1)),
        *(f"scratch-encoder-decoder-p1-d{draw}" for draw in (0, 1)),
        "organs-p1",
    ]
    for run in replicates.wanted():
        if (run.start, run.transfer) in replicates.ARMS[replicates.TURNS[0]]:
            results(run, 0.5)
    assert list(dict.fromkeys(replicates.work(tmp_path))) == [
        "organs+contrast-p0",
        *(f"organs-encoder-p0-d{draw}" for draw in (0, 1)),
        "organs+organs-p0",
        "organs+masked-p0",
        *(f"organs-p{pretraining}" for pretraining in range(1, 5)),
        "organs+long-contrast-p0",
    ]
    for run in replicates.wanted():
        results(run, 0.5)
    assert not list(replicates.work(tmp_path))


def test_differences_are_paired(results: Write) -> None:
    for start, gain in (("scratch", 0.0), ("organs", 0.02)):
        for pretraining in range(3):
            for draw in range(2):
                run = Run(start, BOTH, pretraining, draw)
                base = 0.6 + 0.01 * draw + gain * pretraining
                results(run, base, base + 0.1)
    # 0, 2 and 4 points: mean 2, standard deviation 2, t(0.975, 2) = 4.303
    text = replicates_report.difference(("organs", BOTH), ("scratch", BOTH))
    assert text.startswith("+2.0 ± 5.0 (+0.0, +2.0, +4.0) | ")
    low, high = (float(each) for each in text.rpartition("| ")[2].split(" to "))
    assert (low, high) == (0.0, 4.0)
    table = replicates_report.table()
    assert "| organs, encoder + decoder | not run | 0.675 ± 0.050 (0.655, 0.675, 0.695) |" in table
    assert "| organs+contrast, encoder | not run | not run |" in table


def test_the_crossed_interval_is_wider_than_that_over_patients() -> None:
    values = np.random.default_rng(1).normal(size=(5, 2, 40)) + np.arange(-2, 3)[:, None, None]
    low, high = replicates_report.crossed_interval(values)
    assert high - low > 2
    assert replicates_report.crossed_interval(np.full((5, 2, 40), 1.5)) == (1.5, 1.5)


def test_three_quarters_of_the_windows_are_hidden() -> None:
    hidden = hidden_patches(torch.rand(3, 6, 6))
    assert hidden.shape == (3, 1, 24, 24)
    windows = hidden.unflatten(2, (6, 4)).unflatten(4, (6, 4)).float().mean(dim=(3, 5))
    assert set(windows.unique().tolist()) == {0.0, 1.0}
    assert windows.mean(dim=(1, 2, 3)).tolist() == [0.75] * 3
    assert not torch.equal(hidden[0], hidden[1])


def test_what_is_hidden_does_not_reach_the_encoder() -> None:
    config = NetworkConfig(embed_dim=8, depths=(1, 1), heads=(2, 2), window=4, stem=(4, 4))
    model = MaskedAutoencoder(SwinUnet(config, 32, 3, 3), config, 32, 3).eval()
    images, others = torch.rand(2, 2, 3, 32, 32)
    hidden = hidden_patches(torch.rand(2, 2, 2))
    pixels = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)
    drawn = model(images, hidden)
    assert drawn.shape == images.shape
    assert torch.equal(model(torch.where(pixels, others, images), hidden), drawn)
    assert not torch.equal(model(torch.where(pixels, images, others), hidden), drawn)


def with_test_patient(training: Path, folder: Path) -> Path:
    """A data set of links to the files of another, and one test patient."""
    data, test = folder / "data", folder / "test"
    data.mkdir()
    for entry in training.iterdir():
        (data / entry.name).symlink_to(entry)
    for name in ("imagesTr", "labelsTr", "organsTr"):
        (test / name).mkdir(parents=True)
    write_patient(test, "t0", np.random.default_rng(1))
    for made, source in (("imagesTs", "imagesTr"), ("labelsTs", "labelsTr")):
        (data / made).symlink_to(test / source)
    return data


def test_a_pre_training_and_a_fine_tuning(
    balls: Path,  # noqa: F811
    short_config: Path,  # noqa: F811
    results: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a small network in place of the preset's."""
    monkeypatch.setattr("parotid_seg.train.settings.load_config", partial(load_config, file=short_config))
    masked = Start("masked", "organs", {"epochs": 1})
    monkeypatch.setattr(replicates, "STARTS", {"organs": Start("organs", "scratch", {"epochs": 1}), "masked": masked})
    monkeypatch.setattr(replicates, "BUDGETS", {6: {"epochs": 1, "calm_epochs": 0}})
    monkeypatch.setattr(replicates, "SLICES_AN_EPOCH", 16)
    monkeypatch.setattr(replicates, "LABELLED", 2)
    monkeypatch.setattr(replicates, "ARMS", (("organs", BOTH),))
    data, runs = with_test_patient(balls, tmp_path), tmp_path / "runs"
    first = next(replicates.work(runs))
    assert first == "organs-p0"
    replicates.do(first, data, runs)
    learnt = replicates.read("start-organs-p0")
    assert learnt
    assert learnt["last"]["core_minutes"] > 0
    second = next(replicates.work(runs))
    assert second == "organs-encoder-decoder-p0-d0"
    replicates.do(second, data, runs)
    replicates.do("masked-p0", data, runs)
    learnt = replicates.read("start-masked-p0")
    assert learnt
    assert learnt["last"]["loss"] > 0
    passed_on, organs = (
        torch.load(runs / f"{name}-p0" / "run" / "best.pt")["weights"] for name in ("masked", "organs")
    )
    assert torch.equal(passed_on["unet.decoder.0.join.weight"], organs["unet.decoder.0.join.weight"])
    assert not torch.equal(
        passed_on["unet.encoder.layers.0.blocks.0.attn.qkv.weight"],
        organs["unet.encoder.layers.0.blocks.0.attn.qkv.weight"],
    )
    replicates.do(f"test:{second}", data, runs)
    found = replicates.read(second)
    assert found
    assert len(found["patients"]) == 2
    assert found["core_minutes"] > 0
    assert set(found["test"]) == {"t0"}
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- table: made by benchmarks/training/replicates_report.py -->\n<!-- end of table -->\nafter\n"
    )
    replicates_report.report(page, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("<!-- end of table -->\nafter\n")
    assert "| organs, encoder + decoder | " in page.read_text()
