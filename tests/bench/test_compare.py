"""Two bench.json files: what got slower, and files that are none."""

import json

import numpy as np
import pytest

from parotid_seg.bench.compare import compare_files
from parotid_seg.bench.result import SCHEMA, SCHEMA_VERSION
from parotid_seg.errors import InputError


def content(seed, factors, pace=10.0, **more):
    """What compare reads of a result; `factors` by engine and batch size."""
    random = np.random.default_rng(seed)

    def times(level):
        return [list(level * (1 + 0.02 * random.gamma(1.0, 1.0, 15))) for _ in range(3)]

    rows = {}
    for (engine, size), factor in factors.items():
        rows.setdefault(engine, []).append({"batch_size": size, "rounds_ms": times(pace * size * factor)})
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "machine": {"processor": "some", "cores": 2},
        "model": {"sha256": "abc"},
        "pace_ms": times(pace),
        "rows": [{"name": name, "speeds": speeds} for name, speeds in rows.items()],
        **more,
    }


@pytest.fixture
def written(tmp_path):
    def write(name, found):
        path = tmp_path / name
        path.write_text(json.dumps(found) if isinstance(found, dict) else found)
        return path

    return write


BOTH = {("ORT", 1): 1.0, ("ORT", 16): 1.0, ("OV", 16): 0.7}


def test_equal_runs(written, command):
    old, new = written("old.json", content(1, BOTH)), written("new.json", content(2, BOTH))
    found = compare_files(old, new)
    assert [change.verdict for change in found.changes] == ["no change found"] * 3
    assert not found.slower
    done = command("bench", "compare", old, new)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("no change found") == 3


def test_five_per_cent_slower(written, command):
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


def test_a_machine_that_is_slower_today_is_no_slower_engine(written):
    old, new = written("old.json", content(1, BOTH)), written("new.json", content(2, BOTH, pace=13.0))
    found = compare_files(old, new)
    assert found.pace == pytest.approx(1.3, rel=0.02)
    assert not found.slower
    assert all(change.new_ms > 1.2 * change.old_ms for change in found.changes)


def test_an_engine_that_is_gone_is_told(written):
    old = written("old.json", content(1, BOTH))
    new = written("new.json", content(2, {("ORT", 1): 1.0, ("new", 1): 1.0}))
    found = compare_files(old, new)
    assert found.slower
    assert [line for line in found.lines() if line.endswith(": gone")] == [
        "ORT, batches of 16: gone",
        "OV, batches of 16: gone",
    ]
    assert "new, batches of 1: new" in found.lines()


def test_other_machines_and_models_are_told(written):
    old = written("old.json", content(1, BOTH))
    new = written("new.json", content(2, BOTH, machine={"processor": "other", "cores": 2}, model={"sha256": "d" * 64}))
    notes = compare_files(old, new).notes
    assert notes == ("other processors: some and other", "other model files: abc and dddddddddddd")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "no such file, expected a bench.json"),
        ("{", "not readable as JSON"),
        ("[]", "not made by parotid-seg bench"),
        ({"rows": []}, "not made by parotid-seg bench"),
        ({**content(1, BOTH), "schema_version": 0}, "found schema version 0, expected 1; measure again"),
        ({"schema": SCHEMA, "schema_version": SCHEMA_VERSION}, "damaged: KeyError('machine')"),
        (content(1, BOTH, pace_ms=[]), "damaged: ValueError('no times in it')"),
        (content(1, BOTH, pace_ms=[[1.0]]), "damaged: "),
        (content(1, {("other", 3): 1.0}), "has no engine and batch size in common"),
    ],
)
def test_files_that_are_none(written, command, tmp_path, found, words):
    old, new = written("old.json", content(1, BOTH)), tmp_path / "new.json"
    if found is not None:
        written("new.json", found)
    with pytest.raises(InputError, match=str(new)) as error:
        compare_files(old, new)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    if found is None:
        done = command("bench", "compare", old, new)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"parotid-seg: {error.value}\n"
