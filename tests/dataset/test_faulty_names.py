"""Names of structures in a character set that is not declared, and names that are nearly ours."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from parotid_seg.dataset.build import build
from parotid_seg.dataset.dataset_options import DataSetOptions
from tests.dataset.studies import GLANDS, LEFT_BOX, RIGHT_BOX, Made, change_file, rows, write_structures, write_study
from tests.dataset.test_faulty_contours import OTHER_BOX

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # pydicom's, over what is wrong here on purpose


def named(dicom: Path, left: bytes, right: bytes, declared: str | None) -> None:
    """Rename the glands, byte by byte, and declare a character set."""
    path = dicom / "contours.dcm"

    def declare(dataset: Dataset) -> None:
        if declared is None:
            del dataset.SpecificCharacterSet
        else:
            dataset.SpecificCharacterSet = declared

    change_file(path, declare)
    content = path.read_bytes()
    for placeholder, name in ((b"LEFTLEFTLEFTLEFTLEFTLEFT", left), (b"RIGHTRIGHTRIGHTRIGHTRIGHT ", right)):
        assert content.count(placeholder) == 1
        content = content.replace(placeholder, name.ljust(len(placeholder)))
    path.write_bytes(content)


PLACEHOLDERS = [("LEFT" * 6, LEFT_BOX), ("RIGHT" * 5, RIGHT_BOX)]


@pytest.mark.parametrize(
    ("left", "right", "codec", "declared"),
    [
        ("Parótida Izq", "Parótida der", "utf-8", None),
        ("Parótida Izq", "Parótida der", "utf-8", "ISO_IR 100"),
        ("Ohrspeicheldrüse li", "Ohrspeicheldrüse re", "utf-8", "ISO_IR 101"),
        ("Ohrspeicheldrüse li", "Ohrspeicheldrüse re", "utf-8", "ISO_IR 192"),
        ("Ohrspeicheldrüse li", "Ohrspeicheldrüse re", "latin-1", "ISO_IR 100"),
        ("Ohrspeicheldrüse li", "Ohrspeicheldrüse re", "latin-1", None),
        ("Glandula parotis li.", "Glandula parotis re.", "ascii", None),
        ("Parotide G", "Parotide D", "ascii", "ISO_IR 100"),
    ],
)
def test_names_are_read_whatever_character_set_is_declared(
    dicom: Path, data: Path, left: str, right: str, codec: str, declared: str | None
) -> None:
    images = write_study(dicom / "a", rois=None)
    write_structures(dicom / "contours.dcm", images, PLACEHOLDERS)
    named(dicom, left.encode(codec), right.encode(codec), declared)
    built = build([dicom], data)
    assert (built.labelled, built.exit_status) == (1, 0)
    (row,) = rows(data, "cases.csv")
    undeclared = codec == "utf-8" and declared != "ISO_IR 192"
    assert row["notes"].count("its name is in UTF-8") == (2 if undeclared else 0)


@pytest.mark.parametrize(
    ("name", "codec", "declared", "means"),
    [
        ("Ohrspeicheldrüse li", "latin-1", "ISO_IR 192", "in another character set its name means parotid_left"),
        ("Parótida izq", "utf-8", "GB18030", "in another character set its name means parotid_left"),
        ("ParÃ³tida izq", "utf-8", "ISO_IR 192", "in another character set its name means parotid_left"),
        ("Par?tida izq", "ascii", None, "looks like parotid_left"),
        ("Paroitd_L", "ascii", None, "looks like parotid_left"),
        ("Par_L", "ascii", None, "looks like parotid_left"),
        ("左耳下腺", "shift_jis", None, "means none of the labels"),
        ("腮腺 L", "utf-8", "ISO_IR 192", "means none of the labels"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_names_that_are_nearly_ours_are_shown(
    dicom: Path, data: Path, name: str, codec: str, declared: str | None, means: str, partial: bool
) -> None:
    images = write_study(dicom / "a", rois=None)
    write_structures(dicom / "contours.dcm", images, PLACEHOLDERS)
    named(dicom, name.encode(codec), b"Parotid_R", declared)
    said: list[str] = []
    built = build([dicom], data, DataSetOptions(partial=partial), say=said.append)
    assert (built.labelled, built.exit_status) == (int(partial), 3)
    (row,) = [row for row in rows(data) if row["kind"] == "ROI"]
    assert row["look_at_it"] == "yes"
    assert means in row["reason"]
    assert any(means in line for line in said)


def test_a_name_nearly_ours_beside_both_glands_is_shown_and_a_margin_is_not(
    study: Callable[..., Made], data: Path
) -> None:
    built, _, _, _ = study(
        lambda dataset: None, [*GLANDS, ("Paroitd_L", OTHER_BOX), ("Parotid_L_PRV", LEFT_BOX), ("Carotid_L", OTHER_BOX)]
    )
    assert (built.labelled, built.look_at, built.exit_status) == (1, 1, 3)
    assert [row["name"] for row in rows(data) if row["look_at_it"]] == ["Paroitd_L"]


def test_a_patients_name_in_another_character_set_is_not_told(dicom: Path, data: Path) -> None:
    images = write_study(dicom / "a", rois=None)
    write_structures(dicom / "contours.dcm", images, [*GLANDS, ("X" * 20, OTHER_BOX)])

    def rename(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "YYYYYYYY"

    change_file(dicom / "contours.dcm", rename)
    content = (dicom / "contours.dcm").read_bytes()
    content = content.replace(b"YYYYYYYY", "Müller ".encode()).replace(b"X" * 20, "Boost Müller".encode().ljust(20))
    (dicom / "contours.dcm").write_bytes(content)
    said: list[str] = []
    build([dicom], data, say=said.append)
    beside = data.with_name(f"{data.name}.private")
    for text in (*said, *(path.read_text() for path in beside.glob("*.*"))):
        assert "ller" not in text
    assert "(a name that tells who the patient is)" in [row["name"] for row in rows(data)]
