"""Two bench.json files: what got slower, and files that are none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.bench.compare_results import compare_files
from parotid_seg.bench.result import SCHEMA, SCHEMA_VERSION
from parotid_seg.errors import InputError
from tests.command_line import Run

RAN = {"backend": "some 1.2", "device": "cpu", "precision": "fp32"}


def content(seed: int, factors: dict[tuple[str, int], float], disturbed: float = 0.0, **more: Any) -> dict[str, Any]:
    """What compare reads of a result; `factors` by engine and batch size, `disturbed` a share of the rounds."""
    random = np.random.default_rng(seed)

    def times(level: float, slow: NDArray[Any]) -> list[list[float]]:
        return [list(level * mood * (1 + 0.02 * random.gamma(1.0, 1.0, 15))) for mood in slow]

    rows: dict[str, Any] = {}
    for (engine, size), factor in factors.items():
        moods = 1 + 0.5 * (random.random((3, 15)) < disturbed)
        speed = {"rounds_ms": times(10 * size * factor, moods), "transfers_ms": times(1.0, moods)}
        rows.setdefault(engine, []).append({"batch_size": size, "slices": 2 * size, **speed})
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "machine": {"processor": "some", "cores": 2},
        "model": {"sha256": "abc"},
        "rows": [{"name": name, "ran": RAN, "speeds": speeds} for name, speeds in rows.items()],
        **more,
    }


def with_transfers(transfers: object) -> dict[str, Any]:
    found = content(1, BOTH)
    found["rows"][0]["speeds"][0]["transfers_ms"] = transfers
    return found


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, found: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(found) if isinstance(found, dict) else found)
        return path

    return write


BOTH = {("ORT", 1): 1.0, ("ORT", 16): 1.0, ("OV", 16): 0.7}


def test_equal_runs(written: Callable[..., Path], command: Run) -> None:
    old, new = written("old.json", content(1, BOTH)), written("new.json", content(2, BOTH))
    found = compare_files(old, new)
    assert [change.verdict for change in found.changes] == ["no change found"] * 3
    assert not found.worse
    done = command("bench", "compare", old, new)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("no change found") == 3


def test_five_per_cent_slower(written: Callable[..., Path], command: Run) -> None:
    old = written("old.json", content(1, BOTH))
    new = written("new.json", content(2, {**BOTH, ("ORT", 16): 1.05}))
    assert [change.verdict for change in compare_files(old, new).changes] == [
        "no change found",
        "slower",
        "no change found",
    ]
    done = command("bench", "compare", old, new)
    assert done.returncode == 1
    assert "ORT, batches of 16: slower: 16" in done.stdout
    assert [change.verdict for change in compare_files(new, old).changes][1] == "faster"
    assert command("bench", "compare", new, old).returncode == 0


def test_other_masks_are_no_gain(written: Callable[..., Path], command: Run) -> None:
    old, found = written("old.json", content(1, BOTH)), content(2, {key: factor / 2 for key, factor in BOTH.items()})
    for row, within in zip(found["rows"], (False, True), strict=True):
        for speed in row["speeds"]:
            speed["parity"] = {"within": within, "dsc": 0.1}
    new = written("new.json", found)
    assert [change.verdict for change in compare_files(old, new).changes] == ["other masks", "other masks", "faster"]
    done = command("bench", "compare", old, new)
    assert done.returncode == 1
    assert "ORT, batches of 16: other masks: 1" in done.stdout


def test_times_are_compared_per_slice(written: Callable[..., Path]) -> None:
    old, found = written("old.json", content(1, BOTH)), content(2, {key: 2 * factor for key, factor in BOTH.items()})
    for row in found["rows"]:
        for speed in row["speeds"]:
            speed["slices"] *= 4
    comparison = compare_files(old, written("new.json", found))
    assert [change.verdict for change in comparison.changes] == ["faster"] * 3
    assert all(change.ratio == pytest.approx(0.5, rel=0.02) for change in comparison.changes)
    assert comparison.notes[0] == (
        "ORT, batches of 1 label other numbers of slices, their times are compared per slice"
    )
    assert " ms for 2 slices, now 20" in comparison.lines()[4]
    assert " ms for 8; -50" in comparison.lines()[4]


def test_what_ran_otherwise_is_told(written: Callable[..., Path]) -> None:
    old, found = written("old.json", content(1, BOTH)), content(2, BOTH)
    found["rows"][0]["ran"] = {**RAN, "backend": "some 1.3"}
    assert compare_files(old, written("new.json", found)).notes == ()
    found["rows"][0]["ran"] = {**RAN, "device": "cuda:0", "precision": "int8"}
    notes = compare_files(old, written("new.json", found)).notes
    assert notes == ("ORT ran otherwise: fp32 on cpu and int8 on cuda:0",)


def test_other_files_are_told(written: Callable[..., Path]) -> None:
    old = written("old.json", content(1, BOTH, inputs={"chunks_of": ["a.nii", "b.nii"]}))
    for names, notes in (
        (["b.nii", "a.nii"], ()),
        (["b.nii", "c.nii"], ("other scans: a.nii and c.nii",)),
        (["a.nii"], ("other scans: b.nii and none",)),
    ):
        assert compare_files(old, written("new.json", content(2, BOTH, inputs={"chunks_of": names}))).notes == notes


def test_other_scans_are_reported(written: Callable[..., Path]) -> None:
    def inputs(columns: int) -> dict[str, Any]:
        return {"voxels_of_a_chunk": {"1": [1, 1, 128, 128], "16": [16, 1, 128, columns], "64": [64, 1, 9, columns]}}

    old = written("old.json", content(1, BOTH, inputs=inputs(128)))
    same = written("same.json", content(2, BOTH, inputs=inputs(128)))
    new = written("new.json", content(2, {**BOTH, ("ORT", 16): 2.0}, inputs=inputs(200)))
    assert compare_files(old, same).notes == ()
    words = "other scans, batches of 16 have other voxels: 16 x 1 x 128 x 128 and 16 x 1 x 128 x 200"
    assert compare_files(old, new).notes == (words,)
    assert compare_files(old, new).lines()[0] == f"note: {words}; the comparison is not reliable"


def test_a_machine_that_is_slower_today_is_no_slower_engine(written: Callable[..., Path]) -> None:
    old, new = written("old.json", content(1, BOTH)), written("new.json", content(2, BOTH, disturbed=0.6))
    found = compare_files(old, new)
    assert found.transfer == pytest.approx(1.0, rel=0.02)
    assert [change.verdict for change in found.changes] == ["no change found"] * 3
    assert all(change.new_ms == pytest.approx(change.old_ms, rel=0.03) for change in found.changes)
    slower = written("slower.json", content(3, {**BOTH, ("ORT", 16): 1.05}, disturbed=0.6))
    assert [change.verdict for change in compare_files(old, slower).changes][1] == "slower"


def test_a_machine_that_never_came_to_rest_gives_no_verdict(written: Callable[..., Path], command: Run) -> None:
    old, new = written("old.json", content(1, BOTH)), written("new.json", content(2, BOTH, disturbed=1.0))
    found = compare_files(old, new)
    assert found.transfer == pytest.approx(1.5, rel=0.02)
    assert [change.verdict for change in found.changes] == ["cannot tell"] * 3
    assert not found.worse
    done = command("bench", "compare", old, new)
    assert done.returncode == 3
    assert "other work disturbed the machine, measure again when it rests" in done.stdout


def test_a_large_change_shows_though_the_machine_never_came_to_rest(written: Callable[..., Path], command: Run) -> None:
    old = written("old.json", content(1, BOTH))
    much_faster = written("faster.json", content(2, {key: factor / 3 for key, factor in BOTH.items()}, disturbed=1.0))
    much_slower = written("slower.json", content(3, {key: factor * 3 for key, factor in BOTH.items()}, disturbed=1.0))
    assert [change.verdict for change in compare_files(old, much_faster).changes] == ["faster"] * 3
    assert [change.verdict for change in compare_files(old, much_slower).changes] == ["slower"] * 3
    assert command("bench", "compare", old, much_faster).returncode == 0
    assert command("bench", "compare", old, much_slower).returncode == 1


def test_a_file_is_no_slower_than_itself(written: Callable[..., Path], command: Run) -> None:
    disturbed = written("one.json", content(1, BOTH, disturbed=1.0))
    assert command("bench", "compare", disturbed, disturbed).returncode == 0


def test_a_single_launch_says_nothing(written: Callable[..., Path]) -> None:
    def first_launches(seed: int) -> dict[str, Any]:
        found = content(seed, BOTH)
        for row in found["rows"]:
            for speed in row["speeds"]:
                speed |= {name: speed[name][:1] for name in ("rounds_ms", "transfers_ms")}
        return found

    found = compare_files(written("old.json", first_launches(1)), written("new.json", first_launches(2)))
    assert [change.verdict for change in found.changes] == ["cannot tell"] * 3


def test_an_engine_that_is_gone_is_told(written: Callable[..., Path]) -> None:
    old = written("old.json", content(1, BOTH))
    new = written("new.json", content(2, {("ORT", 1): 1.0, ("new", 1): 1.0}))
    found = compare_files(old, new)
    assert found.worse
    assert [line for line in found.lines() if line.endswith(": gone")] == [
        "ORT, batches of 16: gone",
        "OV, batches of 16: gone",
    ]
    assert "new, batches of 1: new" in found.lines()


def test_other_machines_and_models_are_told(written: Callable[..., Path]) -> None:
    old = written("old.json", content(1, BOTH))
    new = written("new.json", content(2, BOTH, machine={"processor": "other", "cores": 2}, model={"sha256": "d" * 64}))
    notes = compare_files(old, new).notes
    assert notes == ("other processors: some and other", "other model files: abc and dddddddddddd")


def test_other_gpus_are_told(written: Callable[..., Path]) -> None:
    machine = {"processor": "some", "cores": 2, "gpu": {"name": "H200", "capability": [9, 0], "cuda": "13.0"}}
    old = written("old.json", content(1, BOTH, machine=machine))
    for gpu, notes in ((None, ()), ({"name": "H200"}, ()), ({"name": "L4"}, ("other GPUs: H200 and L4",))):
        new = written("new.json", content(2, BOTH, machine={**machine, "gpu": gpu}))
        assert compare_files(old, new).notes == notes


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "no such file, expected a bench.json"),
        ("{", "not JSON: "),
        ("[]", "expected a bench.json of this version"),
        ({"rows": []}, "found no schema_version, expected 3; expected a bench.json of this version"),
        ({**content(1, BOTH), "schema": "other"}, "not made by parotid-seg bench"),
        (
            {**content(1, BOTH), "schema_version": 0},
            "found schema_version 0, expected 3; expected a bench.json of this",
        ),
        ({"schema": SCHEMA, "schema_version": SCHEMA_VERSION}, "missing required field `machine`"),
        (with_transfers([]), "transfers_ms: expected positive times"),
        (with_transfers([[1.0], [-1.0]]), "transfers_ms: expected positive times"),
        (with_transfers([["1"]]), "Expected `float`, got `str`"),
        ("[" * 100_000, "lists and objects within each other"),
        (with_transfers([[1.0]]), "found rounds without a time of transfers"),
        ({**content(1, BOTH), "rows": 2 * content(1, BOTH)["rows"]}, "found an engine and batch size more than once"),
        (content(1, {("other", 3): 1.0}), "has no engine and batch size in common"),
    ],
)
def test_files_that_are_none(
    written: Callable[..., Path], command: Run, tmp_path: Path, found: str | dict[str, Any] | None, words: str
) -> None:
    old, new = written("old.json", content(1, BOTH)), tmp_path / "new.json"
    if found is not None:
        written("new.json", found)
    with pytest.raises(InputError, match=str(new)) as error:
        compare_files(old, new)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "expected a bench.json" in str(error.value) or "in common" in words
    done = command("bench", "compare", old, new)
    assert (done.returncode, done.stdout) == (2, "")  # 1 is "something is slower"
    assert done.stderr == f"parotid-seg: {error.value}\n"


def test_names_of_a_foreign_file_cannot_steer_the_terminal(written: Callable[..., Path], command: Run) -> None:
    file = written("old.json", content(1, {("\x1b[31mORT", 1): 1.0}))
    assert "\\u001b[31mORT, batches of 1: no change found" in command("bench", "compare", file, file).stdout
