"""Which series of a study become a scan's channels, and what is refused by name."""

import re
from pathlib import Path

import pytest

from parotid_seg.dicom.mr.studies import kinds_taken, scans_of
from parotid_seg.dicom.read.find import Found
from parotid_seg.dicom.read.series import Series, series_key
from parotid_seg.dicom.read.series_volume import find_series
from tests.dicom.reading import files_in
from tests.dicom_series import ct_voxels, lay, uid, write_series
from tests.mr_studies import DIFFUSION, FLAIR, SHAPE, STIR, T1, T2, write_mr, write_study

pytestmark = pytest.mark.slow


MR = ("T1", "T2", "STIR")
GD = {"ContrastBolusAgent": "Gadobutrol"}
CORONAL = lay((4.0, 3.0, 3.0), row=(1, 0, 0), column=(0, 0, -1))


def found_in(folder: Path) -> tuple[Series, ...]:
    return find_series(files_in(folder)).series


def numbers(scans: list[tuple[Series, ...]]) -> list[list[int | None]]:
    return [[series.number for series in scan] for scan in scans]


def chosen(folder: Path, channels: tuple[str, ...] = MR) -> tuple[list[list[int | None]], list[str]]:
    """Numbers of the series of the study's scan, and of what is left out with the reason."""
    scans, errors, left_out = scans_of(found_in(folder), channels)
    assert not errors
    return numbers(scans), sorted(each.reason for each in left_out)


def refused(folder: Path, channels: tuple[str, ...] = MR) -> str:
    """Why a study is none; series by their titles' numbers only."""
    scans, (error,), left_out = scans_of(found_in(folder), channels)
    assert not scans
    assert not left_out
    return re.sub(r" \([0-9a-f]{8}[a-z0-9-]*\)", "", str(error))


def study_in(folder: Path) -> str:
    return f"{folder}: study {series_key(uid('study', 'study'))}"


def test_channels_come_in_the_models_order_whatever_the_studys(tmp_path: Path) -> None:
    write_study(tmp_path)
    assert chosen(tmp_path) == ([[3, 4, 5]], [])
    assert chosen(tmp_path, ("stir", "T1w", "T2-weighted")) == ([[5, 3, 4]], [])
    scans, _, _ = scans_of(reversed(found_in(tmp_path)), MR)
    assert numbers(scans) == [[3, 4, 5]]


def test_other_sequences_are_left_out_with_a_word(tmp_path: Path) -> None:
    write_study(tmp_path)
    for number, (name, sequence) in enumerate({"dwi": DIFFUSION, "flair": FLAIR, "gd": T1 | GD}.items(), start=6):
        write_mr(tmp_path / name, sequence, number=number)
    scans, reasons = chosen(tmp_path)
    assert scans == [[3, 4, 5]]
    told = [f"{kind}, the model takes T1, T2, STIR" for kind in ("diffusion", "FLAIR", "T1C")]
    assert [re.sub(r"^MR series \d \([0-9a-f]{8}\): ", "", reason) for reason in reasons] == told
    assert chosen(tmp_path, ("T1 Gd", "FLAIR"))[0] == [[8, 7]]


def test_a_sequence_that_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    named = {"PatientName": "Secret^Name", "SeriesDescription": "Secret^Name"}
    write_mr(tmp_path / "a", T1 | named, number=3)
    write_mr(tmp_path / "b", DIFFUSION | named, number=7)
    assert refused(tmp_path) == (
        f"{study_in(tmp_path)}: no T2 and no STIR series, expected T1, T2, STIR; "
        "found T1: MR series 3, diffusion: MR series 7"
    )


def test_t1_with_contrast_agent_is_no_t1(tmp_path: Path) -> None:
    write_study(tmp_path)
    for path in (tmp_path / "t1").iterdir():
        path.unlink()
    write_mr(tmp_path / "t1", T1 | GD, number=3)
    assert "no T1 series, expected T1, T2, STIR; found T1C: MR series 3, " in refused(tmp_path)


