"""What label names tell, whatever their style."""

import pytest

from parotid_seg.scan.labels import is_parotid, is_sided, words


@pytest.mark.parametrize(
    ("name", "expected", "sided", "parotid"),
    [
        ("parotid_left", {"parotid", "left"}, True, True),
        ("RightParotid", {"right", "parotid"}, True, True),
        ("gland", {"gland"}, False, False),
        ("left_eye", {"left", "eye"}, True, False),
        ("cleft", {"cleft"}, False, False),
        ("Parotid", {"parotid"}, False, True),
        ("腮腺", {"腮腺"}, False, False),
    ],
)
def test_names(name, expected, sided, parotid):
    assert words(name) == expected
    assert is_sided(name) == sided
    assert is_parotid(name) == parotid
