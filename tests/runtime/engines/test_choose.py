"""The choice between engines, with engines and a clock that only pretend: nothing is timed for real."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.errors import ModelError, OutputError, ParotidSegError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines import autotune
from parotid_seg.runtime.engines.autotune import SCHEMA_VERSION, Candidate, cache_folder, choose, place_for
from parotid_seg.runtime.engines.autotune import _stored_choice as kept_choice
from parotid_seg.runtime.engines.model_file import read_model
from tests.runtime.engines.pretended import Engine

CONTRACT = read_model(DEFAULT_MODEL).contract


class Measured:
    """What is known of the engines beforehand."""

    def __init__(self, speeds: dict[str, int], failures: dict[str, str] | None = None, batch_size: int = 16) -> None:
        self.known, self.failures, self.best_size = speeds, failures or {}, batch_size
        self.timed = 0
        self.not_timed: dict[str, str] = {}
        self.no_batch: dict[str, str] = {}
        self.compared: list[tuple[str, str, str]] = []

    def speeds(self, backends: dict[str, Engine], failed: dict[str, ParotidSegError]) -> dict[str, int]:
        self.timed += 1
        failed |= {name: ModelError(reason) for name, reason in self.not_timed.items()}
        return {name: self.known[name] for name in backends if name not in failed}

    def batch_size(self, backend: Engine, sizes: tuple[int, int, int]) -> int:
        if backend.name in self.no_batch:
            raise ModelError(self.no_batch[backend.name])
        return self.best_size

    def failure(self, reference: Engine, other: Engine, precision: str) -> str:
        self.compared.append((reference.name, other.name, precision))
        return self.failures.get(other.name, "")


class Choosing:
    """`choose` with candidates of the given precisions, and what it said."""

    def __init__(self, place: Any, precisions: list[tuple[str, str]], measured: Any, precision: str = "fp32") -> None:
        self.place, self.measured, self.precision = place, measured, precision
        self.loaded: list[Engine] = []
        self.said: list[str] = []
        self.broken: dict[str, str] = {}
        self.candidates = [
            Candidate(name, "onnxruntime", kind, DEFAULT_MODEL, partial(self.make, name)) for name, kind in precisions
        ]

    def make(self, name: str) -> Any:
        if name in self.broken:
            raise ModelError(self.broken[name])
        self.loaded.append(Engine(name))
        return self.loaded[-1]

    def __call__(self) -> Any:
        return choose(self.candidates, self.precision, (8, 16, 32), lambda: self.measured, self.place, self.said.append)


PRECISIONS = [("ort", "fp32"), ("ort int8", "int8"), ("ov", "fp32"), ("ov bf16", "bf16")]


@pytest.fixture
def choosing(tmp_path: Path) -> Callable[..., Choosing]:
    def make(
        speeds: tuple[int, ...],
        failures: dict[str, str] | None = None,
        precisions: list[tuple[str, str]] = PRECISIONS,
        **options: Any,
    ) -> Choosing:
        known = dict(zip([name for name, _ in precisions], speeds, strict=True))
        return Choosing(tmp_path / "cache" / "a.json", precisions, Measured(known, failures), **options)

    return make


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ((30, 41, 38, 40), "ov"),  # lower precisions are faster, but not by a tenth of the best FP32
        ((30, 43, 38, 40), "ort int8"),
        ((30, 43, 38, 60), "ov bf16"),
        ((30, 20, 10, 25), "ort"),
        ((30, 20, 30.1, 25), "ov"),  # of one precision the fastest, however little it is
    ],
)
def test_the_fastest_is_taken_and_a_lower_precision_only_if_it_is_worth_it(
    choosing: Callable[..., Choosing], speeds: tuple[int, int, float, int], expected: str
) -> None:
    run = choosing(speeds)
    chosen = run()
    assert chosen.name == expected
    assert [engine.closed for engine in run.loaded] == [engine is not chosen for engine in run.loaded]
    assert run.said[0].startswith(
        f"{expected}: {dict(zip(dict(PRECISIONS), speeds, strict=True))[expected]:.0f} samples/s"
    )


def test_other_masks_rule_a_faster_engine_out_and_the_next_is_tried(choosing: Callable[..., Choosing]) -> None:
    run = choosing((30, 43, 20, 60), {"ov bf16": "other masks"})
    assert run().name == "ort int8"
    assert run.measured.compared == [("ort", "ov bf16", "bf16"), ("ort", "ort int8", "int8")]
    assert "ov bf16 not taken: other masks" in run.said[0]
    assert len(run.said) == 1
    assert "\n" not in run.said[0]


def test_masks_of_the_same_precision_are_compared_too(choosing: Callable[..., Choosing]) -> None:
    run = choosing((30, 1, 60, 1), {"ov": "other masks"})
    assert run().name == "ort"
    assert run.measured.compared == [("ort", "ov", "fp32")]
    assert "ov not taken: other masks" in run.said[0]


def test_masks_are_compared_of_those_only_that_would_be_taken(choosing: Callable[..., Choosing]) -> None:
    run = choosing((30, 1, 60, 70))
    assert run().name == "ov bf16"
    assert run.measured.compared == [("ort", "ov bf16", "bf16")]


@pytest.mark.parametrize(
    ("speeds", "failures", "expected"),
    [
        ((30, 60, 70, 80), {}, "half fused"),
        ((30, 60, 70, 65), {}, "half"),
        ((30, 60, 61, 65), {}, "fused"),  # FP16 is faster, but not by a tenth of the fused FP32
        ((30, 60, 61, 65), {"fused": "other masks"}, "half fused"),
        ((30, 60, 61, 65), {"fused": "other masks", "half fused": "other masks"}, "half"),
        ((30, 60, 61, 65), dict.fromkeys(("fused", "half fused", "half"), "other masks"), "ort"),
        ((30, 29, 10, 10), {}, "ort"),
    ],
)
def test_a_graph_is_taken_only_if_its_masks_are_the_same(
    choosing: Callable[..., Choosing],
    speeds: tuple[int, int, int, int],
    failures: dict[str, str],
    expected: str,
) -> None:
    precisions = [("ort", "fp32"), ("fused", "fp32"), ("half", "fp16"), ("half fused", "fp16")]
    run = choosing(speeds, failures, precisions=precisions)
    assert run().name == expected
    told = re.search(r"; ([^;]*) not taken: other masks", run.said[0])
    assert set(failures) == set(told[1].split(", ") if told else ())
    assert expected == "ort" or ("ort", expected, dict(precisions)[expected]) in run.measured.compared


def test_for_a_model_in_half_precision_bf16_is_lower_and_fp32_is_not(choosing: Callable[..., Choosing]) -> None:
    precisions = [("ort", "fp16"), ("ov", "fp32"), ("ov bf16", "bf16")]
    assert choosing((30, 31, 33), precisions=precisions, precision="fp16")().name == "ov"


def test_the_choice_is_kept_and_not_measured_again(choosing: Callable[..., Choosing]) -> None:
    first = choosing((30, 43, 38, 60))
    first.measured.best_size = 32
    first()
    again = choosing((99, 1, 1, 1))
    chosen = again()
    assert (chosen.name, chosen.batch_size, again.measured.timed) == ("ov bf16", 32, 0)
    assert [engine.name for engine in again.loaded] == ["ov bf16"], "nothing else is loaded"
    assert "measured on this machine just now, kept in" in first.said[0]
    assert re.search(r"measured on this machine \d{4}-\d\d-\d\d, kept in", again.said[0])
    assert str(again.place) in again.said[0]


KEPT = {
    "name": "ov",
    "batch_size": 8,
    "samples_per_s": {"ov": 1},
    "refused": {"ort int8": "other masks"},
    "measured": "2026-01-01",
    "schema_version": SCHEMA_VERSION,
}


def test_an_earlier_choice_is_used(choosing: Callable[..., Choosing]) -> None:
    run = choosing((99, 1, 1, 1))
    run.place.parent.mkdir()
    run.place.write_text(json.dumps(KEPT))
    assert (run().name, run.measured.timed) == ("ov", 0)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        json.dumps({"name": "ov"}),
        json.dumps({**KEPT, "schema_version": 0}),
        json.dumps({**KEPT, "samples_per_s": {}}),
        json.dumps({**KEPT, "name": "gone", "samples_per_s": {"gone": 1}}),
        json.dumps({**KEPT, "batch_size": 0}),
        json.dumps({**KEPT, "samples_per_s": {"ov": -1}}),
        json.dumps({**KEPT, "samples_per_s": {"ov": 1, "invented": 2}}),
        json.dumps({**KEPT, "refused": {"invented": "no"}}),
        json.dumps({**KEPT, "measured": "never\n"}),
    ],
)
def test_what_cannot_be_used_of_an_earlier_choice_is_measured_again(
    choosing: Callable[..., Choosing], content: str
) -> None:
    run = choosing((99, 1, 1, 1))
    run.place.parent.mkdir()
    run.place.write_text(content)
    assert run().name == "ort"
    assert run.measured.timed == 1
    assert json.loads(run.place.read_text())["name"] == "ort"


def test_a_folder_that_cannot_be_written_is_told(choosing: Callable[..., Choosing]) -> None:
    run = choosing((30, 1, 60, 1))
    run.place.parent.write_text("a file where the folder should be")
    assert run().name == "ov"
    assert "not kept, so that the next run may choose another: " in run.said[0]


@pytest.mark.parametrize("moment", ["measuring", "storing"])
def test_of_two_that_measure_at_once_both_take_what_was_kept_first(
    choosing: Callable[..., Choosing], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run, other = choosing((30, 1, 60, 1)), choosing((99, 1, 1, 1))
    owner, name = {"measuring": (run.measured, "speeds"), "storing": (autotune, "write_record")}[moment]
    real = getattr(owner, name)

    def after_the_other(*asked: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        other()
        return real(*asked)

    monkeypatch.setattr(owner, name, after_the_other)
    assert run().name == "ort"
    assert [engine.name for engine in run.loaded if not engine.closed] == ["ort"]
    assert list(run.place.parent.iterdir()) == [run.place]


def test_a_choice_is_kept_on_a_file_system_without_hard_links(
    choosing: Callable[..., Choosing], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run = choosing((30, 1, 60, 1))
    run()
    assert json.loads(run.place.read_text())["name"] == "ov"
    assert list(run.place.parent.iterdir()) == [run.place]


def test_an_engine_that_does_not_load_is_told_but_the_reference_must(choosing: Callable[..., Choosing]) -> None:
    run = choosing((30, 1, 60, 70))
    run.broken = {"ov": "no", "ov bf16": "that neither"}
    assert run().name == "ort"
    assert "ov not taken: no; ov bf16 not taken: that neither" in run.said[0]
    run = choosing((30, 1, 60, 70))
    run.place.unlink()
    run.broken = {"ort": "the model is damaged"}
    with pytest.raises(ModelError, match="damaged"):
        run()


def test_an_engine_that_cannot_compute_is_told_but_the_reference_must(choosing: Callable[..., Choosing]) -> None:
    run = choosing((30, 1, 60, 70))
    run.measured.not_timed, run.measured.no_batch = {"ov bf16": "no primitive"}, {"ov": "no room"}
    chosen = run()
    assert chosen.name == "ort"
    assert "ov bf16 not taken: no primitive; ov not taken: no room" in run.said[0]
    assert [engine for engine in run.loaded if not engine.closed] == [chosen]
    for failures in ("not_timed", "no_batch"):
        run = choosing((30, 1, 20, 20))
        run.place.unlink(missing_ok=True)
        setattr(run.measured, failures, {"ort": "the graph is damaged"})
        with pytest.raises(ModelError, match="the graph is damaged"):
            run()


def test_the_place_depends_on_every_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts: dict[str, object] = {"cpu": "a", "cores": 2, "candidates": ["x", "y"]}
    assert place_for(facts) == place_for(dict(reversed(facts.items())))
    others = [place_for({**facts, name: value}) for name, value in (("cpu", "b"), ("cores", 3), ("candidates", ["x"]))]
    assert len({place_for(facts), *others}) == 4
    place = place_for(facts)
    assert place is not None
    assert place.parent == cache_folder() / "engines"
    if cache_folder().is_relative_to(tmp_path):
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder().parts[-2:] == (".cache", "parotid-seg")


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/parotid-seg")


@pytest.mark.usefixtures("without_home")
def test_without_a_home_folder_the_choice_is_made_and_not_kept(choosing: Callable[..., Choosing]) -> None:
    with pytest.raises(OutputError, match=r"no home folder for the cache, expected \$HOME"):
        cache_folder()
    run = choosing((30, 1, 60, 1))
    run.place = place_for({})
    assert run().name == "ov"
    assert "not kept, so that the next run may choose another: this user has no home folder" in run.said[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"samples_per_s": {"a": "10"}},
        {"samples_per_s": {"a": None}},
        {"samples_per_s": {"b": 1.0}},
        {"samples_per_s": {"a": -1.0}},
        {"measured": "today"},
        {"batch_size": 10**9},
        {"batch_size": True},
        {"batch_size": 0},
        {"refused": []},
        {"schema_version": 0},
        {"surprise": 1},
    ],
)
def test_a_kept_choice_of_wrong_types_or_sizes_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    good = {
        "name": "a",
        "batch_size": 8,
        "samples_per_s": {"a": 1.5},
        "refused": {},
        "measured": "2026-01-01",
        "schema_version": SCHEMA_VERSION,
    }
    place = tmp_path / "choice.json"
    place.write_text(json.dumps(good))
    assert kept_choice(place, {"a": 1}) is not None
    place.write_text(json.dumps({**good, **changes}))
    assert kept_choice(place, {"a": 1}) is None
    place.write_text("[" * 100_000)
    assert kept_choice(place, {"a": 1}) is None


def test_a_stored_choice_is_checked_with_its_batch_size() -> None:
    """A GPU plans its convolutions for a number of samples: it should do so once."""
    seen: list[int] = []
    engine = Engine("any")
    candidate = Candidate(
        "any",
        "onnxruntime",
        "fp32",
        DEFAULT_MODEL,
        lambda: engine,
        check=lambda it: seen.append(it.batch_size),
    )
    loaded: list[Any] = [candidate.load(64), candidate.load()]
    assert loaded == [engine, engine]
    assert seen == [64, 64]
