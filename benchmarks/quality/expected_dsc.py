"""Does the expected DSC of each gland hold? Floors, correlation and flags on patients that took no part in anything.

    python benchmarks/quality/expected_dsc.py SCANS LABELS --out FILE.json

The scans are segmented with onnxruntime as `infer` does it, and each gland's achieved DSC is compared with its expected
DSC and its floor (`parotid_seg.calibration`). Meant to be run once on the test patients for each reported model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
from resources import machine_and_versions

from parotid_seg.commission.expected import expected_record, glands_in, in_words
from parotid_seg.commission.record import ExpectedGland
from parotid_seg.files import write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.evaluation import evaluate
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer
from parotid_seg.runtime.report.results import CaseRecord, read_results

POOR_DSC = 0.7
"""Glands below it are those that should be flagged."""
FLAG_RATE = 0.15
"""Share of the glands that is flagged if the lowest expected DSC are."""
DRAWS = 2000
"""Of patients, for the interval of the correlation."""


def correlation(glands: Sequence[ExpectedGland]) -> list[float]:
    """Spearman's rank correlation of expected and achieved DSC, with its 95 % interval by a bootstrap over patients."""
    by_patient: dict[str, list[ExpectedGland]] = {}
    for gland in glands:
        by_patient.setdefault(gland.patient, []).append(gland)
    patients, rng = list(by_patient.values()), np.random.default_rng(0)
    drawn = [
        spearman([gland for index in rng.integers(len(patients), size=len(patients)) for gland in patients[index]])
        for _ in range(DRAWS)
    ]
    return [spearman(glands), *np.nanpercentile(drawn, [2.5, 97.5]).tolist()]


def spearman(glands: Sequence[ExpectedGland]) -> float:
    """Rank correlation of expected and achieved DSC; NaN if one of them is constant."""
    expected, achieved = np.array([(gland.expected, gland.achieved) for gland in glands]).T
    if not (np.ptp(expected) and np.ptp(achieved)):
        return float("nan")
    return float(stats.spearmanr(expected, achieved).statistic)


def flags_of(glands: Sequence[ExpectedGland], cases: Mapping[str, CaseRecord]) -> dict[str, dict[str, int]]:
    """What is flagged, and how many of the poor glands that finds: by the lowest expected DSC, and by `infer`'s flags,
    where a flag of the scan counts for both its glands."""
    most = round(FLAG_RATE * len(glands))
    lowest = sorted(glands, key=lambda gland: gland.expected)[:most]
    by_infer = [
        gland for gland in glands if any(flag.structure in ("", gland.structure) for flag in cases[gland.patient].flags)
    ]
    poor = [gland for gland in glands if gland.achieved < POOR_DSC]
    return {
        name: {"flagged": len(flagged), "poor_flagged": sum(gland in flagged for gland in poor), "poor": len(poor)}
        for name, flagged in (("lowest expected DSC", lowest), ("flags of infer", by_infer))
    }


def main() -> None:
    """Segment, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder with CASE_0000.nii.gz")
    parser.add_argument("labels", type=Path, help="folder with CASE.nii.gz, contours drawn by persons")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        masks = Path(scratch)
        load = partial(load_backend, arguments.model, "onnxruntime")
        if failed := infer([arguments.scans], masks, load, InferOptions(pictures=False, report=False)).failed:
            raise SystemExit(f"{failed} scans could not be segmented")
        cases = {case.name: case for case in read_results(masks / "results.json").cases}
        run = json.loads((masks / "run.json").read_text())
        glands = list(glands_in(cases, evaluate(masks, arguments.labels)))
    record = expected_record(glands)
    if record is None:
        raise SystemExit(f"{arguments.model} is not calibrated: it expects no DSC")
    found: dict[str, Any] = {"spearman": correlation(glands), "flags": flags_of(glands, cases)}
    print(in_words(record))
    print("rank correlation {:.2f} ({:.2f} to {:.2f})".format(*found["spearman"]))
    for name, each in found["flags"].items():
        print(
            f"{name}: {each['flagged']} of {len(glands)} glands flagged, "
            f"{each['poor_flagged']} of {each['poor']} with a DSC below {POOR_DSC} among them"
        )
    content = {
        "model": run["model"]["sha256"],
        "ran": run["ran"],
        "date": run["ended"][:10],
        **machine_and_versions(),
        **found,
        "expected": msgspec.to_builtins(record),
    }
    write_text(json.dumps(content, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
