"""Sentences on flags are for people: other words change no status, no order, no number and no exit status."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from parotid_seg.commands.terminal import outcome_text
from parotid_seg.flags import FlagCode
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer_at
from parotid_seg.runtime.report import flag_text
from parotid_seg.runtime.report.flag_text import TEXTS, FlagText
from tests.runtime.report.drawn import TURNED, Here, write
from tests.small_files import summary_rows

pytestmark = pytest.mark.slow


WORDS = MappingProxyType(
    {
        "others": {
            code: FlagText(TEXTS[code].severity, TEXTS[other].sentence)
            for code, other in zip(FlagCode, [*list(FlagCode)[1:], next(iter(FlagCode))], strict=True)
        },
        "none": {code: FlagText(TEXTS[code].severity, "") for code in FlagCode},
        "one": {code: FlagText(TEXTS[code].severity, "failed: no parotid gland; swapped") for code in FlagCode},
    }
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans that raise every flag of a segmented CT, some several, and some that fail."""
    folder = tmp_path_factory.mktemp("scans")
    write(folder / "good.nii.gz")
    write(folder / "swapped.nii.gz", left=(10, 18, 8), right=(10, 18, 30))
    write(folder / "cut.nii.gz", left=(0, 18, 30))
    write(folder / "edge.nii.gz", left=(10, 0, 30), right=(0, 18, 8))
    write(folder / "small.nii.gz", size=(3, 3))
    write(folder / "unequal.nii.gz", size=(7, 5))
    write(folder / "alone.nii.gz", left=(10, 18, 8), right=None)
    write(folder / "turned.nii.gz", affine=TURNED)
    write(folder / "unknown.nii.gz", codes=0)
    write(folder / "none.nii.gz", left=None, right=None)
    (folder / "broken.nii.gz").write_bytes(b"no image")
    return folder


def without(content: Any, *names: str) -> Any:
    """JSON without what is in words, or differs between any two runs."""
    if isinstance(content, dict):
        return {name: without(each, *names) for name, each in content.items() if name not in names}
    return [without(each, *names) for each in content] if isinstance(content, list) else content


def run(scans: Path, out: Path) -> tuple[dict[str, Any], str]:
    """All that a run, and the same again, decide; and what they say on flags."""
    told: list[str] = []
    outcomes: list[Any] = []
    for _ in range(2):
        summary = infer_at(Here(), [scans], out, InferOptions(), say=told.append, progress=outcomes.append)
        outcomes.append((summary.done, summary.skipped, summary.failed, summary.replaced, summary.exit_status))
    rows = summary_rows(out)
    report, page = json.loads((out / "results.json").read_text()), (out / "report.html").read_text()
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    said = "\n".join(
        [*(row["flags"] for row in rows), *(outcome_text(each) for each in outcomes if hasattr(each, "entry"))]
    )
    return {
        "outcomes": [each if isinstance(each, tuple) else (each.status, each.entry.case) for each in outcomes],
        "rows": without(rows, "flags", "read_s", "segment_s", "write_s"),
        "journal": without(lines, "seconds"),
        "results": without(report, "text", "seconds", "begun", "ended"),
        "order": re.findall(r'<tr data-status="(\w+)" data-section="(#case-\d+)">.*?<bdi>(.*?)</bdi>', page),
        "open": re.findall(r'<details id="(case-\d+)"( open)?>', page),
    }, said


@pytest.fixture(scope="module")
def usual(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return run(scans, tmp_path_factory.mktemp("usual") / "out")


def test_the_scans_raise_the_flags(usual: tuple[dict[str, Any], str]) -> None:
    rows: Callable[[str], dict[str, str]] = {row["case"]: row for row in usual[0]["rows"]}.__getitem__
    codes = {
        name: rows(name)["flag_codes"].split(";") for name in ("swapped", "cut", "edge", "small", "alone", "unknown")
    }
    assert codes == {
        "swapped": ["sides_swapped", "uncertain"],
        "cut": ["cut_by_scan_end", "uncertain"],
        "edge": ["cut_by_scan_end", "cut_in_plane", "uncertain"],
        "small": ["unusual_volume", "unusual_volume", "uncertain"],
        "alone": ["only_gland_on_other_side", "structure_missing", "uncertain"],
        "unknown": ["sform_without_code", "uncertain"],
    }
    assert usual[0]["outcomes"][-1] == (0, 9, 2, 0, 3)
    assert [status for status, _, _ in usual[0]["order"]] == ["failed"] * 2 + ["check"] * 9
    assert {name for _, _, name in usual[0]["order"][:2]} == {"broken", "none"}
    assert {name for _, _, name in usual[0]["order"][2:4]} == {"swapped", "alone"}


@pytest.mark.parametrize("words", WORDS)
def test_other_words_change_no_decision(
    words: str, scans: Path, usual: tuple[dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flag_text, "TEXTS", WORDS[words])
    decided, said = run(scans, tmp_path / "out")
    assert said != usual[1]
    for name, expected in usual[0].items():
        assert decided[name] == expected, name
