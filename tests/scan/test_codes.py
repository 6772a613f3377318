"""Names and codes of structures."""

import pytest
from pydicom.sr.codedict import codes

from parotid_seg.scan.codes import ANATOMICAL_STRUCTURE, LEARNING, LEFT, MODIFYING, ORGAN, ORGANS, RIGHT, structures_of
from tests.dicom.for_writers import LABELS, triple


def test_codes_are_those_of_the_standard() -> None:
    known = {triple(getattr(codes.SCT, name)) for name in codes.SCT.dir()}
    known |= {triple(getattr(codes.DCM, name)) for name in ("ArtificialIntelligence", "ModifyingEquipment")}
    assert {code for _, code in ORGANS.values()} <= known
    assert {ANATOMICAL_STRUCTURE, ORGAN, LEFT, RIGHT, LEARNING, MODIFYING} <= known


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("b", "LeftParotid", "RightParotid"), ["Parotid_L", "Parotid_R"]),
        (("b", "left parotid gland", "parotid_left"), ["Parotid_L", "Parotid_L_1"]),
        (("b", "SpinalCord", "tumour"), ["SpinalCord", "tumour"]),
        (("b", "a\\b\nc\x00", "\u202e"), ["a_b_c_", "_"]),
        (("b", "x" * 80, "X" * 80), ["x" * 64, "X" * 59 + "_1"]),
        (("b", "parotid_left_right", "parotids"), ["parotid_left_right", "parotids"]),
        (("b", "", " "), ["Structure_1", "Structure_2"]),
    ],
)
def test_names(labels: tuple[str, str, str], names: list[str]) -> None:
    assert [each.name for each in structures_of(labels)] == names


def test_names_in_use_are_told_apart() -> None:
    found = structures_of(LABELS, taken=["PAROTID_L ", "parotid_l_1", "other"])
    assert [each.name for each in found] == ["Parotid_L_2", "Parotid_R"]
