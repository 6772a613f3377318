"""What label names say, whatever their style and language."""

import numpy as np
import pytest

from parotid_seg.errors import InputError
from parotid_seg.scan.codes import structures_of
from parotid_seg.scan.components import keep_largest_components
from parotid_seg.scan.labels import (
    check_pairs,
    is_parotid,
    mirrored_labels,
    plain_name,
    side_of,
    structure_words,
    words,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "expected", "side", "parotid"),
    [
        ("parotid_left", ("parotid", "left"), "left", True),
        ("RightParotid", ("right", "parotid"), "right", True),
        ("gland", ("gland",), "", False),
        ("left_eye", ("left", "eye"), "left", False),
        ("cleft", ("cleft",), "", False),
        ("Parotid", ("parotid",), "", True),
        ("parotid_left_right", ("parotid", "left", "right"), "", True),
        ("腮腺", ("腮腺",), "", False),
        ("Parotis li.", ("parotis", "li"), "left", True),
        ("Ohrspeicheldrüse rechts", ("ohrspeicheldruse", "rechts"), "right", True),
        ("Parótida izq", ("parotida", "izq"), "left", True),
        ("PAROTID_RT", ("parotid", "rt"), "right", True),
        ("lparotid", ("parotid", "l"), "left", True),
        ("Glandula parotidea sin.", ("glandula", "parotidea", "sin"), "left", True),
        ("parotid_tumour_left", ("parotid", "tumour", "left"), "left", False),
        ("Parotid_LN_L", ("parotid", "ln", "l"), "left", False),
        ("GTV_parotid", ("gtv", "parotid"), "", False),
    ],
)
def test_names(name: str, expected: tuple[str, ...], side: str, parotid: bool) -> None:
    assert sorted(words(name)) == sorted(expected)
    assert side_of(name) == side
    assert is_parotid(name) == parotid


PAIRS = """left right|L R|l r|lt rt|Lt. Rt.|lft rgt|LEFT RIGHT|links rechts|li re|li. re.|linke rechte|gauche droite|
gauche droit|sinistra destra|sinistro destro|sx dx|sin dex|sin. dex.|sinister dexter|izquierda derecha|
izquierdo derecho|izq der|izq. dcha.|esquerda direita|esq dir"""
NO_SIDES = """retina liver cleft lens vertebra_L1 C_R2 Boden_der_Mundhöhle direct_margin single d Node_IIb relapse
Tumor_G basin order lingua rechecked ltd Glandula"""


@pytest.mark.parametrize("pair", [pair.strip() for pair in PAIRS.split("|")])
@pytest.mark.parametrize("form", ["Submand_{}", "{} eye", "Glnd.Lacrimal.{}", "Plexus-{}", "Parotis {}"])
def test_sides_of_every_language_mirror(pair: str, form: str) -> None:
    left, right = (form.format(side) for side in pair.split())
    names = ("background", right, "tumour", left)
    assert (side_of(left), side_of(right)) == ("left", "right")
    assert mirrored_labels(names) == (0, 3, 2, 1)
    check_pairs(names)


@pytest.mark.parametrize("name", NO_SIDES.split())
def test_what_says_no_side(name: str) -> None:
    assert not side_of(name)
    check_pairs(("background", name))


def test_letters_mean_a_side_only_beside_the_gland_in_its_language() -> None:
    assert [side_of(f"Parotide_{letter}") for letter in "GD"] == ["left", "right"]
    assert [side_of(f"Parótida {letter}") for letter in "IED"] == ["left", "left", "right"]
    assert mirrored_labels(("background", "Parotide_D", "Parotide_G")) == (0, 2, 1)


@pytest.mark.parametrize(
    ("names", "mirrored"),
    [
        (("background", "parotid_left", "parotid_right"), (0, 2, 1)),
        (("background", "RightLung", "Heart", "LeftLung"), (0, 3, 2, 1)),
        (("background", "left_eye", "cleft"), (0, 1, 2)),
        (("background", "腮腺", "脊髓"), (0, 1, 2)),
        (("background", "*", "+"), (0, 1, 2)),
        (("background", "node_2_L", "node_3_R", "node_3_L", "node_2_R"), (0, 4, 3, 2, 1)),
    ],
)
def test_mirrored_labels(names: tuple[str, ...], mirrored: tuple[int, ...]) -> None:
    assert mirrored_labels(names) == mirrored


def test_names_in_plain_words() -> None:
    names = ("parotid_left", "LeftParotid", "parotid", "tumour_2", "right_parotid")
    assert [plain_name(name) for name in names] == [
        "left parotid",
        "left parotid",
        "parotid",
        "tumour 2",
        "right parotid",
    ]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["parotid_left"], "parotid_left (left)"),
        (["parotid_left", "parotis_re"], "parotid_left (left), parotis_re (right)"),
        (["parotid_left", "parotid_right", "Submand_L"], "for Submand_L (left);"),
        (["parotid_left", "Parotid_L", "parotid_right"], "parotid_left, Parotid_L are the same side"),
        (["SMGL", "SMGR"], "SMGL and SMGR look like left and right"),
        (["leye", "chiasm", "reye"], "leye and reye look like left and right"),
        (["rib_L1", "rib_R1"], "rib_L1 and rib_R1 look like left and right"),
        (["oeil_g", "oeil_d"], "oeil_g and oeil_d look like left and right"),
    ],
)
def test_sides_that_do_not_pair(names: list[str], told: str) -> None:
    with pytest.raises(InputError) as error:
        check_pairs(("background", *names))
    assert told in str(error.value)
    assert "mirror_probability = 0" in str(error.value)


@pytest.mark.parametrize(
    "names",
    [["lesion_c", "lesion_d", "lesion_e"], ["vertebra_L1", "vertebra_L2"], ["bone", "bond"]],
)
def test_what_only_looks_a_little_like_sides(names: list[str]) -> None:
    check_pairs(("background", *names))


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("parotid_left", "Parotid_L", True),
        ("parotid_left", "Parotis li", True),
        ("Glnd_Submand_R", "submand right", True),
        ("parotid", "brainstem", False),
        ("gland", "tumour", False),
    ],
)
def test_names_of_one_structure(name: str, other: str, same: bool) -> None:
    assert (structure_words(name) == structure_words(other)) == same


def test_clean_up_and_codes_know_the_same_sides() -> None:
    names = ("background", "Parotis li", "Parotis re", "tumour_left_right")
    mask = np.zeros((1, 1, 20), np.uint8)
    mask[0, 0, [0, 1, 3]], mask[0, 0, [5, 6, 8]], mask[0, 0, [10, 11, 13]] = 1, 2, 3
    cleaned = keep_largest_components(mask, names)
    assert [int((cleaned == value).sum()) for value in (1, 2, 3)] == [2, 2, 3]
    left, right, both = structures_of(names)
    assert (left.name, left.side.meaning, right.name, right.side.meaning) == ("Parotid_L", "Left", "Parotid_R", "Right")
    assert (both.name, both.side) == ("tumour_left_right", None)
