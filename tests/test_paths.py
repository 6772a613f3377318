"""Paths that lie: FIFOs, devices, links and hard links, where files are read and where they are written."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.errors import InputError, OutputError
from parotid_seg.files import (
    atomic_write,
    check_not_read,
    hash_file,
    locked,
    make_folder_in,
    open_input,
    open_to_append,
    read_input,
    remove_orphans,
    write_bytes,
    write_text,
)
from tests.command_line import Run

KINDS = {"FIFO": "a FIFO", "socket": "a socket", "device": "a device", "link": "a device", "folder": "a folder"}


def make(kind: str, path: Path) -> Path:
    """A path that leads to no regular file."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as served:
            served.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        return Path("/dev/zero")
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_a_regular_file_is_read(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path / "x.nii")
    for read in (open_input, read_input, hash_file):
        with pytest.raises(OSError, match=f"found {KINDS[kind]}, expected a regular file"):
            read(path)


def test_a_link_among_results_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "mask").symlink_to(tmp_path / "secret")
    assert read_input(tmp_path / "mask") == b"s"
    with pytest.raises(OSError, match="found a symbolic link"):
        read_input(tmp_path / "mask", follow=False)


@pytest.mark.parametrize("write", [write_text, lambda text, path: write_bytes(text.encode(), path)])
def test_a_link_is_replaced_and_not_what_it_leads_to(write: Callable[..., Any], tmp_path: Path) -> None:
    theirs, link, hard = tmp_path / "theirs", tmp_path / "a.csv", tmp_path / "b.csv"
    theirs.write_text("theirs")
    link.symlink_to(theirs)
    hard.hardlink_to(theirs)
    for path in (link, hard):
        write("ours", path)
        assert (path.read_text(), path.is_symlink()) == ("ours", False)
    assert theirs.read_text() == "theirs"


def test_a_temporary_name_cannot_be_foreseen(tmp_path: Path) -> None:
    """Links are planted under names that can be guessed, with the process ID."""
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    out = tmp_path / "out"
    out.mkdir()
    (out / f".partial-{os.getpid()}-a.csv").symlink_to(victim)
    write_text("ours", out / "a.csv")
    names = set()
    for _ in range(3):
        with atomic_write(out / "b.csv") as partial:
            names.add(partial.name)
            partial.write_text("ours")
    assert victim.read_text() == "theirs"
    assert len(names) == 3


def test_what_took_the_place_of_a_file_that_is_written_is_not_renamed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    with (  # noqa: PT012
        pytest.raises(OutputError, match="another process has replaced"),
        atomic_write(tmp_path / "a") as partial,
    ):
        partial.unlink()
        partial.symlink_to(tmp_path / "theirs")
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_modes_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text("a", tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_nothing_is_appended_through_links(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"1\n")
    (tmp_path / "link").symlink_to(theirs)
    (tmp_path / "hard").hardlink_to(theirs)
    with pytest.raises(OSError, match="found a symbolic link"):
        open_to_append(tmp_path / "link")
    with open_to_append(tmp_path / "hard") as file:
        file.write(b"2\n")
    assert ((tmp_path / "hard").read_bytes(), theirs.read_bytes()) == (b"1\n2\n", b"1\n")


@pytest.mark.timeout(20)
def test_nothing_is_appended_to_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(OSError, match="FIFO"):
        open_to_append(tmp_path / "journal.jsonl")


def test_orphans_are_removed_in_real_folders_only(tmp_path: Path) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    for folder in (elsewhere, out):
        folder.mkdir()
        for name in (f".partial-{'9f' * 16}-a.nii.gz", f".partial-{'0a' * 8}-a.nii.gz", ".partial-mine", "a.nii.gz"):
            (folder / name).write_text("x")
    (out / "pictures").symlink_to(elsewhere)
    (out / f".partial-{'1b' * 8}-x").symlink_to(elsewhere)
    remove_orphans(out / "pictures")
    assert len(list(elsewhere.iterdir())) == 4
    remove_orphans(out)
    assert sorted(path.name for path in out.iterdir()) == [".partial-mine", "a.nii.gz", "pictures"]
    assert len(list(elsewhere.iterdir())) == 4


def test_a_folder_in_an_output_folder_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pictures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="pictures: found a symbolic link, expected a folder"):
        make_folder_in(tmp_path, "pictures")
    assert make_folder_in(tmp_path, "other") == make_folder_in(tmp_path, "other")


def test_a_lock_is_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError, match="found a symbolic link"), locked(tmp_path / ".lock", tmp_path):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"


@pytest.mark.parametrize("way", ["itself", "hard link", "symbolic link", "another path"])
def test_what_is_read_is_not_written(way: str, tmp_path: Path) -> None:
    read, out = tmp_path / "a", tmp_path / "b"
    read.write_text("a")
    if way == "hard link":
        out.hardlink_to(read)
    elif way == "symbolic link":
        out.symlink_to(read)
    else:
        out = read if way == "itself" else tmp_path / "x" / ".." / "a"
        (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="one of the files that are read"):
        check_not_read(out, [tmp_path / "none", read])
    check_not_read(tmp_path / "c", [read])


def test_a_mask_is_not_replaced_by_its_scores(command: Run, tmp_path: Path) -> None:
    mask = tmp_path / "a.nii.gz"
    mask.write_bytes(b"x")
    done = command("evaluate", mask, mask, "--out", mask)
    assert (done.returncode, mask.read_bytes()) == (2, b"x")
    assert "one of the files that are read" in done.stderr


def test_a_checkpoint_is_not_replaced_by_its_model(command: Run, tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(b"x")
    (tmp_path / "link.onnx").symlink_to(checkpoint)
    done = command("export", checkpoint, "--out", tmp_path / "link.onnx")
    assert (done.returncode, checkpoint.read_bytes()) == (2, b"x")
    assert "one of the files that are read" in done.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_commands_refuse_what_is_no_regular_file(kind: str, command: Run, tmp_path: Path) -> None:
    path = make(kind, tmp_path / "x.nii")
    infer = ["infer", path, "--out", tmp_path / "out", "--backend", "onnxruntime", "--device", "cpu"]
    for words in (infer, ["inspect", path], ["evaluate", path, path]):
        done = command(*words)
        assert done.returncode == 1
        assert f"found {KINDS[kind]}, expected a regular file" in done.stderr, words
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(60)
def test_what_is_no_regular_file_in_a_folder_is_named(tmp_path: Path) -> None:
    from parotid_seg.scan.search import search

    for kind in ("FIFO", "socket", "link"):
        make(kind, tmp_path / f"{kind}.nii")
    found = search([tmp_path])
    assert found.files == []
    told = {each.path.name: each.reason for each in found.left_out}
    assert told == {
        "FIFO.nii": "found a FIFO, expected a regular file",
        "socket.nii": "found a socket, expected a regular file",
        "link.nii": "a link to a device",
    }
