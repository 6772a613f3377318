"""The node's records of series: a damaged or hostile one counts as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parotid_seg.node.ledger import DONE, Ledger, ReceivedSlice, SeriesRecord

NAME, HASH = "0123456789abcdef", "a" * 64
SLICE = {"sha256": HASH, "mtime_ns": 17}
GOOD = {"status": DONE, "slices": {NAME: SLICE}, "reason": "", "results": ["a.dcm"], "deaths": 1}


def test_there_and_back(tmp_path: Path) -> None:
    ledger, record = Ledger(tmp_path), SeriesRecord(DONE, {NAME: ReceivedSlice(HASH, 17)}, results=("a.dcm",), deaths=1)
    ledger.put("s", record)
    assert ledger.get("s") == record
    assert list(ledger) == ["s"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        json.dumps(GOOD).replace("17", "1e999"),
        json.dumps(GOOD).replace("17", '"17"'),
        json.dumps({**GOOD, "slices": [NAME]}),
        json.dumps({**GOOD, "slices": {NAME: {"sha256": HASH}}}),
        json.dumps({**GOOD, "slices": {"../x": SLICE}}),
        json.dumps({**GOOD, "results": ["../../etc/passwd"]}),
        json.dumps({**GOOD, "results": [""]}),
        json.dumps({**GOOD, "status": "perhaps"}),
        json.dumps({**GOOD, "deaths": "1"}),
        json.dumps({**GOOD, "surprise": 1}),
    ],
)
def test_a_damaged_or_hostile_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    assert Ledger(tmp_path).get("s") is None
