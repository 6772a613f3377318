"""A channel that is probably CT, but not named so, is not in HU for the training; that is told."""

import json
from pathlib import Path

import pytest

from parotid_seg.train.data.data_set import open_data_set


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("CT", False),
        ("ct", False),
        ("T1", False),
        ("octreotide", False),
        ("CT ", True),
        ("planning_ct", True),
        ("Computed Tomography", True),
    ],
)
def test_a_name_that_is_nearly_ct(data: Path, name: str, told: bool) -> None:
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": name}}))
    note = f"channel_names: {name!r} is not CT, so the window is found in each scan; if it is in HU, name it CT"
    assert open_data_set(data).notes == ((note,) if told else ())
