"""`parotid-seg export`: checkpoint to a verified model file, which appears under its name only if it passes."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from parotid_seg.errors import InputError, ModelError
from parotid_seg.export.onnx_file import to_onnx, with_contract
from parotid_seg.export.parity import LEAST_DSC, MOST_CHANGED_SHARE, ScanParity, check_parity
from parotid_seg.files import make_folder, whole_file, write_text
from parotid_seg.models import example_folder
from parotid_seg.runtime.load import load_backend
from parotid_seg.scan.intensity import is_ct
from parotid_seg.train.checkpoint import load_checkpoint


def export(
    checkpoint_path: Path,
    out: Path,
    *,
    weights: str,
    verify: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> list[ScanParity]:
    """Export a checkpoint, compare it with the trained model, and write it with the record of that.

    Writes `out` and, pass or fail, `out` with the ending `.parity.json`.

    Args:
        checkpoint_path: `best.pt` or `last.pt` of a training run.
        out: the .onnx file to make.
        weights: type the weights are stored in, "fp16" or "fp32".
        verify: folder of scans to compare on. Default: the packaged example, a CT.
        report: told one line at a time what happens.

    Raises:
        InputError: for an unusable argument or checkpoint, and where the example does not fit the model.
        ModelError: if the exported model is not the same; `out` is not written then.
        OutputError: if a file cannot be written.
    """
    if out.suffix != ".onnx":
        raise InputError(f"--out: found {out.name}, expected a name ending in .onnx")
    checkpoint = load_checkpoint(checkpoint_path)
    if verify is None:
        if not all(map(is_ct, checkpoint.channels)) or len(checkpoint.channels) != 1:
            wanted = ", ".join(checkpoint.channels)
            raise InputError(f"--verify: the packaged example is a CT; name a folder of scans of the model's: {wanted}")
        verify = example_folder()
    make_folder(out.parent)
    report(f"translating {checkpoint_path} to ONNX")
    model, contract = to_onnx(checkpoint, weights)
    with tempfile.TemporaryDirectory() as scratch:
        candidate = Path(scratch) / "candidate.onnx"
        candidate.write_bytes(with_contract(model, contract))
        report(f"comparing with the trained model on {verify}")
        rows = check_parity(checkpoint.network(), load_backend(candidate), verify)
    passed = all(row.passed for row in rows)
    record = {
        "passed": passed,
        "least_dsc": LEAST_DSC,
        "most_changed_share": MOST_CHANGED_SHARE,
        "against": f"torch {metadata.version('torch')} in FP32",
        "with": f"onnxruntime {metadata.version('onnxruntime')} on the CPU",
        "scans": [asdict(row) for row in rows],
    }
    write_text(json.dumps(record, indent=1) + "\n", out.with_suffix(".parity.json"))
    if not passed:
        worst = min(rows, key=lambda row: row.dsc)
        raise ModelError(
            f"{out}: not written: the exported model differs from the trained one: DSC {worst.dsc:.4f} on "
            f"{worst.scan}, expected at least {LEAST_DSC}; {worst.changed} voxels changed; "
            f"see {out.with_suffix('.parity.json')}"
        )
    verification = {
        "against": record["against"],
        "with": record["with"],
        "scans": len({row.scan for row in rows}),
        "lowest_dsc": min(row.dsc for row in rows),
        "largest_changed_share": max(row.changed_share for row in rows),
    }
    content = with_contract(model, dataclasses.replace(contract, verification=verification))
    with whole_file(out) as partial:
        partial.write_bytes(content)
    return rows
