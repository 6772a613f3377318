"""Which scans are meant, and that no two masks get one name."""

import dataclasses
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from parotid_seg.dicom.read.series import Series, SeriesFacts
from parotid_seg.runtime.pipeline.discovery import find_scans, name_cases
from parotid_seg.runtime.pipeline.sources import hash_source
from tests.dicom_series import ct_voxels, write_series
from tests.small_files import touch

CT = ("CT",)
MR = ("T1", "T2", "STIR")


def test_folders_are_searched_at_any_depth_and_each_scan_is_taken_once(tmp_path: Path) -> None:
    deep = touch(tmp_path / "a" / "b" / "c" / "x.nii.gz")
    plain = touch(tmp_path / "y.nii")
    for other in (".hidden.nii.gz", "notes.txt", ".git/z.nii.gz"):
        touch(tmp_path / other)
    scans, errors = find_scans([tmp_path, plain, tmp_path / "a"], CT)
    assert sorted(scans) == sorted([(deep,), (plain,)])
    assert not errors


def test_results_are_no_scans(tmp_path: Path) -> None:
    scan, mask = touch(tmp_path / "x.nii.gz"), touch(tmp_path / "masks" / "x.nii.gz")
    assert find_scans([tmp_path], CT, ignore=[mask.parent])[0] == [(scan,)]
    assert find_scans([tmp_path], CT, ignore=[mask])[0] == [(scan,)]


def test_what_holds_no_scan_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = touch(tmp_path / "notes.txt")
    good = touch(tmp_path / "x.nii")
    scans, errors = find_scans([tmp_path / "empty", tmp_path / "gone", text, good], CT)
    assert scans == [(good,)]
    words = ["no scan in this folder", "no such file or folder", "neither NIfTI nor DICOM; expected"]
    assert all(word in str(error) for word, error in zip(words, errors, strict=True))


def test_equal_names_are_told_apart() -> None:
    paths = [Path("/d/p1/ct.nii.gz"), Path("/d/p2/ct.nii.gz"), Path("/d/p2/other_0000.nii.gz"), Path("/e/p1/ct.nii")]
    names = [case.name for case in name_cases([(path,) for path in paths], taken={})]
    assert names == ["d_p1_ct", "p2_ct", "other", "e_p1_ct"]


def volume(series_uid: str, number: int | None, part: str = "") -> Series:
    facts = SeriesFacts("CT", number)
    return Series((), 1, 1, np.eye(4), "CT", facts, series_uid, "1", "1", number, Path("/a/b/4dct"), part)


def test_volumes_of_a_series_are_named_after_what_distinguishes_them() -> None:
    """Not by a running number, which would be taken for that of the phase."""
    phases = [(volume("1.2", 3, f"time-{number}"),) for number in (1, 2, 10)]
    assert [case.name for case in name_cases(phases, {})] == ["4dct_3_time-1", "4dct_3_time-2", "4dct_3_time-10"]


def test_series_of_one_folder_and_number_are_named_after_their_uids() -> None:
    """The folders above are the same, so that they would not distinguish them."""
    scans = [(volume(uid, 3),) for uid in ("1.2", "1.3")]
    names = [case.name for case in name_cases(scans, {})]
    assert names == [f"4dct_3_{scan.key}" for (scan,) in scans]
    assert [case.name for case in name_cases(scans[::-1], {})] == names[::-1]


def test_a_scan_keeps_its_name_behind_another_link(tmp_path: Path) -> None:
    scan, other = touch(tmp_path / "data" / "ct.nii.gz"), touch(tmp_path / "other" / "ct.nii.gz")
    link = tmp_path / "link"
    link.symlink_to("data")
    for earlier, now in ((scan, link / scan.name), (link / scan.name, scan)):
        names = [case.name for case in name_cases([(now,), (other,)], taken={"ct": earlier})]
        assert names == ["ct", "other_ct"]


def test_same_folder_same_stem() -> None:
    names = [case.name for case in name_cases([(Path("/d/ct.nii"),), (Path("/d/ct.nii.gz"),)], taken={})]
    assert len(set(names)) == 2


@pytest.mark.parametrize("file", ["_0000.nii.gz", ".nii.gz", "..nii.gz", "...nii", "._0000.nii.gz"])
def test_a_file_of_an_ending_only_is_named_after_all_of_it(file: str) -> None:
    """A mask of a case without a name would be beside the output folder."""
    (case,) = name_cases([(Path("/d") / file,)], taken={})
    assert case.name == file


