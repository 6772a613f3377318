"""Which scans are meant, and that no two masks get one name."""

from pathlib import Path

from parotid_seg.runtime.cases import find_scans, name_cases


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path.resolve()


def test_folders_are_searched_at_any_depth_and_each_scan_is_taken_once(tmp_path):
    deep = touch(tmp_path / "a" / "b" / "c" / "x.nii.gz")
    plain = touch(tmp_path / "y.nii")
    for other in (".hidden.nii.gz", "notes.txt", ".git/z.nii.gz"):
        touch(tmp_path / other)
    scans, errors = find_scans([tmp_path, plain, tmp_path / "a"])
    assert sorted(scans) == sorted([deep, plain])
    assert not errors


def test_results_are_no_scans(tmp_path):
    scan, mask = touch(tmp_path / "x.nii.gz"), touch(tmp_path / "masks" / "x.nii.gz")
    assert find_scans([tmp_path], ignore=[mask.parent])[0] == [scan]
    assert find_scans([tmp_path], ignore=[mask])[0] == [scan]


def test_what_holds_no_scan_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    text = touch(tmp_path / "notes.txt")
    good = touch(tmp_path / "x.nii")
    scans, errors = find_scans([tmp_path / "empty", tmp_path / "gone", text, good])
    assert scans == [good]
    words = ["no scan in this folder", "no such file or folder", "not a NIfTI file"]
    assert all(word in str(error) for word, error in zip(words, errors, strict=True))


def test_equal_names_are_told_apart():
    paths = [Path("/d/p1/ct.nii.gz"), Path("/d/p2/ct.nii.gz"), Path("/d/p2/other_0000.nii.gz"), Path("/e/p1/ct.nii")]
    names = [case.name for case in name_cases(paths, taken={})]
    assert names == ["d_p1_ct", "p2_ct", "other", "e_p1_ct"]


def test_same_folder_same_stem():
    names = [case.name for case in name_cases([Path("/d/ct.nii"), Path("/d/ct.nii.gz")], taken={})]
    assert len(set(names)) == 2


def test_names_in_use_stay_with_their_scans():
    taken = {"ct": Path("/d/p1/ct.nii.gz")}
    cases = name_cases([Path("/d/p2/ct.nii.gz"), Path("/d/p1/ct.nii.gz")], taken)
    assert {case.path: case.name for case in cases}[Path("/d/p1/ct.nii.gz")] == "ct"
    assert len({case.name for case in cases}) == 2
    assert [case.name for case in name_cases([Path("/d/p3/ct.nii.gz")], taken)] == ["ct-2"]
