"""Mutated records of every kind that the package reads: read, or refused in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.bench.compare_results import compare_files
from parotid_seg.bench.result import SCHEMA, SCHEMA_VERSION
from parotid_seg.contract import Contract, Grid
from parotid_seg.dataset.private import STATE, DataSetCase, Private
from parotid_seg.dataset.private import _read as read_state
from parotid_seg.errors import InputError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.node.ledger import DONE, Ledger, ReceivedSlice, SeriesRecord
from parotid_seg.records import record_line, record_text
from parotid_seg.runtime.engines.autotune import Choice
from parotid_seg.runtime.engines.autotune import _stored_choice as kept_choice
from parotid_seg.runtime.engines.engine_file import Sidecar, read_sidecar, sidecar_path
from parotid_seg.runtime.label_match import _labels_beside as labels_beside
from parotid_seg.runtime.pipeline.journal import NAME, Entry, Journal
from parotid_seg.scan.label_set import read_label_set, read_splits
from tests.fakes.sidecars import write_sidecar
from tests.fuzz.mutate import feed, tree_mutant

pytestmark = pytest.mark.slow


CONTRACT = Contract(("background", "parotid_left"), ("CT",), ((-200.0, 300.0),), Grid(), training={"data": "a"})
ENTRY = Entry(
    "a",
    "/scans/a.nii.gz",
    "k",
    "done",
    mask="a.nii.gz",
    mask_sha256="0" * 64,
    further={"a.seg.nrrd": "1" * 64},
    volumes_ml={"parotid_left": 20.5},
    flags=(Flag(FlagCode.UNUSUAL_VOLUME, "parotid_left", 70.5),),
    seconds={"read": 0.25},
)
SPEED = {
    "batch_size": 1,
    "slices": 1,
    "parity": {"within": True},
    "rounds_ms": [[1.5, 2.0], [1.0, 1.0]],
    "transfers_ms": [[1.0, 1.0], [1.0, 1.0]],
}
BENCH = {
    "schema": SCHEMA,
    "schema_version": SCHEMA_VERSION,
    "machine": {"processor": "some", "cores": 2},
    "model": {"sha256": "abc"},
    "rows": [{"name": "ORT", "ran": {"device": "cpu", "precision": "fp32"}, "speeds": [SPEED]}],
}
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "gland": "1", "ignore": 2}, "file_ending": ".nii"}

Reader = Callable[[bytes], object]


def contract(folder: Path) -> tuple[Reader, list[bytes]]:
    text = CONTRACT.to_json()
    read = lambda content: Contract.from_json(content.decode("utf-8", "replace"), where="m.onnx")  # noqa: E731
    return read, [text.encode()]


def journal(folder: Path) -> tuple[Reader, list[bytes]]:
    def read(content: bytes) -> None:
        (folder / NAME).write_bytes(content)
        found = Journal(folder)
        for entry in found.entries.values():
            assert (folder / entry.case).parent == folder
            assert all((folder / name).parent == folder for name in entry.files)
            record_line(entry)
        assert not any("\n" in reason for reason in found.unusable)

    return read, [record_line(ENTRY), record_line(ENTRY) * 3]


def node_state(folder: Path) -> tuple[Reader, list[bytes]]:
    ledger = Ledger(folder)
    record = SeriesRecord(DONE, {"0" * 16: ReceivedSlice("a" * 64, 1_700_000_000_000_000_000)}, results=("a.dcm",))
    old = {**dataclasses.asdict(record), "slices": {"0" * 16: ["a" * 64, 17]}}

    def read(content: bytes) -> None:
        (folder / "s.json").write_bytes(content)
        found = ledger.get("s")
        assert found is None or all((folder / name).parent == folder for name in (*found.slices, *found.results))

    return read, [record_text(record).encode(), json.dumps(old).encode()]


def choice(folder: Path) -> tuple[Reader, list[bytes]]:
    def read(content: bytes) -> None:
        (folder / "c.json").write_bytes(content)
        if found := kept_choice(folder / "c.json", {"a": 1}):
            assert str(found)

    return read, [record_text(Choice("a", 16, {"a": 10.5, "b": 3.0}, {"b": "slower"}, "2026-01-01")).encode()]


def sidecar(folder: Path) -> tuple[Reader, list[bytes]]:
    engine = folder / "m.engine"
    engine.write_bytes(b"engine")
    write_sidecar(engine, CONTRACT)
    seed = sidecar_path(engine).read_bytes()

    def read(content: bytes) -> Sidecar:
        sidecar_path(engine).write_bytes(content)
        return read_sidecar(engine)

    return read, [seed]


def bench(folder: Path) -> tuple[Reader, list[bytes]]:
    (folder / "old.json").write_text(json.dumps(BENCH))

    def read(content: bytes) -> None:
        (folder / "new.json").write_bytes(content)
        compare_files(folder / "old.json", folder / "new.json").lines()

    return read, [json.dumps(BENCH).encode()]


def splits(folder: Path) -> tuple[Reader, list[bytes]]:
    def read(content: bytes) -> None:
        (folder / "splits.json").write_bytes(content)
        read_splits(folder / "splits.json")

    return read, [b'{"train": ["case_0001", "case_0002"], "validation": ["case_0003"]}']


def private_state(folder: Path) -> tuple[Reader, list[bytes]]:
    case = DataSetCase("case_0001", "s", "p", labels=("gland",), flags=(Flag(FlagCode.NOTHING_FOUND),))
    Private(folder, labels=("gland",), cases={case.name: case}).save()
    seed = (folder / STATE).read_bytes()

    def read(content: bytes) -> None:
        (folder / STATE).write_bytes(content)
        state = read_state(folder)
        state.pseudonym("a")
        state.case_of("another", "patient")

    return read, [seed]


def labels(folder: Path) -> tuple[Reader, list[bytes]]:
    def read(content: bytes) -> None:
        (folder / "dataset.json").write_bytes(content)
        labels_beside(folder, "references")

    return read, [json.dumps(DATASET).encode()]


def run(folder: Path) -> tuple[Reader, list[bytes]]:
    def read(content: bytes) -> None:
        (folder / "run.json").write_bytes(content)
        labels_beside(folder, "predictions")

    return read, [record_text({"model": {"contract": CONTRACT, "sha256": "0"}, "cases": {"done": 1}}).encode()]


@pytest.mark.parametrize(
    "kind", [contract, journal, node_state, choice, sidecar, bench, splits, private_state, labels, run]
)
def test_records(kind: Callable[..., tuple[Reader, list[bytes]]], tmp_path: Path, inputs: Callable[[int], int]) -> None:
    read, seeds = kind(tmp_path)
    for seed in seeds:
        read(seed)
    feed(read, seeds, inputs(150))
    feed(read, seeds, inputs(300), make=tree_mutant)


@pytest.mark.parametrize("cases", [5, "a", [5], {"a": 1}])
def test_a_private_state_whose_cases_are_no_list_of_objects(tmp_path: Path, cases: Any) -> None:
    (tmp_path / STATE).write_text(json.dumps({"schema_version": 1, "salt": "00", "labels": [], "cases": cases}))
    with pytest.raises(InputError, match=r"at `\$\.cases"):
        read_state(tmp_path)


def test_a_label_whose_number_is_a_text_of_thousands_of_digits(tmp_path: Path) -> None:
    content = {"labels": {"background": 0, "gland": "1" * 5000}}
    with pytest.raises(InputError, match="expected a whole number from 0 to 255"):
        read_label_set(content, tmp_path)
