"""Scans and results behind URLs, with fsspec's own file system for a storage service."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import fsspec
import nibabel
import pytest

import parotid_seg.cluster.mirror as mirror_module
from parotid_seg.cluster.host import Stage
from parotid_seg.cluster.mirror import FORGOTTEN_S, RUNNING, Mirror, mirrored
from parotid_seg.cluster.urls import find_anywhere, url_of
from parotid_seg.errors import InputError, OutputError
from parotid_seg.runtime.pipeline.discovery import Case, name_cases
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.protocol.messages import PICTURES, CaseRequest, CaseResult
from parotid_seg.runtime.pipeline.writers import Outputs


@pytest.fixture
def bucket() -> Iterator[Any]:
    """A service in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("s3://bucket/a/b.nii.gz", "s3://bucket/a/b.nii.gz"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("file:///data/a.nii", "file:///data/a.nii"),
        ("scans/a.nii.gz", ""),
        ("/data/s3:/a.nii", ""),
        ("C:/scans", ""),
    ],
)
def test_what_a_path_on_the_command_line_stands_for(written: str, url: str) -> None:
    assert url_of(Path(written)) == url


def test_a_folder_that_looks_like_a_url_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:/here").mkdir(parents=True)
    assert url_of(Path("s3://here")) == ""


def test_scans_behind_a_url(bucket: Any) -> None:
    for name in ("a/p1_0000.nii.gz", "a/b/p2.nii", "a/.hidden/p3.nii", "a/.p4.nii", "a/notes.txt", "a/out/p1.nii.gz"):
        bucket.pipe_file(f"/scans/{name}", b"x")
    told: list[str] = []
    scans, errors = find_anywhere(
        [Path("memory://scans")], ["CT"], skip=lambda each: told.append(str(each)), out="memory://scans/a/out"
    )
    assert [case.name for case in name_cases(scans, {})] == ["p2", "p1"]
    assert not errors
    assert told == ["memory:/scans: no NIfTI; DICOM is read from mounted storage only"]


def test_the_files_of_several_channels_are_one_case(bucket: Any) -> None:
    for name in ("p1_0000.nii.gz", "p1_0001.nii.gz", "p2_0000.nii.gz", "p2_0001.nii.gz"):
        bucket.pipe_file(f"/mr/{name}", b"x")
    scans, errors = find_anywhere([Path("memory://mr")], ["T1", "T2"])
    assert [[source.name for source in scan] for scan in scans] == [
        ["p1_0000.nii.gz", "p1_0001.nii.gz"],
        ["p2_0000.nii.gz", "p2_0001.nii.gz"],
    ]
    assert not errors


