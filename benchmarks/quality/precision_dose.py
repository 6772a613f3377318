"""What another engine or precision changes of the planned mean dose, beside the packaged model in FP32.

    python benchmarks/quality/precision_dose.py SCANS DOSES --int8 MODEL.int8.onnx --out FILE.json

The masks of onnxruntime with the model file in FP32 are the reference. OpenVINO in BF16, if this CPU computes it, and
onnxruntime with a model in INT8 make masks of the same scans. For each gland the mean dose of a plan is read off both.
Intervals are of the bootstrap over patients.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from dose import Gland, figures, measured
from resources import machine_and_versions

from parotid_seg.files import hash_file, write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.openvino import OpenVinoBackend, computes_bf16
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer


def segmented(scans: Path, masks: Path, load: Callable[[], Backend]) -> dict[str, Any]:
    """Segment a folder with one engine; gives what ran, see run.json."""
    summary = infer([scans], masks, load, InferOptions(pictures=False, report=False))
    if summary.failed:
        raise SystemExit(f"{summary.failed} scans could not be segmented")
    ran: dict[str, Any] = json.loads((masks / "run.json").read_text())["ran"]
    return ran


def table(by_engine: dict[str, list[Gland]]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| engine | glands (patients) | lowest DSC | change of mean dose, Gy | absolute | 95th percentile | largest "
        "| on another side of 20, 26 Gy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for engine, glands in by_engine.items():
        each = figures(glands)
        lines.append(
            f"| {engine} | {each.glands} ({each.patients}) | {min(gland.dsc for gland in glands):.4f} "
            "| {:+.3f} ({:+.3f} to {:+.3f}) ".format(*each.error_gy)
            + f"| {each.absolute_error_gy[0]:.3f} | {each.p95_gy:.3f} | {each.largest_gy:.3f} "
            f"| {', '.join(map(str, each.crossed.values()))} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Segment with all engines, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder with CASE_0000.nii.gz")
    parser.add_argument("doses", type=Path, help="folder with CASE.nii.gz in Gy, or with RTDOSE files")
    parser.add_argument("--int8", type=Path, help="the model in INT8 (parotid-seg export --precision int8)")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="in FP32")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    loads: list[Callable[[], Backend]] = []
    if computes_bf16():
        loads.append(partial(OpenVinoBackend, arguments.model, precision="bf16"))
    if arguments.int8:
        loads.append(partial(load_backend, arguments.int8, "onnxruntime"))
    if not loads:
        parser.error("found nothing to compare: this CPU does not compute BF16, and there is no --int8")
    ran, by_engine = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference"
        load_reference = partial(load_backend, arguments.model, "onnxruntime")
        ran["reference"] = segmented(arguments.scans, reference, load_reference)
        for number, load in enumerate(loads):
            masks = Path(scratch) / str(number)
            found = segmented(arguments.scans, masks, load)
            name = f"{found['backend']} {found['precision']}"
            ran[name], by_engine[name] = found, measured(masks, reference, arguments.doses)
    print(table(by_engine))
    content = {
        "model": hash_file(arguments.model),
        "date": date.today().isoformat(),
        "ran": ran,
        **machine_and_versions(),
        "figures": {name: asdict(figures(glands)) for name, glands in by_engine.items()},
        "glands": {name: [asdict(gland) for gland in glands] for name, glands in by_engine.items()},
    }
    write_text(json.dumps(content, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
