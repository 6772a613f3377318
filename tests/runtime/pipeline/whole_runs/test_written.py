"""What a run replaces: its own files by its own record, never a scan, and nothing behind a planted link."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import OutputError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.pipeline import ownership
from parotid_seg.runtime.pipeline.case_runner import run_case
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, WorkerConfig
from parotid_seg.runtime.pipeline.run import Summary, infer_at
from parotid_seg.scan.nifti import MASK_NOTE, is_own_mask
from tests.runtime.pipeline.test_case_runner import everywhere

pytestmark = pytest.mark.slow


OTHERS = ("summary.csv", "run.json", "report.html", "results.json", "itk-snap-labels.txt")


class InThisProcess:
    """A site that needs no model: every voxel is label 1."""

    contract = read_model(DEFAULT_MODEL).contract
    model_sha256 = "0" * 64
    ran = ExecutionInfo("none", "cpu", "fp32")
    about: Mapping[str, Any] = {}

    def __init__(self, killed_after: int = 99) -> None:
        self.killed_after = killed_after

    def do(self, work: WorkerConfig, jobs: Iterable[CaseRequest]) -> Iterator[CaseResult]:
        for number, job in enumerate(jobs):
            finished = CaseResult(*run_case(work, job.case, job.known, everywhere))
            if number == self.killed_after:
                raise KeyboardInterrupt
            yield finished

    def close(self) -> None:
        pass


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def run(told: list[str]) -> Callable[..., Summary]:
    def running(scans: Path | list[Path], out: Path, site: InThisProcess | None = None, **options: Any) -> Summary:
        told.clear()
        places = scans if isinstance(scans, list) else [scans]
        return infer_at(
            site or InThisProcess(),
            places,
            out,
            InferOptions(**options),
            progress=lambda outcome: told.append(outcome.entry.failure),
        )

    return running


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_own_files_are_replaced_and_a_rerun_skips(run: Callable[..., Summary], scans: Path, out: Path) -> None:
    assert run(scans, out).done == 1
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert {path.name for path in before} >= {*OTHERS, "good.nii.gz"}
    assert run(scans, out).skipped == 1
    assert run(scans, out, overwrite=True).replaced == 1


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_others_stay(name: str, run: Callable[..., Summary], scans: Path, out: Path) -> None:
    (out / name).write_text("theirs")
    with pytest.raises(OutputError, match=f"{name}: exists and was not written by parotid-seg"):
        run(scans, out)
    assert (out / name).read_text() == "theirs"
    assert not (out / "good.nii.gz").exists()


@pytest.mark.parametrize("name", ["good.nii.gz", "pictures/good.png", "pictures/good.webp"])
def test_a_case_is_refused_where_somebody_elses_file_is(
    name: str, run: Callable[..., Summary], told: list[str], scans: Path, out: Path
) -> None:
    (out / "pictures").mkdir()
    (out / name).write_text("theirs")
    assert run(scans, out).failed == 1
    assert f"{name} exists and was not written by parotid-seg" in told[0]
    assert (out / name).read_text() == "theirs"


def test_a_header_proves_nothing(
    run: Callable[..., Summary], told: list[str], scans: Path, out: Path, head: nibabel.Nifti1Image
) -> None:
    """A mask of ours that a person has corrected elsewhere and put here is not replaced."""
    corrected = nibabel.Nifti1Image(np.zeros(head.shape, np.uint8), head.affine)
    corrected.header["descrip"] = MASK_NOTE
    nibabel.save(corrected, out / "good.nii.gz")
    before = (out / "good.nii.gz").read_bytes()
    assert is_own_mask(out / "good.nii.gz")
    assert run(scans, out).failed == 1
    assert (out / "good.nii.gz").read_bytes() == before


def test_a_run_that_was_killed_finds_its_own_files_again(run: Callable[..., Summary], scans: Path, out: Path) -> None:
    """The mask is there, the journal does not have it."""
    with pytest.raises(KeyboardInterrupt):
        run(scans, out, InThisProcess(killed_after=0))
    assert (out / "good.nii.gz").exists()
    assert "good.nii.gz" not in (out / "journal.jsonl").read_text()
    again = run(scans, out)
    assert (again.done, again.replaced) == (1, 1)


def test_a_name_that_was_not_used_is_free_for_others(
    run: Callable[..., Summary], told: list[str], scans: Path, out: Path, head: nibabel.Nifti1Image
) -> None:
    good = next(scans.iterdir())
    content = good.read_bytes()
    good.write_bytes(content[:1000])
    assert run(scans, out).failed == 1
    (out / "good.nii.gz").write_bytes(b"a person's contours")
    good.write_bytes(content)
    assert run(scans, out).failed == 1
    assert "was not written by parotid-seg" in told[0]


def test_without_a_record_masks_of_the_journal_are_ours(run: Callable[..., Summary], scans: Path, out: Path) -> None:
    assert run(scans, out).done == 1
    (out / ".written.json").unlink()
    with pytest.raises(OutputError, match=r"not written by parotid-seg as far as is known \(\.written\.json, "):
        run(scans, out)
    for path in (path for path in out.iterdir() if path.name not in ("good.nii.gz", "journal.jsonl", "pictures")):
        path.unlink()
    assert run(scans, out).skipped == 1
    assert run(scans, out, overwrite=True).done == 1


@pytest.mark.parametrize("content", [b"{", b"5", b'["a", 5]', b"[" * 100_000, b"\xff"])
def test_a_damaged_record_is_none(content: bytes, run: Callable[..., Summary], scans: Path, out: Path) -> None:
    (out / ".written.json").write_bytes(content)
    (out / "summary.csv").write_text("theirs")
    with pytest.raises(OutputError, match=r"summary\.csv: exists"):
        run(scans, out)


def test_a_record_that_is_too_large_is_not_read(
    run: Callable[..., Summary], scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "MOST_BYTES", 10)
    (out / ".written.json").write_text('["summary.csv"]')
    (out / "summary.csv").write_text("ours, by the record")
    with pytest.raises(OutputError, match=r"summary\.csv: exists"):
        run(scans, out)


@pytest.mark.parametrize("way", ["the same folder", "hard link", "symbolic link"])
def test_a_scan_is_never_replaced(
    way: str, run: Callable[..., Summary], told: list[str], scans: Path, out: Path
) -> None:
    """Not even if the record says that it is a mask of ours."""
    scan = next(scans.iterdir()).rename(scans / "good.nii.gz")
    before = scan.read_bytes()
    if way == "the same folder":
        out = scans
    elif way == "hard link":
        (out / "good.nii.gz").hardlink_to(scan)
    else:
        (out / "good.nii.gz").symlink_to(scan)
    (out / ".written.json").write_text(json.dumps(["good.nii.gz"]))
    assert run([scan], out).failed == 1
    assert "which is read" in told[0]
    assert (scan.read_bytes(), (out / "good.nii.gz").read_bytes()) == (before, before)


@pytest.mark.parametrize("name", ["journal.jsonl", ".lock", ".written.json"])
def test_links_for_records_are_refused(
    name: str, run: Callable[..., Summary], scans: Path, out: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs\n")
    (out / name).symlink_to(victim)
    with pytest.raises(OutputError, match=f"{name}: .*found a symbolic link"):
        run(scans, out)
    assert victim.read_text() == "theirs\n"


def test_a_link_for_pictures_is_not_followed(
    run: Callable[..., Summary], scans: Path, out: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    orphan = elsewhere / ".partial-0123456789abcdef-x"
    orphan.write_text("theirs")
    (out / "pictures").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="pictures: found a symbolic link, expected a folder"):
        run(scans, out)
    assert [path.name for path in elsewhere.iterdir()] == [orphan.name]


def test_a_journal_with_another_name_elsewhere_keeps_that_as_it_is(
    run: Callable[..., Summary], scans: Path, out: Path, tmp_path: Path
) -> None:
    run(scans, out)
    backup = tmp_path / "backup.jsonl"
    backup.hardlink_to(out / "journal.jsonl")
    before = backup.read_bytes()
    assert run(scans, out, overwrite=True).done == 1
    assert backup.read_bytes() == before
    assert (out / "journal.jsonl").read_bytes().startswith(before)


def test_a_secret_behind_a_link_is_not_in_the_report(
    run: Callable[..., Summary], scans: Path, out: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret of somebody")
    run(scans, out)
    (out / "pictures" / "good.webp").unlink()
    (out / "pictures" / "good.webp").symlink_to(secret)
    assert run(scans, out).skipped == 1
    assert "YSBzZWNyZXQgb2Yg" not in (out / "report.html").read_text()
