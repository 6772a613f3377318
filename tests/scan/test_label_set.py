"""A data set's splits.json."""

import json
from pathlib import Path

import pytest

from parotid_seg.errors import InputError
from parotid_seg.scan.label_set import read_splits


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"train": 3}',
        '"x"',
        '{"train": [3]}',
        '{"train": ["a"], "train": ["b"]}',
        "[" * 100_000,
        '{"train": ["../a"]}',
        '{"train": ["a", "a"]}',
        '{"train": ["a"], "test": ["a"]}',
    ],
)
def test_a_broken_splits_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "splits.json"
    assert read_splits(path) == {}
    path.write_text(text)
    with pytest.raises(InputError, match=r"splits\.json: .*(expected|found)"):
        read_splits(path)
    path.write_text(json.dumps({"train": ["a"]}))
    assert read_splits(path) == {"train": ["a"]}
