"""What names of structures mean."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parotid_seg.dataset.dataset_options import LEFT, RIGHT
from parotid_seg.dataset.roi_names import LABEL_OF, RoiNames, parotid_meaning, read_names
from parotid_seg.errors import InputError
from parotid_seg.scan.labels import PAROTID_GLAND, SIDES


@pytest.mark.parametrize(
    "name",
    [
        *("Parotid_L", "PAROTID_L", "parotid_l", "Parotid L", "Parotid-L", "Parotid (L)", "L Parotid", "LParotid"),
        *(
            "PAROTID LT",
            "lt parotid",
            "Parotid Left",
            "left parotid gland",
            "LeftParotid",
            "Glnd_Parotid_L",
            "parotidL",
        ),
        *("lparotid", "PAROTIDLT", "parotis li", "Parotis li.", "Ohrspeicheldrüse links", "Parotid gauche"),
        *("Parotide G", "parotide sx", "Parótida izq", "Parótida E", "Glandula parotidea sinistra", " Parotid_L "),
    ],
)
def test_left(name: str) -> None:
    assert parotid_meaning(name).label == LEFT


@pytest.mark.parametrize(
    "name",
    [
        *("Parotid_R", "PAROTID RT", "rt parotid", "R Parotid", "Parotid Right", "RightParotid", "rparotid", "Parot_R"),
        *("parotis re", "Parotid droite", "Parotide D", "parotide dx", "Parótida der", "Ohrspeicheldruese rechts"),
    ],
)
def test_right(name: str) -> None:
    assert parotid_meaning(name).label == RIGHT


@pytest.mark.parametrize(
    ("name", "reason", "gland"),
    [
        ("Parotid_L_PRV", "more than gland and side", True),
        ("Parotid_L-PTV", "more than gland and side", True),
        ("Parotid_L_opt", "more", True),
        ("Parotid L avoid", "more", True),
        ("sub Parotid_L", "more", True),
        ("Parotid_L ring", "more", True),
        ("Parotid_Deep_L", "more than gland and side", True),
        ("Parotid_Superf_L", "more", True),
        ("ipsilateral parotid", "more than gland and side", True),
        ("Parot_L+5mm", "more than gland and side", True),
        ("Parotid_L~", "more than gland and side", True),
        ("zParotid_L", "more than gland and side", True),
        ("zparotid_l", "means none", True),
        ("parotid_l_1", "more than gland and side", True),
        ("Parotid D", "more than gland and side", True),
        ("Parotids", "both sides", True),
        ("Parotid_L_R", "both sides", True),
        ("Parotid bilat", "both sides", True),
        ("Parotid", "no side", True),
        ("Glnd_Submand_L", "means none", False),
        ("Mandible", "means none", False),
        ("", "means none", False),
        ("L", "means none", False),
        ("腮腺", "means none", False),
    ],
)
def test_something_else(name: str, reason: str, gland: bool) -> None:
    found = parotid_meaning(name)
    assert not found.label
    assert reason in found.reason
    assert found.gland == gland


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *(
            (name, LEFT)
            for name in ("Paroitd_L", "lparoitd", "Parotid_Lnks", "Par?tida Izq", "Par_tida izq", "Par0tid_L")
        ),
        *(
            (name, LEFT)
            for name in ("Par_L", "Prtd L", "PAR OTID LT", "Ohrspeicheldr?se links", "Ohrsp. li", "Paroitde G")
        ),
        *((name, LEFT) for name in ("Parotid_Leftt", "parotide gauch", "Ohrspeicheldr\N{REPLACEMENT CHARACTER}se li")),
        *(
            (name, RIGHT)
            for name in ("Parotd Rt", "RParotd", "Parrotid_R", "Parotis rehcts", "Parotid_rigth", "Paro R")
        ),
    ],
)
def test_nearly_ours(name: str, label: str) -> None:
    found = RoiNames().meaning(name)
    assert (found.label, found.near, found.gland) == ("", True, True)
    assert f"its name looks like {label}" in found.reason


@pytest.mark.parametrize(
    "name",
    [
        *("Carotid_L", "A_Carotid_R", "Carotis li", "Karotis re", "Ohr links", "Prostata re", "Parietal_L", "Part_L"),
        *(
            "Parathyroid_L",
            "Cochlea_L",
            "Pterygoid_R",
            "Submandibular_L",
            "Glnd_Lacrimal_R",
            "SpinalCord",
            "GTVn_L",
            "L",
        ),
    ],
)
def test_not_even_nearly(name: str) -> None:
    found = RoiNames().meaning(name)
    assert (found.label, found.near, found.gland) == ("", False, False)


@pytest.mark.parametrize("name", ["Paroitd", "Paroitd_L_PRV", "腮腺 L", "右耳下腺", "Околоушная левая", "zParotid_L"])
def test_names_that_speak_of_the_gland_and_no_more(name: str) -> None:
    found = RoiNames().meaning(name)
    assert (found.label, found.near, found.gland) == ("", False, True)


def test_a_name_that_is_one_in_another_character_set() -> None:
    found = RoiNames().meaning("Par贸tida izq", ("ParÃ³tida izq", "Parótida izq"))
    assert (found.label, found.near) == ("", True)
    assert "in another character set its name means parotid_left" in found.reason


@given(
    st.sampled_from(sorted(PAROTID_GLAND)),
    st.sampled_from([(side, word) for side, words in SIDES.items() for word in sorted(words)]),
    st.sampled_from([" ", "_", "-", "."]),
    st.sampled_from([str.lower, str.upper, str.title]),
    st.booleans(),
)
def test_every_gland_with_every_side(gland: str, side: str, separator: str, case: Any, turned: bool) -> None:
    words = [gland, side[1]][:: -1 if turned else 1]
    assert parotid_meaning(case(separator.join(words))).label == LABEL_OF[side[0]]


@given(st.sampled_from(["Parotid_L", "parotis re"]), st.text(min_size=1, max_size=6))
def test_one_word_more_is_never_the_gland(name: str, more: str) -> None:
    found = parotid_meaning(f"{name} {more}")
    assert found.label in ("", parotid_meaning(name).label)
    if any(sign.isdecimal() or sign in "+~^!" for sign in more):
        assert not found.label


def test_own_names_go_over_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "names.toml"
    path.write_text('parotid_left = ["Ohr li", "PAR_L"]\ntumour = ["GTV"]\n')
    names = RoiNames((LEFT, RIGHT, "tumour"), read_names(path))
    assert names.meaning("par_l ").label == LEFT
    assert names.meaning("par_l").own
    assert names.meaning("gtv").label == "tumour"
    assert names.meaning("Parotid_L").label == LEFT
    assert not names.meaning("Parotid_L").own
    assert RoiNames((RIGHT,)).meaning("Parotid_L").reason == "parotid_left is not among the labels"


@pytest.mark.parametrize(
    ("labels", "own", "words"),
    [
        ((), {}, "--labels: found none"),
        ((LEFT, LEFT), {}, "expected different names"),
        (("background",), {}, "without background"),
        (("../x",), {"../x": ("a",)}, "letters, digits"),
        (("ignore", LEFT), {"ignore": ("a",)}, "found ignore before parotid_left, expected it last"),
        (("tumour",), {}, "no name is known for 'tumour'"),
        ((LEFT,), {RIGHT: ("a",)}, "found the label 'parotid_right'"),
        ((LEFT, RIGHT), {LEFT: ("Gland",), RIGHT: ("gland",)}, "'gland' under parotid_left and parotid_right"),
    ],
)
def test_wrong_labels(labels: tuple[str, ...], own: dict[str, tuple[str]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RoiNames(labels, own)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = [", "not TOML"),
        ('a = "b"', "expected a list"),
        ("a = []", "expected a list"),
        ("a = [1]", "expected a list"),
    ],
)
def test_wrong_table(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "names.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_names(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_names(tmp_path / "none.toml")
