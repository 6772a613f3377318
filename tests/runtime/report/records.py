"""Records of cases and runs that never ran, for tests of what is said about them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from parotid_seg.contract import Contract, Grid
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.report.results import CaseRecord, ModelRecord, RunRecord, results_of

LABELS = ("background", "parotid_left", "parotid_right")


def entry(case: str = "a", left: float = 30.0, right: float = 28.0, **changes: Any) -> Entry:
    """A case that is done."""
    sizes = {"parotid_left": left, "parotid_right": right}
    seconds = {"read": 0.1, "segment": 0.5, "write": 0.2}
    made = Entry(case, f"/scans/{case}.nii.gz", "k", "done", mask=f"{case}.nii.gz", volumes_ml=sizes, seconds=seconds)
    return replace(made, backend="onnxruntime 1.32.0", device="cpu", precision="fp32", model="ab" * 32, **changes)


def failed(case: str = "broken", reason: str = "not a NIfTI file", path: str = "/scans/who/broken.nii.gz") -> Entry:
    """A case that failed."""
    return Entry(case, "/scans/who/broken.nii.gz", "", "failed", reason, path)


def run_of(
    labels: tuple[str, str, str] = LABELS, engine: str = "onnxruntime 1.32.0", not_reached: int = 0
) -> RunRecord:
    """What a run was made with."""
    return RunRecord(
        begun="2026-11-28T12:00:00+00:00",
        ended="2026-11-28T12:01:00+00:00",
        options={"batch_size": None, "scans": [str(Path("/scans"))]},
        model=ModelRecord(
            sha256="ab" * 32, contract=Contract(labels, ("CT",), ((-200.0, 300.0),), Grid()), name="model.onnx"
        ),
        ran=ExecutionInfo(engine, "cpu", "fp32"),
        cases={"done": 1, "skipped": 0, "failed": 0},
        not_reached=not_reached,
        not_used={},
        versions={"parotid-seg": "0.1.0"},
        machine={"cores": 2},
    )


def judged(case: Entry) -> CaseRecord:
    """A case as results.json has it."""
    return results_of([case], run_of()).cases[0]
