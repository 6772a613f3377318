"""The journal: only whole work counts as done."""

import pytest

from parotid_seg.errors import OutputError
from parotid_seg.runtime.journal import NAME, Entry, Journal, hash_file


def done(folder, case="a", key="k") -> Entry:
    mask = folder / f"{case}.nii.gz"
    mask.write_bytes(b"mask")
    return Entry(case, f"/scans/{case}.nii.gz", key, "done", mask=mask.name, mask_sha256=hash_file(mask), flags=("x",))


def test_done_work_is_found_again(tmp_path):
    entry = done(tmp_path)
    Journal(tmp_path).add(entry)
    journal = Journal(tmp_path)
    assert journal.entries["a"] == entry
    assert journal.is_done("a", "k")
    assert not journal.is_done("a", "another model")
    assert not journal.is_done("b", "k")


def test_a_mask_that_changed_or_went_is_not_done(tmp_path):
    Journal(tmp_path).add(done(tmp_path))
    (tmp_path / "a.nii.gz").write_bytes(b"half")
    assert not Journal(tmp_path).is_done("a", "k")
    (tmp_path / "a.nii.gz").unlink()
    assert not Journal(tmp_path).is_done("a", "k")


def test_a_torn_last_line_costs_one_case_and_no_more(tmp_path):
    journal = Journal(tmp_path)
    journal.add(done(tmp_path, "a"))
    journal.add(done(tmp_path, "b"))
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-20])
    torn = Journal(tmp_path)
    assert torn.is_done("a", "k")
    assert not torn.is_done("b", "k")
    torn.add(done(tmp_path, "c"))
    assert Journal(tmp_path).is_done("a", "k")
    assert Journal(tmp_path).is_done("c", "k")


def test_the_last_line_of_a_case_counts(tmp_path):
    journal = Journal(tmp_path)
    journal.add(done(tmp_path))
    journal.add(Entry("a", "/scans/a.nii.gz", "k", "failed", reason="cut off"))
    assert not Journal(tmp_path).is_done("a", "k")


def test_unwritable_folder(tmp_path):
    journal = Journal(tmp_path)
    (tmp_path / NAME).mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        journal.add(Entry("a", "", "", "failed"))
