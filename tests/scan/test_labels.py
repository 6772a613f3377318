"""What label names tell, whatever their style."""

import pytest

from parotid_seg.scan.labels import is_parotid, is_sided, mirrored_labels, plain_name, words


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


@pytest.mark.parametrize(
    ("names", "mirrored"),
    [
        (("background", "parotid_left", "parotid_right"), (0, 2, 1)),
        (("background", "RightLung", "Heart", "LeftLung"), (0, 3, 2, 1)),
        (("background", "left_eye", "cleft"), (0, 1, 2)),
        (("background", "腮腺", "脊髓"), (0, 1, 2)),
        (("background", "*", "+"), (0, 1, 2)),
    ],
)
def test_mirrored_labels(names, mirrored):
    assert mirrored_labels(names) == mirrored


def test_names_in_plain_words():
    names = ("parotid_left", "LeftParotid", "parotid", "tumour_2", "right_parotid")
    assert [plain_name(name) for name in names] == [
        "left parotid",
        "left parotid",
        "parotid",
        "tumour 2",
        "right parotid",
    ]
