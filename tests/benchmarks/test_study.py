"""The study's bookkeeping: what is still to do, how rates are chosen, and what its tables say."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "training"))
from collections.abc import Callable
from typing import Any

import study
import study_report
from study import BOTH, Run


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(study, "RESULTS", tmp_path)

    def write(run: Run, validation: float, test: dict[str, Any] | None = None) -> None:
        content = {"validation_dsc": validation, **({"test": test} if test else {})}
        (tmp_path / f"{run.name}.json").write_text(json.dumps(content))

    return write


def test_file_names(results: Callable[..., None]) -> None:
    for trial in study.TRIALS:
        assert not set(Run(trial, BOTH, 2, 10, 0, 1e-3).name) & set(" /:,")


def test_a_start_is_trained_before_what_needs_it(results: Callable[..., None], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for start in ("scratch", "organs"):
        for rate in study.RATES:
            results(Run(start, BOTH, 2, 10, 0, rate), 0.5)
    (runs / "organs").mkdir(parents=True)
    (runs / "organs" / "finished").touch()
    work = list(dict.fromkeys(study.work(runs)))
    assert work[:2] == ["organs+contrast", "contrast"]
    (runs / "organs+contrast").mkdir()
    (runs / "organs+contrast" / "finished").touch()
    assert next(study.work(runs)) == Run("organs+contrast", BOTH, 2, 10, 0, study.RATES[0]).name


def test_the_rate_of_the_best_validation_is_taken_and_then_tested(results: Callable[..., None], tmp_path: Path) -> None:
    for rate, validation in zip(study.RATES, (0.6, 0.7, 0.65), strict=True):
        assert study.chosen_rate("scratch", 2) is None
        results(Run("scratch", BOTH, 2, 10, 0, rate), validation)
    assert study.chosen_rate("scratch", 2) == study.RATES[1]
    assert f"test:{Run('scratch', BOTH, 2, 10, 0, study.RATES[1]).name}" in study.work(tmp_path)
    assert not [
        name for name in study.work(tmp_path) if name.startswith("test:") and f"lr{study.RATES[0]:g}-" in f"{name}-"
    ]


def test_differences_are_paired_over_the_seeds_both_have(results: Callable[..., None]) -> None:
    def scores(*dsc: float) -> dict[str, dict[str, float]]:
        return {f"p{index}": dict.fromkeys(study.FIGURES, value) for index, value in enumerate(dsc)}

    for start, shift in (("scratch", 0.0), ("organs", 0.05)):
        for rate in study.RATES:
            results(Run(start, BOTH, 2, 10, 0, rate), 0.5, scores(0.5 + shift, 0.7 + shift, 0.9 + shift))
    results(Run("scratch", BOTH, 2, 10, 1, study.RATES[0]), 0.5, scores(0.1, 0.1, 0.1))
    results(Run("organs", BOTH, 2, 10, 2, study.RATES[0]), 0.5, scores(0.9, 0.9, 0.9))
    difference = study_report.difference(("organs", BOTH), ("scratch", BOTH), 2, 10)
    assert difference == "+5.0 (1 training); patients alone (+5.0 to +5.0)"
    assert study_report.difference(("organs", BOTH), ("scratch", BOTH), 2, 40) == "not run"
    text = study_report.tables()
    assert "| scratch | none | not run | 0.400 ± 3.812 (0.700, 0.100) |" in text
    assert "| organs, encoder + decoder | 60,000 slices | not run | 0.825 ± 0.953 (0.750, 0.900) |" in text


def test_the_interval_over_trainings_is_students() -> None:
    # three trainings: mean 1.487, standard deviation 3.03, t(0.975, 2) = 4.303
    assert study_report.training_interval([0.15, 4.96, -0.65], 1, "+") == "+1.5 ± 7.5 (+0.1, +5.0, -0.7)"
    assert study_report.training_interval([0.4], 1) == "0.4 (1 training)"


def test_an_infinite_distance_is_left_out(results: Callable[..., None]) -> None:
    found: dict[int, dict[str, dict[str, float | None]]] = {
        0: {"a": {"hd_mm": 3.0}, "b": {"hd_mm": None}},
        1: {"a": {"hd_mm": 5.0}, "b": {"hd_mm": 2.0}},
    }
    assert study_report.over_seeds(found, "hd_mm") == {"a": 4.0}
