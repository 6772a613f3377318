"""Counts and lists of names in messages."""

import pytest

from parotid_seg.wording import counted, some_of


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [
        (1, "case", "1 case"),
        (0, "case", "0 cases"),
        (2, "study", "2 studies"),
        (1, "study", "1 study"),
        (3, "MR series", "3 MR series"),
    ],
)
def test_counted(count: int, noun: str, words: str) -> None:
    assert counted(count, noun) == words


def test_some_of() -> None:
    assert some_of([]) == ""
    assert some_of("abc") == "a, b, c"
    assert some_of(iter("abcde")) == "a, b, c and 2 more"
    assert some_of("abc", 2, "; ") == "a; b and 1 more"
