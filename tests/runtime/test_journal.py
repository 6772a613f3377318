"""The journal: only whole work counts as done, and a folder has one writer."""

import os
import subprocess
import sys

import pytest

from parotid_seg import files
from parotid_seg.errors import OutputError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.journal import NAME, Entry, Journal, hash_file, is_whole


def done(folder, case="a", key="k") -> Entry:
    mask = folder / f"{case}.nii.gz"
    mask.write_bytes(b"mask")
    return Entry(
        case,
        f"/scans/{case}.nii.gz",
        key,
        "done",
        mask=mask.name,
        mask_sha256=hash_file(mask),
        flags=(Flag(FlagCode.UNUSUAL_VOLUME, "parotid_left", 70.5), Flag(FlagCode.SFORM_UNUSABLE)),
    )


def write(folder, *entries) -> None:
    journal = Journal(folder)
    with journal.writing():
        for entry in entries:
            journal.add(entry)


def test_done_work_is_found_again(tmp_path):
    entry = done(tmp_path)
    write(tmp_path, entry)
    journal = Journal(tmp_path)
    assert journal.entries == {"a": entry}
    assert is_whole(journal.entries["a"], tmp_path)
    assert str(journal.owners()["a"]) == "/scans/a.nii.gz"


def test_a_mask_that_changed_or_went_is_not_whole(tmp_path):
    entry = done(tmp_path)
    (tmp_path / "a.nii.gz").write_bytes(b"half")
    assert not is_whole(entry, tmp_path)
    (tmp_path / "a.nii.gz").unlink()
    assert not is_whole(entry, tmp_path)


def test_a_torn_last_line_costs_one_case_and_no_more(tmp_path):
    write(tmp_path, done(tmp_path, "a"), done(tmp_path, "b"))
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-20])
    assert set(Journal(tmp_path).entries) == {"a"}
    write(tmp_path, done(tmp_path, "c"))
    assert set(Journal(tmp_path).entries) == {"a", "c"}


def test_the_last_line_of_a_case_counts(tmp_path):
    write(tmp_path, done(tmp_path), Entry("a", "/scans/a.nii.gz", "k", "failed", reason="cut off"))
    assert not is_whole(Journal(tmp_path).entries["a"], tmp_path)


def test_unwritable_folder(tmp_path):
    journal = Journal(tmp_path)
    (tmp_path / NAME).mkdir()
    with pytest.raises(OutputError, match="cannot be written"), journal.writing():
        pass


def test_a_full_disk(tmp_path):
    journal = Journal(tmp_path)
    with journal.writing(), open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        journal._file.close()
        journal._file = full
        with pytest.raises(OutputError, match=r"journal.jsonl: cannot be written \(No space left"):
            journal.add(done(tmp_path))


HOLDER = """
import sys
from pathlib import Path
from parotid_seg.runtime.journal import Journal
with Journal(Path(sys.argv[1])).writing():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_one_is_gone_however_it_went(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE_S", 0.2)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(OutputError, match="another run is working in this folder"), Journal(tmp_path).writing():
        pass
    os.kill(holder.pid, 9)
    holder.wait()
    write(tmp_path, done(tmp_path))
    assert set(Journal(tmp_path).entries) == {"a"}
