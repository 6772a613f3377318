"""Would further features improve the expected DSC, and what share of a scan's time do those of every scan take?

    python benchmarks/quality/further_features.py results/DATE-calibration.json results/DATE-uncertainty.json SCAN... \\
        --out FILE.json

Each feature of the operating range, and the agreement with the mirror image, is added in turn to the features of the
expected DSC. The patients are those of the calibration (`calibrate.py`); each is left out in turn. Time is that of the
processor: of `segment_volume`, and of everything in it for the expected DSC and the operating range.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from resources import machine_and_versions
from scipy import stats

from parotid_seg.files import write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.fit_calibration import Gland, left_out_estimates
from parotid_seg.runtime.segmentation import segment
from parotid_seg.runtime.segmentation.features import FEATURES
from parotid_seg.runtime.segmentation.quality import Quality, judged
from parotid_seg.scan.nifti import read_nifti

REPEATS = 3
AGREEMENT = "agreement with the mirror image"


def glands_in(calibration: Mapping[str, Any], agreement: Sequence[Mapping[str, Any]]) -> list[Gland]:
    """The glands of a calibration, with all features that are known of them by name."""
    scans = {each["patient"]: each for each in calibration["operating range"]["all"]}
    agreed = {(each["case"], each["gland"]): each["agreement"] for each in agreement}
    glands = []
    for each in next(part["all"] for name, part in calibration.items() if "parotid_left" in name):
        seen, name = scans[each["patient"]], each["structure"]
        own = {key: value for key, value in seen["structures"].get(name, {}).items() if key not in each["features"]}
        shares = {key: seen[key][name] for key in ("in_air", "straight") if name in seen[key]}
        mirror = {AGREEMENT: agreed[each["patient"], name]} if (each["patient"], name) in agreed else {}
        features = {**each["features"], **seen["scan"], **own, **shares, **mirror}
        glands.append(Gland(each["patient"], name, features, each["dsc"]))
    return glands


def with_further(glands: Sequence[Gland]) -> Iterator[dict[str, Any]]:
    """For each further feature: how well the DSC is expected without and with it, of the glands that have it."""
    for further in dict.fromkeys(name for each in glands for name in each.features if name not in FEATURES):
        known = [each for each in glands if further in each.features]
        row: dict[str, Any] = {"feature": further, "glands": len(known)}
        for key, names in (("without", FEATURES), ("with", (*FEATURES, further))):
            chosen = [replace(each, features={name: each.features[name] for name in names}) for each in known]
            expected = left_out_estimates(("parotid_left", "parotid_right"), chosen)
            dsc = np.array([each.dsc for each in known])
            row[key] = {
                "spearman": round(float(stats.spearmanr(expected, dsc).statistic), 3),
                "mean_absolute_error": round(float(np.abs(expected - dsc).mean()), 4),
            }
        yield row


def times(scans: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Milliseconds of the processor for each scan, and those in `quality.judged`."""
    backend, spent = load_backend(DEFAULT_MODEL, "onnxruntime"), [0.0]

    def timed(*words: Any) -> Quality:
        begun = time.thread_time()
        result = judged(*words)
        spent[0] += time.thread_time() - begun
        return result

    for path in scans:
        volume = read_nifti(path).volume
        segment.segment_volume(backend, volume)
        spent[0], begun = 0.0, time.process_time()
        with mock.patch.object(segment, "judged", timed):
            for _ in range(REPEATS):
                segment.segment_volume(backend, volume)
        whole = time.process_time() - begun
        ms = {"ms": 1000 * whole / REPEATS, "features_ms": 1000 * spent[0] / REPEATS}
        yield {"shape": volume.shape, **{name: round(value, 1) for name, value in ms.items()}}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibration", type=Path, help="written by calibrate.py")
    parser.add_argument("agreement", type=Path, help="written by uncertainty.py")
    parser.add_argument("scans", type=Path, nargs="+", help="NIfTI files, for the time")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    calibration, agreement = (
        json.loads(path.read_text("utf-8")) for path in (arguments.calibration, arguments.agreement)
    )
    result = {
        **machine_and_versions(),
        "further features": list(with_further(glands_in(calibration, agreement["all"]))),
        "times": list(times(arguments.scans)),
    }
    write_text(json.dumps(result, indent=1) + "\n", arguments.out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
