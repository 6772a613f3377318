"""The node's records of series: those of older versions are read, and a damaged or hostile one counts as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parotid_seg.node.ledger import DONE, Ledger, ReceivedSlice, SeriesRecord

NAME, HASH = "0123456789abcdef", "a" * 64
OLD = {"status": DONE, "slices": {NAME: [HASH, 17]}, "reason": "", "results": ["a.dcm"], "deaths": 1}


def test_there_and_back(tmp_path: Path) -> None:
    ledger, record = Ledger(tmp_path), SeriesRecord(DONE, {NAME: ReceivedSlice(HASH, 17)}, results=("a.dcm",), deaths=1)
    ledger.put("s", record)
    assert ledger.get("s") == record
    assert list(ledger) == ["s"]


def test_a_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(OLD))
    assert Ledger(tmp_path).get("s") == SeriesRecord(
        DONE, {NAME: ReceivedSlice(HASH, 17)}, results=("a.dcm",), deaths=1
    )


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        json.dumps(OLD).replace("17", "1e999"),
        json.dumps(OLD).replace("17", '"17"'),
        json.dumps({**OLD, "slices": [NAME]}),
        json.dumps({**OLD, "slices": {NAME: [HASH]}}),
        json.dumps({**OLD, "slices": {"../x": [HASH, 17]}}),
        json.dumps({**OLD, "results": ["../../etc/passwd"]}),
        json.dumps({**OLD, "results": [""]}),
        json.dumps({**OLD, "status": "perhaps"}),
        json.dumps({**OLD, "deaths": "1"}),
        json.dumps({**OLD, "surprise": 1}),
    ],
)
def test_a_damaged_or_hostile_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    assert Ledger(tmp_path).get("s") is None
