"""Labels of an exported graph against the trained model's, at native sizes that scanners have.

    python benchmarks/quality/native_sizes.py CHECKPOINT MODEL.onnx --scans DIR --out FILE.json

Every scan is resampled in plane to each size, and segmented by the torch model, which resamples to its grid and back in
its first and last layers, and by the ONNX file in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parotid_seg.export.parity import ComparedScan, compare, resized, torch_labels
from parotid_seg.files import write_text
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.discovery import find_scans
from parotid_seg.runtime.pipeline.sources import place_of, read_scan
from parotid_seg.scan.chunks import segmented
from parotid_seg.scan.intensity import in_windows
from parotid_seg.system import versions_of
from parotid_seg.train.checkpoint import load_checkpoint

SIZES = (96, 160, 256, 512, 640)


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10, help="scans, the first of the folder")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    net, backend = (
        load_checkpoint(arguments.checkpoint).network(),
        load_backend(arguments.model, "onnxruntime", "cpu", allow_unverified=True),
    )
    contract = backend.contract
    rows: list[dict[str, Any]] = []
    for sources in find_scans([arguments.scans], contract.channels)[0][: arguments.count]:
        volume, windows = in_windows(read_scan(sources).volume, contract.channels, contract.windows)
        for size in SIZES:
            voxels = resized(volume.voxels, size / volume.shape[2])
            _, _, height, width = voxels.shape
            spacing_z, spacing_y, spacing_x = volume.spacing_mm
            spacing_mm = (spacing_z, spacing_y * volume.shape[1] / height, spacing_x * volume.shape[2] / width)
            scan = replace(volume, voxels=voxels, spacing_mm=spacing_mm)
            comparison = ComparedScan(
                place_of(sources[0]).name, scan, windows, torch_labels(net, scan, windows, contract.grid), None
            )
            labels = segmented(scan, windows, contract.grid, 16, partial(labels_of, backend))
            row = compare(comparison, labels, 16, len(contract.labels))
            gland = int(np.count_nonzero((comparison.expected > 0) | (labels > 0)))
            rows.append({"scan": row.scan, "size": row.size, "gland_voxels": gland, "changed": row.changed})
            print(f"{row.scan} {row.size}: {row.changed} of {gland} gland voxels changed", flush=True)
    by_size = {}
    for size in SIZES:
        of_size = [row for row in rows if row["size"][2] == size]
        changed, gland = (sum(row[name] for row in of_size) for name in ("changed", "gland_voxels"))
        by_size[size] = {"scans": len(of_size), "equal_share": 1 - changed / max(1, gland)}
        print(f"{size} pixels: {by_size[size]['equal_share']:.4%} of {gland} gland voxels are equal")
    versions = versions_of(("parotid-seg", "torch", "onnxruntime"))
    content = {"versions": versions, "date": time.strftime("%F"), "by_size": by_size, "rows": rows}
    write_text(json.dumps(content, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
