"""A resumed run goes on with the patients that it began with."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parotid_seg.errors import InputError
from parotid_seg.train.data.loading import Trained, check_unchanged

LAST = Path("run/last.pt")


def patients(*names: str) -> Any:
    return [SimpleNamespace(name=name, sha256=f"scan of {name}", labels_sha256=f"labels of {name}") for name in names]


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        ("ab", "cde", None),
        ("ba", "edc", None),
        (
            "ab",
            "cd",
            r"^--resume: found 2 validation patients, run/last.pt has 3: epochs that were validated on others",
        ),
        ("ab", "cdef", "found 4 validation patients, run/last.pt has 3"),
        ("ab", "cdf", r"the scans of f \(or their list in splits.json\) changed after run/last.pt was written"),
        ("ac", "bde", r"the scans of c, b \(or their list"),
    ],
)
def test_patients_of_a_resumed_run(train: str, validation: str, words: str | None) -> None:
    trained = Trained.of(patients(*"ab"), patients(*"cde"))
    if words is None:
        check_unchanged(LAST, trained, patients(*train), patients(*validation))
        return
    with pytest.raises(InputError, match=words):
        check_unchanged(LAST, trained, patients(*train), patients(*validation))