def test_two_that_could_be_one_channel_are_not_guessed_at(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_mr(tmp_path / "again", T1, number=9)
    assert refused(tmp_path) == (
        f"{study_in(tmp_path)}: 2 series could be T1, expected one: MR series 9 and MR series 3"
    )


def test_of_several_the_one_in_the_others_plane_is_taken(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_mr(tmp_path / "coronal", T2, CORONAL, shape=(30, 24, 28), number=9)
    scans, (reason,) = chosen(tmp_path)
    assert scans == [[3, 4, 5]]
    assert re.sub(r" \([0-9a-f]{8}\)", "", reason) == (
        "MR series 9: T2, coronal, over 120 mm; taken was MR series 4, axial, over 40 mm"
    )


def test_a_study_of_coronal_slices_but_for_one(tmp_path: Path) -> None:
    for number, (name, sequence) in enumerate({"t1": T1, "t2": T2, "stir": STIR}.items(), start=3):
        write_mr(tmp_path / name, sequence, CORONAL, number=number)
    write_mr(tmp_path / "axial", T1, number=9)
    assert chosen(tmp_path)[0] == [[3, 4, 5]]


def test_a_channel_without_a_series_in_the_common_plane_takes_what_there_is(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1, number=3)
    write_mr(tmp_path / "t2", T2, CORONAL, number=4)
    write_mr(tmp_path / "stir", STIR, CORONAL, number=5)
    write_mr(tmp_path / "stir2", STIR, number=6)
    assert chosen(tmp_path, ("T1", "T2", "STIR"))[0] == [[3, 4, 6]]


def test_of_several_in_one_plane_the_one_that_reaches_much_farther(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_mr(tmp_path / "short", T1, shape=(6, 24, 28), number=9)
    assert chosen(tmp_path)[0] == [[3, 4, 5]]
    write_mr(tmp_path / "nearly", T1, shape=(9, 24, 28), number=10)
    assert "2 series could be T1, expected one: MR series 10 and MR series 3" in refused(tmp_path)


def test_two_frames_of_reference(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1, number=3)
    write_mr(tmp_path / "t2", T2, number=4)
    write_mr(tmp_path / "stir", STIR, number=5, frame="moved")
    assert refused(tmp_path) == (
        f"{study_in(tmp_path)}: found 2 frames of reference (T1: MR series 3, T2: MR series 4; STIR: MR series 5), "
        "expected one for all channels"
    )


def test_no_frame_of_reference(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1, number=3)
    write_mr(tmp_path / "t2", T2, number=4, frame="")
    write_mr(tmp_path / "stir", STIR, number=5, frame="")
    assert refused(tmp_path) == (
        f"{study_in(tmp_path)}: no frame of reference in T2: MR series 4, STIR: MR series 5; "
        "expected one for all channels"
    )


def test_another_frame_of_reference_of_what_is_not_used_is_no_matter(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_mr(tmp_path / "dwi", DIFFUSION, number=9, frame="moved")
    assert chosen(tmp_path)[0] == [[3, 4, 5]]


def test_each_study_by_itself(tmp_path: Path) -> None:
    write_study(tmp_path / "a", study="a")
    write_study(tmp_path / "b", study="b", shape=(SHAPE[0] + 1, *SHAPE[1:]))
    write_mr(tmp_path / "c" / "t1", T1, study="c")
    write_mr(tmp_path / "d" / "t2", T2, study="d")
    scans, errors, _ = scans_of(found_in(tmp_path), MR)
    assert numbers(scans) == [[3, 4, 5], [3, 4, 5]]
    assert [str(each).split(": ")[0] for each in errors] == [str(tmp_path / "c" / "t1"), str(tmp_path / "d" / "t2")]


def test_series_of_two_patients_are_no_scan_whatever_their_uids(tmp_path: Path) -> None:
    for patient, name, sequence, number in (("111", "t1", T1, 3), ("222", "t2", T2, 4)):
        write_mr(tmp_path / name, sequence | {"PatientID": patient}, number=number)
    scans, errors, _ = scans_of(found_in(tmp_path), ("T1", "T2"))
    assert not scans
    assert [re.findall("no T[12] series", error.reason) for error in errors] == [["no T2 series"], ["no T1 series"]]


def test_the_same_images_twice(tmp_path: Path) -> None:
    write_study(tmp_path / "a")
    first = found_in(tmp_path / "a")
    for path in (tmp_path / "a").rglob("*.dcm"):
        copy = tmp_path / "b" / path.relative_to(tmp_path / "a")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    scans, errors, left_out = scans_of([*first, *found_in(tmp_path / "b")], MR)
    assert not errors
    assert scans == [tuple(first[number] for number in (1, 2, 0))]
    assert {each.reason.split(": ")[1] for each in left_out} == {"copies of images that are used"}


def test_a_model_of_one_sequence_takes_every_series_of_it(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_mr(tmp_path / "again", T1, number=9)
    scans, reasons = chosen(tmp_path, ("T1",))
    assert sorted(scans) == [[3], [9]]
    assert [reason.split(": ")[1] for reason in reasons] == ["T2, the model takes T1", "STIR, the model takes T1"]
    assert "no PD series, expected PD; found " in refused(tmp_path, ("PD",))


def test_a_model_of_any_sequence_takes_all(tmp_path: Path) -> None:
    write_study(tmp_path)
    assert len(chosen(tmp_path, ("MRI",))[0]) == 3


@pytest.mark.parametrize("channels", [("T1", "perfusion"), ("T1", "MR"), ("image",)])
def test_a_channel_that_no_header_tells(tmp_path: Path, channels: tuple[str, ...]) -> None:
    write_study(tmp_path)
    told = refused(tmp_path, channels)
    assert f"the model's channel {channels[-1]} names no MR sequence that DICOM headers tell" in told


def test_modalities(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels())
    write_study(tmp_path / "mr")
    files = files_in(tmp_path)

    def found(*channels: str) -> Found:
        return find_series(files, kinds_taken(channels))

    assert [each.modality for each in found("CT").series] == ["CT"]
    assert [each.reason.split(": ")[1] for each in found("CT").left_out] == ["the model takes CT"] * 3
    assert len(found(*MR).series) == 3
    assert len(found("CT", "T1").series) == 4
