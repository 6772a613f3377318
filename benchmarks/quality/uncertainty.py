"""Does `--tta` know where the model is wrong? Agreement with the mirror image against DSC with the contours.

    python benchmarks/quality/uncertainty.py SCANS LABELS --out FILE.json

Meant for validation patients: the limit below which a gland is flagged (`segment.LEAST_AGREEMENT`) is read off here.
Times of a run with and without test-time augmentation are measured alternately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from scipy import stats

from parotid_seg.files import write_text
from parotid_seg.metrics import dice
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.segmentation.segment import segment_volume
from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions
from parotid_seg.scan.nifti import read_mask, read_nifti

LIMITS = (0.8, 0.85, 0.88, 0.9, 0.92, 0.94)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of NIfTI scans")
    parser.add_argument("labels", type=Path, help="folder of contours; scans without one are left out")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="one that has not seen these patients")
    parser.add_argument("--cases", nargs="*", help="names to use; default: all")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    backend = load_backend(arguments.model, "onnxruntime")
    glands, plain_s, augmented_s = [], [], []
    for path in sorted(arguments.scans.glob("*_0000.nii.gz")):
        case = path.name.removesuffix("_0000.nii.gz")
        label = arguments.labels / f"{case}.nii.gz"
        if not label.exists() or (arguments.cases and case not in arguments.cases):
            continue
        scan = read_nifti(path)
        reference, _ = read_mask(label, like=scan)
        times = [time.perf_counter()]
        segment_volume(backend, scan.volume)
        times.append(time.perf_counter())
        found = segment_volume(backend, scan.volume, SegmentationOptions(tta=True))
        times.append(time.perf_counter())
        plain_s.append(times[1] - times[0])
        augmented_s.append(times[2] - times[1])
        for value, name in enumerate(backend.contract.labels):
            if value and (reference == value).any():
                dsc = dice(found.mask == value, reference == value)
                glands.append({"case": case, "gland": name, "agreement": found.agreement[name], "dsc": dsc})
    agreement = np.array([gland["agreement"] for gland in glands])
    achieved = np.array([gland["dsc"] for gland in glands])
    rank = stats.spearmanr(agreement, achieved)
    table = [
        {
            "limit": limit,
            "flagged": int((agreement < limit).sum()),
            "mean_dsc_flagged": float(achieved[agreement < limit].mean()) if (agreement < limit).any() else None,
            "mean_dsc_others": float(achieved[agreement >= limit].mean()),
            "worst_tenth_found": float((agreement[achieved <= np.quantile(achieved, 0.1)] < limit).mean()),
        }
        for limit in LIMITS
    ]
    result = {
        "glands": len(glands),
        "spearman": float(rank.statistic),
        "p": float(rank.pvalue),
        "limits": table,
        "times": statistics.median(augmented / plain for augmented, plain in zip(augmented_s, plain_s, strict=True)),
        "ran": vars(backend.ran),
        "all": glands,
    }
    write_text(json.dumps(result, indent=1) + "\n", arguments.out)
    print(json.dumps({**result, "all": "..."}, indent=1))


if __name__ == "__main__":
    main()
