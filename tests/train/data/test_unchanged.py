"""A resumed run goes on with the patients that it began with."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parotid_seg.errors import InputError
from parotid_seg.train.data.loading import Trained, check_unchanged, in_recorded_order

LAST = Path("run/last.pt")


def patients(*names: str, spacing_mm: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> Any:
    volume = SimpleNamespace(spacing_mm=spacing_mm)
    return [
        SimpleNamespace(name=name, sha256=f"scan of {name}", labels_sha256=f"labels of {name}", volume=volume)
        for name in names
    ]


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


def test_another_spacing_of_the_same_voxels_is_another_scan() -> None:
    trained = Trained.of(patients("a", "b"), patients("c"))
    with pytest.raises(InputError, match="the scans of b "):
        check_unchanged(LAST, trained, [*patients("a"), *patients("b", spacing_mm=(3.0, 0.9, 0.9))], patients("c"))


def test_a_record_without_spacing_is_still_resumed() -> None:
    trained = Trained((("scan of a", "labels of a"), ("scan of b", "labels of b")), (("scan of c", "labels of c"),))
    check_unchanged(LAST, trained, patients("b", "a"), patients("c"))
    assert [each.name for each in in_recorded_order(trained, patients("b", "a"))] == ["a", "b"]


def test_a_scan_with_the_contours_of_two_readers_is_resumed() -> None:
    first, second, third = patients("a", "b", "c")
    second.sha256 = first.sha256
    trained = Trained.of([second, third, first], patients("d"))
    now = [first, second, third]
    check_unchanged(LAST, trained, now, patients("d"))
    assert in_recorded_order(trained, now) == [second, third, first]
    second.labels_sha256 = first.labels_sha256
    with pytest.raises(InputError, match="the label maps of b changed"):
        check_unchanged(LAST, trained, now, patients("d"))


def test_patients_are_drawn_in_the_order_of_the_first_run() -> None:
    trained = Trained.of(patients("c", "a", "b"), patients("d"))
    assert [each.name for each in in_recorded_order(trained, patients("a", "b", "c"))] == ["c", "a", "b"]