def test_a_series_in_the_root_folder_has_a_name(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels((9, 24, 24)))
    ((series,),), _ = find_scans([tmp_path], CT)
    assert not isinstance(series, Path)
    (case,) = name_cases([(dataclasses.replace(series, folder=Path("/")),)], taken={})
    assert case.name == series.key


def test_a_series_beside_which_a_damaged_file_appears_is_done_again(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels((9, 24, 24)))
    hashes = []
    for content in (b"", bytes(128) + b"DICM" + b"x" * 99, b""):
        (tmp_path / "ct" / "damaged").write_bytes(content)
        ((series,),), _ = find_scans([tmp_path], CT)
        hashes.append(hash_source(series))
    assert hashes[0] == hashes[2] != hashes[1]


def test_names_are_told_apart_where_file_systems_would_not() -> None:
    """On a network folder that ignores case the second mask would replace the first."""
    paths = [Path(f"/d/{name}.nii.gz") for name in ("PT", "pt", "\u00e9", "e\u0301", "a/ct", "A/ct")]
    names = [case.name for case in name_cases([(path,) for path in paths], taken={})]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(paths), names
    (case,) = name_cases([(Path("/e/ct.nii.gz"),)], taken={"CT": Path("/d/CT.nii.gz")})
    assert case.name == "ct-2"


def test_names_in_use_that_differ_in_case_only_stay() -> None:
    taken = {"PT": Path("/d/PT.nii.gz"), "pt": Path("/d/pt.nii.gz")}
    cases = name_cases([(path,) for path in taken.values()], taken)
    assert {case.name: case.scan[0] for case in cases} == taken


def test_names_in_use_stay_with_their_scans() -> None:
    taken = {"ct": Path("/d/p1/ct.nii.gz")}
    cases = name_cases([(Path("/d/p2/ct.nii.gz"),), (Path("/d/p1/ct.nii.gz"),)], taken)
    assert {case.scan[0]: case.name for case in cases}[Path("/d/p1/ct.nii.gz")] == "ct"
    assert len({case.name for case in cases}) == 2
    assert [case.name for case in name_cases([(Path("/d/p3/ct.nii.gz"),)], taken)] == ["ct-2"]


def test_the_channels_of_a_case_are_one_scan_in_their_order(tmp_path: Path) -> None:
    a = tuple(touch(tmp_path / f"a_000{channel}.nii.gz") for channel in range(3))
    b = tuple(touch(tmp_path / "deep" / f"b_000{channel}.nii{'.gz' if channel else ''}") for channel in range(3))
    assert find_scans([tmp_path], MR) == ([a, b], [])
    assert find_scans([a[2], a[0], tmp_path / "deep"], MR) == ([a, b], []), "any channel's file means its case"
    assert [case.name for case in name_cases([a, b], taken={})] == ["a", "b"]


def test_a_missing_channel_stays_listed_for_the_case_to_fail(tmp_path: Path) -> None:
    here = touch(tmp_path / "a_0001.nii.gz")
    ((first, second, third),), errors = find_scans([tmp_path], MR)
    assert (first.name, second, third.name) == ("a_0000.nii.gz", here, "a_0002.nii.gz")
    assert not errors


@pytest.mark.parametrize(
    ("name", "channels", "words"),
    [
        ("a_0003.nii.gz", MR, "one more sequence of case a, but the model takes 3 channels (T1, T2, STIR)"),
        ("plain.nii.gz", MR, "the model takes 3 channels (T1, T2, STIR), expected files CASE_0000 to CASE_0002"),
    ],
)
def test_files_that_the_model_does_not_take_are_named(
    tmp_path: Path, name: str, channels: tuple[str, str, str], words: str
) -> None:
    case = tuple(touch(tmp_path / f"a_000{channel}.nii.gz") for channel in range(len(channels)))
    other = touch(tmp_path / name)
    scans, (error,) = find_scans([tmp_path], channels)
    assert scans == [case]
    assert str(error).startswith(str(other))
    assert words in str(error)


def test_numbered_scans_of_one_channel(tmp_path: Path) -> None:
    scans = [(touch(tmp_path / f"p_000{number}.nii.gz"),) for number in range(3)]
    assert find_scans([tmp_path], CT) == (scans, [])
    assert [case.name for case in name_cases(scans, taken={})] == ["p", "p_0001", "p_0002"]


def test_files_of_a_series_named_one_by_one_are_its_slices(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels((9, 24, 24)))
    text = touch(tmp_path / "notes.txt")
    scans, errors = find_scans([*paths, text, Path("x" * 300)], CT)
    ((series,),) = scans
    assert len(series.slices) == 9
    assert [str(error).split(": ", 1)[1][:30] for error in errors] == [
        "no such file or folder",
        "neither NIfTI nor DICOM; expec",
    ]
