"""Every file below a folder, once: links are followed, loops and doubles are noticed, nothing is lost in silence."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.scan.search import search
from tests.small_files import touch


def link(path: Path, target: Path | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def found(*places: Path, ignore: list[Path] | tuple[Any, ...] = ()) -> tuple[list[Path], dict[Path, str]]:
    """Files, and reasons by path, of what is left out; refused ones have a mark."""
    result = search(places, ignore)
    assert len(result.files) == len(set(result.files))
    told = {each.path: each.reason + " (refused)" * each.refused for each in result.left_out}
    return sorted(result.files), told


def test_links_to_files_and_folders_are_followed_also_out_of_the_folder(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "p1" / "a.dcm")
    touch(tmp_path / "store" / "b.nii")
    cohort = tmp_path / "cohort"
    link(cohort / "p1", tmp_path / "store" / "p1")
    link(cohort / "p2.nii", "../store/b.nii")
    assert found(cohort) == ([cohort / "p1" / "a.dcm", cohort / "p2.nii"], {})


def test_links_in_linked_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "far" / "a")
    link(tmp_path / "near" / "far", tmp_path / "far")
    link(tmp_path / "cohort" / "near", tmp_path / "near")
    assert found(tmp_path / "cohort") == ([tmp_path / "cohort" / "near" / "far" / "a"], {})


@pytest.mark.parametrize("target", [".", "..", "../..", "absolute"])
def test_a_link_to_a_folder_that_it_lies_in_is_a_loop(tmp_path: Path, target: str) -> None:
    file = touch(tmp_path / "cohort" / "p1" / "a")
    touch(tmp_path / "beside")
    loop = link(tmp_path / "cohort" / "p1" / "loop", tmp_path / "cohort" if target == "absolute" else target)
    assert found(tmp_path / "cohort") == ([file], {loop: "a link to a folder that it lies in; it is not followed"})


def test_links_that_lead_round_between_two_folders_end(tmp_path: Path) -> None:
    a, b = touch(tmp_path / "a" / "file"), touch(tmp_path / "b" / "file")
    link(tmp_path / "a" / "to b", tmp_path / "b")
    link(tmp_path / "b" / "to a", tmp_path / "a")
    files, told = found(tmp_path / "a")
    assert files == [a, tmp_path / "a" / "to b" / "file"]
    assert told == {tmp_path / "a" / "to b" / "to a": f"a link to {tmp_path / 'a'}, which is searched"}
    assert b.exists()


def test_what_has_a_path_of_its_own_is_found_by_that_and_links_to_it_are_told(tmp_path: Path) -> None:
    file = touch(tmp_path / "z" / "file")
    link(tmp_path / "a folder", tmp_path / "z")
    link(tmp_path / "a file", file)
    assert found(tmp_path) == (
        [file],
        {
            tmp_path / "a folder": f"a link to {tmp_path / 'z'}, which is searched",
            tmp_path / "a file": f"the same file as {file}",
        },
    )


def test_two_links_to_one_place_count_once(tmp_path: Path) -> None:
    for name in ("1", "2"):
        touch(tmp_path / "store" / name)
    cohort = tmp_path / "cohort"
    link(cohort / "x", tmp_path / "store")
    link(cohort / "y", tmp_path / "store")
    files, told = found(cohort)
    assert files == [cohort / "x" / "1", cohort / "x" / "2"]
    assert told == {cohort / "y": f"a link to {cohort / 'x'}, which is searched"}


def test_hard_links_are_one_file(tmp_path: Path) -> None:
    for name in ("1", "2"):
        touch(tmp_path / "a" / name)
        (tmp_path / "b").mkdir(exist_ok=True)
        os.link(tmp_path / "a" / name, tmp_path / "b" / name)
    result = search([tmp_path])
    assert result.files == [tmp_path / "a" / "1", tmp_path / "a" / "2"]
    (left,) = result.left_out
    assert (left.path, left.reason, left.items) == (tmp_path / "b", f"the same files as in {tmp_path / 'a'}", 2)


def test_files_that_are_no_scans_may_be_linked_as_often_as_one_likes(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    link(tmp_path / "again.txt", "notes.txt")
    assert found(tmp_path) == ([tmp_path / "notes.txt"], {})


def test_links_that_lead_nowhere_are_refused_unless_they_cannot_be_scans(tmp_path: Path) -> None:
    link(tmp_path / "p1", "/gone/p1")
    link(tmp_path / "p2.nii.gz", "gone.nii.gz")
    link(tmp_path / "p3", "p3")
    link(tmp_path / "1.2.840.5", "gone")
    link(tmp_path / "notes.txt", "gone.txt")
    files, told = found(tmp_path)
    assert not files
    assert sorted(path.name for path in told) == ["1.2.840.5", "p1", "p2.nii.gz", "p3"]
    assert told[tmp_path / "p1"] == "a link that leads nowhere (No such file or directory) (refused)"
    assert "Too many levels of symbolic links" in told[tmp_path / "p3"]


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "open" / "a")
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(path: Path) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    files, told = found(tmp_path)
    assert files == [tmp_path / "open" / "a"]
    assert told == {tmp_path / "closed": "the folder cannot be listed (Permission denied) (refused)"}


def test_what_is_to_be_ignored_is_not_found_through_a_link_either(tmp_path: Path) -> None:
    touch(tmp_path / "out" / "mask.nii.gz")
    mask = touch(tmp_path / "masks" / "mask.nii.gz")
    file = touch(tmp_path / "in" / "a")
    link(tmp_path / "in" / "results", tmp_path / "out")
    link(tmp_path / "in" / "mask.nii.gz", mask)
    assert found(tmp_path / "in", ignore=[tmp_path / "out", mask]) == ([file], {})


def test_places_that_lie_in_each_other(tmp_path: Path) -> None:
    deep, file = touch(tmp_path / "a" / "b" / "c"), touch(tmp_path / "a" / "d")
    link(tmp_path / "a" / "b" / "far", touch(tmp_path / "far" / "e").parent)
    far = tmp_path / "a" / "b" / "far" / "e"
    for places in ([tmp_path / "a", tmp_path / "a" / "b"], [tmp_path / "a" / "b", tmp_path / "a"]):
        result = search([*places, file])
        assert sorted(result.files) == sorted([deep, file, far])
        assert result.left_out == []
        assert set(result.below[tmp_path / "a" / "b"]) == {deep, far}
        assert set(result.below[tmp_path / "a"]) >= {deep, file}


def test_hidden_files_are_left_aside_and_pipes_are_named(tmp_path: Path) -> None:
    touch(tmp_path / ".hidden")
    touch(tmp_path / ".git" / "a")
    os.mkfifo(tmp_path / "pipe")
    link(tmp_path / "link to pipe", tmp_path / "pipe")
    named = {"pipe": "found a FIFO, expected a regular file", "link to pipe": "a link to a FIFO"}
    assert found(tmp_path) == ([], {tmp_path / name: reason for name, reason in named.items()})
    assert found(tmp_path / "pipe") == ([], {tmp_path / "pipe": "found a FIFO, expected a regular file (refused)"})


def test_a_folder_named_by_a_link_keeps_the_links_name(tmp_path: Path) -> None:
    touch(tmp_path / "1.2.840.1" / "a")
    patient = link(tmp_path / "cohort" / "p1", tmp_path / "1.2.840.1")
    assert found(patient)[0] == [patient / "a"] == found(patient.parent)[0]