def test_urls_that_lead_nowhere(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file("/notes/a.txt", b"x")
    _, errors = find_anywhere([Path("memory://none"), Path("memory://notes"), tmp_path / "none"], ["CT"])
    assert sorted(str(error).split(": ")[1] for error in errors) == [
        "no scan there, expected NIfTI files (.nii, .nii.gz); 1 other files",
        "no such file or folder",
        "no such file or folder",
    ]
    with pytest.raises(InputError, match="nosuch://a: cannot be opened"):
        find_anywhere([Path("nosuch://a")], ["CT"])


def entry(name: str, mask: str = "") -> Entry:
    return Entry(name, "", "key", "done", mask=mask)


def test_results_are_mirrored_here_and_come_back(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "SAVED_S", 0.2)
    bucket.pipe_file("/out/journal.jsonl", b"before\n")
    with mirrored("memory://out/") as mirror:
        assert (mirror.folder / "journal.jsonl").read_bytes() == b"before\n"
        assert bucket.exists("/out/running.json")
        (mirror.folder / "journal.jsonl").write_bytes(b"before\nnow\n")
        assert bucket.cat_file("/out/journal.jsonl") == b"before\n", "not at once"
        first = json.loads(bucket.cat_file("/out/running.json"))
        late = time.monotonic() + 20
        while json.loads(bucket.cat_file("/out/running.json"))["seen"] <= first["seen"]:
            assert time.monotonic() < late, "the sign of life is not renewed"
            time.sleep(0.02)
        while bucket.cat_file("/out/journal.jsonl") != b"before\nnow\n":
            assert time.monotonic() < late, "it is not saved before a case has ended"
            time.sleep(0.02)
        (mirror.folder / "summary.csv").write_text("case")
        (mirror.folder / ".partial-0123456789abcdef-x").touch()
    assert sorted(path.rsplit("/", 1)[1] for path in bucket.find("/out")) == ["journal.jsonl", "summary.csv"]


def test_one_run_at_a_time(bucket: Any) -> None:
    with mirrored("memory://out"), pytest.raises(OutputError, match=r"memory://out: another run is working there"):
        Mirror("memory://out", Path("/nowhere"))
    seen = {"run": "elsewhere", "seen": time.time() - FORGOTTEN_S - 1}
    bucket.pipe_file(f"/out/{RUNNING}", json.dumps(seen).encode())
    with mirrored("memory://out"):
        pass
    bucket.pipe_file(f"/out/{RUNNING}", b"torn")
    with mirrored("memory://out"):
        pass


def test_a_case_is_staged_and_delivered(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file("/scans/a.nii.gz", b"scan")
    bucket.pipe_file("/out/a.nii.gz", b"old mask")
    stage = Stage(tmp_path / "unused", "memory://out", Outputs())
    job = CaseRequest(Case("a", (Path("memory://scans/a.nii.gz"),)), entry("a", "a.nii.gz"))
    (copied,) = stage.fetch([job])
    assert isinstance(copied, CaseRequest)
    (source,) = copied.case.scan
    assert source.read_bytes() == b"scan"
    assert source.name == "a.nii.gz"
    assert (stage.out / "a.nii.gz").read_bytes() == b"old mask", "which may be whole, and the case done"
    (stage.out / PICTURES).mkdir()
    (stage.out / PICTURES / "a.png").write_bytes(b"picture")
    (stage.out / "a.nii.gz").write_bytes(b"new mask")
    ended = CaseResult("done", entry("a", "a.nii.gz"))
    assert stage.deliver(job, ended, copied).entry.source == "memory://scans/a.nii.gz"
    assert bucket.cat_file("/out/a.nii.gz") == b"new mask"
    assert bucket.cat_file("/out/pictures/a.png") == b"picture"
    assert not source.exists()
    assert not list(stage.out.glob("*.nii.gz"))


@pytest.mark.parametrize(("status", "stays"), [("done", False), ("failed", False), ("skipped", True)])
def test_a_picture_of_an_earlier_mask_does_not_stay(
    bucket: Any, tmp_path: Path, status: Literal["done", "failed", "skipped"], stays: bool
) -> None:
    for name in ("scans/a.nii.gz", "scans/b.nii.gz", "out/pictures/a.png", "out/pictures/b.png"):
        bucket.pipe_file(f"/{name}", b"x")
    stage = Stage(tmp_path / "unused", "memory://out", Outputs())
    for case, known in (("a", entry("a", "a.nii.gz")), ("b", None)):
        job = CaseRequest(Case(case, (Path(f"memory://scans/{case}.nii.gz"),)), known)
        (copied,) = stage.fetch([job])
        assert isinstance(copied, CaseRequest)
        stage.deliver(job, CaseResult(status, entry(case, f"{case}.nii.gz")), copied)
    assert bucket.exists("/out/pictures/a.png") == stays
    assert bucket.exists("/out/pictures/b.png"), "it is not known who wrote it"


def test_an_error_names_the_url_and_not_the_copy(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file("/scans/a.nii.gz", b"scan")
    stage = Stage(tmp_path, "", Outputs())
    job = CaseRequest(Case("a", (Path("memory://scans/a.nii.gz"),)), None)
    (copied,) = stage.fetch([job])
    assert isinstance(copied, CaseRequest)
    failed = CaseResult("failed", Entry("a", "", "", "failed", "damaged", str(copied.case.scan[0])))
    assert stage.deliver(job, failed, copied).entry.failure == "memory://scans/a.nii.gz: damaged"
    gone = CaseRequest(Case("b", (Path("memory://scans/b.nii.gz"),)), None)
    (ended,) = stage.fetch([gone])
    assert (ended.status, ended.entry.failure) == ("failed", "memory://scans/b.nii.gz: no such file")
    assert ended.entry.source == "memory://scans/b.nii.gz"


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be read or written"), mirrored(f"file://{tmp_path}/file/out"):
        pass
    stage = Stage(tmp_path, f"file://{tmp_path}/file/out", Outputs())
    (stage.out / "a.nii.gz").write_bytes(b"mask")
    job = CaseRequest(Case("a", (tmp_path / "a.nii.gz",)), None)
    with pytest.raises(OutputError, match=r"file/out/a.nii.gz: cannot be written"):
        stage.deliver(job, CaseResult("done", entry("a", "a.nii.gz")))


def test_nifti_images_keep_their_names(bucket: Any, tmp_path: Path, head: nibabel.Nifti1Image) -> None:
    nibabel.save(head, tmp_path / "s.nii.gz")
    bucket.put_file(str(tmp_path / "s.nii.gz"), "/scans/deep/s_0000.nii.gz")
    stage = Stage(tmp_path, "", Outputs())
    (copied,) = stage.fetch([CaseRequest(Case("s", (Path("memory://scans/deep/s_0000.nii.gz"),)), None)])
    assert nibabel.load(copied.case.scan[0]).shape == head.shape


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"run": 5, "seen": 1}', b'{"run": "a", "seen": 1e300}', b'{"run": "a"}', b"\xff"]
)
def test_a_damaged_word_of_another_run_is_no_run(bucket: Any, tmp_path: Path, content: bytes) -> None:
    bucket.pipe_file("/out/running.json", content)
    Mirror("memory://out", tmp_path).leave()
    assert not bucket.exists("/out/running.json")
