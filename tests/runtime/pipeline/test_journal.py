"""The journal: only whole work counts as done, and a folder has one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parotid_seg import files
from parotid_seg.errors import OutputError
from parotid_seg.files import hash_file
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.records import is_plain_name
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import NAME, Entry, Journal, is_whole
from parotid_seg.runtime.pipeline.run import infer

pytestmark = pytest.mark.slow


def done(folder: Path, case: str = "a", key: str = "k") -> Entry:
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


def write(folder: Path, *entries: Entry) -> None:
    journal = Journal(folder)
    with journal.writing():
        for entry in entries:
            journal.add(entry)


def test_done_work_is_found_again(tmp_path: Path) -> None:
    entry = done(tmp_path)
    write(tmp_path, entry)
    journal = Journal(tmp_path)
    assert journal.entries == {"a": entry}
    assert is_whole(journal.entries["a"], tmp_path)
    assert str(journal.owners()["a"]) == "/scans/a.nii.gz"


def test_a_mask_that_changed_or_went_is_not_whole(tmp_path: Path) -> None:
    entry = done(tmp_path)
    (tmp_path / "a.nii.gz").write_bytes(b"half")
    assert not is_whole(entry, tmp_path)
    (tmp_path / "a.nii.gz").unlink()
    assert not is_whole(entry, tmp_path)


def test_a_torn_last_line_costs_one_case_and_no_more(tmp_path: Path) -> None:
    write(tmp_path, done(tmp_path, "a"), done(tmp_path, "b"))
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-20])
    assert set(Journal(tmp_path).entries) == {"a"}
    write(tmp_path, done(tmp_path, "c"))
    assert set(Journal(tmp_path).entries) == {"a", "c"}


GOOD = {"case": "a", "source": "/a", "key": "k", "status": "done", "mask": "a.nii.gz", "mask_sha256": "0"}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "5",
        "null",
        '{"case": "a"}',
        json.dumps({**GOOD, "flags": None}),
        json.dumps({**GOOD, "flags": [5]}),
        json.dumps({**GOOD, "flags": [{"code": "no_such_code"}]}),
        json.dumps({**GOOD, "flags": [{"code": ["nothing_found"]}]}),
        json.dumps({**GOOD, "case": 5}),
        json.dumps({**GOOD, "case": ["a"]}),
        json.dumps({**GOOD, "further": ["b.nii.gz"]}),
        json.dumps({**GOOD, "volumes_ml": {"parotid_left": "20"}}),
        json.dumps({**GOOD, "seconds": {"read": 1}}).replace("1}", "1e999}"),
        json.dumps({**GOOD, "status": "perhaps"}),
        json.dumps({**GOOD, "mask": "/etc/passwd"}),
        json.dumps({**GOOD, "mask": "../b.nii.gz"}),
        json.dumps({**GOOD, "mask": ".."}),
        json.dumps({**GOOD, "mask": "b\0.nii.gz"}),
        json.dumps({**GOOD, "further": {"sub/b.seg.nrrd": "0"}}),
        json.dumps({**GOOD, "further": {"": "0"}}),
        json.dumps({**GOOD, "case": "../a"}),
        json.dumps({**GOOD, "case": ""}),
        json.dumps({**GOOD, "surprise": 1}),
        json.dumps({**GOOD, "source": "/a\0.nii.gz"}),
        json.dumps({**GOOD, "source": "/a\ud800.nii.gz"}),
        json.dumps({**GOOD, "path": "/a\0"}),
        json.dumps({**GOOD, "dose": "\udfff"}),
        json.dumps({**GOOD, "volumes_ml": {"parotid_left": 1e-320, "parotid_right": 20.0}}),
        json.dumps({**GOOD, "volumes_ml": {"parotid_left": 1e308}}),
        json.dumps({**GOOD, "volumes_ml": {"parotid_left": -5.0}}),
        json.dumps({**GOOD, "expected_dsc": {"parotid_left": 7.0}}),
        json.dumps({**GOOD, "floor_dsc": {"parotid_left": -0.1}}),
        json.dumps({**GOOD, "agreement": {"parotid_left": 7.0}}),
        json.dumps({**GOOD, "mean_gy": {"parotid_left": 1e300}}),
        json.dumps({**GOOD, "seconds": {"read": -1.0}}),
        json.dumps({**GOOD, "seconds": {"read": 1e308}}),
    ],
)
def test_a_hostile_line_costs_itself_and_is_reported(tmp_path: Path, line: str) -> None:
    write(tmp_path, done(tmp_path, "before"))
    with (tmp_path / NAME).open("a") as file:
        file.write(f"{line}\n")
    write(tmp_path, done(tmp_path, "after"))
    journal = Journal(tmp_path)
    assert set(journal.entries) == {"before", "after"}
    (reason,) = journal.unusable
    assert reason.startswith(("line 2: ", "a line without the name of its case"))
    assert "\n" not in reason


def test_names_of_files_that_are_no_text_are_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff:b\\c")
    entry = done(tmp_path, name)
    assert name in entry.source
    write(tmp_path, entry)
    assert Journal(tmp_path).entries == {name: entry}


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "a/", "a/b", "./a", "../a", "a\0b"])
def test_names_that_are_paths(name: str) -> None:
    assert not is_plain_name(name)


def test_a_journal_that_is_a_link_or_a_pipe_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / NAME).symlink_to("elsewhere")
    with pytest.raises(OutputError, match=r"journal\.jsonl: cannot be read"):
        Journal(tmp_path)
    (tmp_path / NAME).unlink()
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(OutputError, match="expected a regular file"):
        Journal(tmp_path)


@pytest.mark.parametrize("inside", [False, True], ids=["scans elsewhere", "scans in the output folder"])
@pytest.mark.parametrize("form", ["absolute", "relative", "plain", "further", "source"])
def test_no_line_hides_a_scan(tmp_path: Path, form: str, inside: bool) -> None:
    scans, out = tmp_path / "in", tmp_path / ("in" if inside else "out")
    for folder in {scans, out}:
        folder.mkdir()
    for name in ("a", "b"):
        (scans / f"{name}.nii").write_bytes(b"no scan, so that it fails at once")
    named: dict[str, dict[str, Any]] = {
        "absolute": {"mask": str(scans / "b.nii")},
        "relative": {"mask": "../in/b.nii"},
        "plain": {"mask": "b.nii"},
        "further": {"further": {"b.nii": "0"}},
        "source": {"case": "b", "source": str(scans / "a.nii")},
    }
    foreign = {**GOOD, "case": "old"} | named[form]
    (out / NAME).write_text(json.dumps(foreign) + "\n")
    backend = load_backend(DEFAULT_MODEL, "onnxruntime", "cpu")
    lines: list[str] = []
    options = InferOptions(workers=1, pictures=False, report=False)
    summary = infer([scans], out, lambda: backend, options, say=lines.append)
    assert summary.failed == 2
    assert (NAME in "".join(lines)) == (form in ("absolute", "relative"))


def test_masks_among_the_scans_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"no scan, so that it fails at once")
    write(tmp_path, done(tmp_path, "old"))
    backend = load_backend(DEFAULT_MODEL, "onnxruntime", "cpu")
    lines: list[str] = []
    options = InferOptions(workers=1, pictures=False, report=False)
    summary = infer([tmp_path], tmp_path, lambda: backend, options, say=lines.append)
    assert str(summary) == "0 done, 0 done before, 1 failed, 1 not used (1 mask)"
    assert f"not used: {tmp_path / 'old.nii.gz'}: a mask that an earlier run made" in lines


def test_the_last_line_of_a_case_counts(tmp_path: Path) -> None:
    write(tmp_path, done(tmp_path), Entry("a", "/scans/a.nii.gz", "k", "failed", reason="cut off"))
    assert not is_whole(Journal(tmp_path).entries["a"], tmp_path)


def test_unwritable_folder(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / NAME).mkdir()
    with pytest.raises(OutputError, match="cannot be written"), journal.writing():
        pass


def test_a_full_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with journal.writing(), open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        journal._file.close()
        journal._file = full  # type: ignore[assignment]
        with pytest.raises(OutputError, match=r"journal.jsonl: cannot be written \(No space left"):
            journal.add(done(tmp_path))


HOLDER = """
import sys
from pathlib import Path
from parotid_seg.runtime.pipeline.journal import Journal
with Journal(Path(sys.argv[1])).writing():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_one_is_gone_however_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
