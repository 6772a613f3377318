"""The report of a run, of a rerun, and of none."""

from pathlib import Path

import pytest

from parotid_seg.runtime.report.results import read_results
from tests.command_line import Run

pytestmark = pytest.mark.slow


def test_a_rerun_reports_all_cases_of_the_folder(command: Run, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (scans / "text.nii.gz").write_text("hello")
    first = command("infer", scans, "--out", out, "--backend", "onnxruntime")
    assert first.returncode == 3, first.stderr
    assert "report.html in" in first.stdout
    text = (out / "report.html").read_text()
    assert text.count("<details") == 2
    assert text.count("data:image/webp;base64,") == 1
    assert text.index(">1. <bdi>text<") < text.index(">2. <bdi>good<"), "the failed one is first"
    assert str(scans) not in text
    (out / "report.html").unlink()
    again = command("infer", scans / "text.nii.gz", "--out", out, "--backend", "onnxruntime")
    assert again.returncode == 1
    assert (out / "report.html").read_text().count("<details") == 2, "the scan of the first run is there, too"
    assert [case.case for case in read_results(out / "results.json").cases] == ["text", "good"]


def test_no_report(command: Run, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("infer", scans, "--out", out, "--no-report", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert not list(out.glob("report.*"))
    assert [case.case for case in read_results(out / "results.json").cases] == ["good"]
    assert [path.name for path in (out / "pictures").iterdir()] == ["good.png"]
