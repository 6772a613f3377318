"""A user's choice of structures, names and colours in the files that carry them."""

from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from parotid_seg.dicom.write.seg import write_seg
from parotid_seg.errors import OptionError
from parotid_seg.scan.codes import Rois, structures_of
from tests.dicom.for_writers import LABELS, MODEL, drawn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # highdicom's, over the series made here
RIGHT = Rois(("parotid_right",), {"parotid_right": "PG re"}, {"parotid_right": (1, 2, 3)})


def test_an_rtstruct_has_the_chosen_structure_with_its_name_and_colour(
    series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, rois=RIGHT)
    found = drawn(tmp_path / "rt.dcm", series)
    assert list(found) == ["PG re"]
    assert np.array_equal(found["PG re"], mask == 2)
    written = pydicom.dcmread(tmp_path / "rt.dcm")
    assert list(written.ROIContourSequence[0].ROIDisplayColor) == [1, 2, 3]


def test_names_in_use_are_numbered_where_structures_are_appended(
    series: Series, mask: NDArray[np.uint8], written: Path, tmp_path: Path
) -> None:
    as_left = Rois(names={"parotid_right": "Parotid_L"}, only=("parotid_right",))
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=written, rois=as_left)
    found = drawn(tmp_path / "rt.dcm", series)
    assert list(found) == ["Parotid_L", "Parotid_R", "Parotid_L_1"]
    assert np.array_equal(found["Parotid_L_1"], mask == 2)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_segments_are_numbered_from_1(
    series: Series, mask: NDArray[np.uint8], kind: Literal["binary", "labelmap"], tmp_path: Path
) -> None:
    write_seg(series, mask, LABELS, tmp_path / "seg.dcm", model=MODEL, kind=kind, rois=RIGHT)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    named = [(each.SegmentNumber, each.SegmentLabel) for each in written.SegmentSequence if each.SegmentNumber]
    assert named == [(1, "PG re")]
    assert np.count_nonzero(written.pixel_array == 1) == np.count_nonzero(mask == 2)
    assert written.pixel_array.max() == 1


def test_other_structures_keep_their_values_names_and_colours() -> None:
    left, right = structures_of(LABELS, rois=Rois(names={"parotid_left": "Ohr links"}))
    usual = structures_of(LABELS)
    assert (left.name, left.value, left.colour) == ("Ohr links", 1, usual[0].colour)
    assert right == usual[1]
    assert structures_of(LABELS, rois=Rois(only=("parotid_right",))) == usual[1:]


@pytest.mark.parametrize(
    ("rois", "text"),
    [
        (Rois(("chin",)), "--only: found 'chin', expected one of: parotid_left, parotid_right"),
        (Rois(names={"chin": "a"}), "--roi-name: found 'chin', expected one of: parotid_left, parotid_right"),
        (Rois(colours={"chin": (1, 2, 3)}), "--roi-colour: found 'chin', expected one of: parotid_left, parotid_right"),
        (
            Rois(names={"parotid_left": "a", "parotid_right": "A "}),
            "--roi-name: found the name 'A ' for several structures, expected one for each",
        ),
        (
            Rois(names={"parotid_left": "P", "parotid_right": "P"}),
            "--roi-name: found the name 'P' for several structures, expected one for each",
        ),
        (
            Rois(names={"parotid_left": "Parotid_R", "parotid_right": "Parotid_L"}),
            "--roi-name: found the name 'Parotid_R', which says right, for parotid_left; expected left, or no side",
        ),
        (
            Rois(names={"parotid_right": "PG links"}, only=("parotid_right",)),
            "--roi-name: found the name 'PG links', which says left, for parotid_right; expected right, or no side",
        ),
    ],
)
def test_a_choice_that_the_model_cannot_fulfil(rois: Rois, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        rois.check(LABELS)
    assert str(caught.value) == text
