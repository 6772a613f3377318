"""Does what notices misplaced and damaged slices stay silent on intact scans, and see faults?

    python benchmarks/quality/slice_order.py SCAN... --out FILE.json

Counts the scans with each flag of `scan.ct.slice_order`: unchanged, after changes that leave slices in
their order, and with faults at places that are drawn at random among the slices that show the patient.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from numpy.typing import NDArray
from resources import machine_and_versions

from parotid_seg.files import write_text
from parotid_seg.runtime.pipeline.discovery import find_scans
from parotid_seg.runtime.pipeline.sources import place_of, read_scan
from parotid_seg.scan.ct.slice_order import TISSUE_HU, misfits
from parotid_seg.scan.volume import Orientation

Slices = NDArray[np.int16]
SEED = 20261129
CT = ("CT",)
AXIAL = Orientation((2, 1, 0), (False,) * 3)
ALONG = {"coronal slices": (1, 2, 0), "sagittal slices": (1, 0, 2)}
"""Storage axes by canonical axis: the last one has the slices."""


def changed(slices: Slices, rng: np.random.Generator) -> Iterator[tuple[str, Slices]]:
    """The scan as it is, after harmless changes, and with faults."""
    noise = rng.normal(0, 40, slices.shape).astype(np.int16)
    yield "intact: unchanged", slices
    yield "intact: every third slice", slices[::3]
    yield "intact: noise of 40 HU", slices + noise
    yield "fault: even slices first", slices[_alternating(len(slices), 2)]
    yield "fault: even slices first, of every third slice", slices[::3][_alternating(len(slices[::3]), 2)]
    yield "fault: every fourth slice first", slices[_alternating(len(slices), 4)]
    yield "fault: random order", slices[rng.permutation(len(slices))]
    shown = np.flatnonzero((slices > TISSUE_HU).mean(axis=(1, 2)) > 0.02)
    places = shown[(shown >= 20) & (shown < len(slices) - 20)]
    if not len(places):
        return
    at = int(rng.choice(places))
    for name, fault in {
        "a slice of air": np.full_like(slices[at], -1000),
        "a slice upside down": slices[at, ::-1],
        "a slice left to right": slices[at, :, ::-1],
        "a slice of 20 slices below": slices[at - 20],
        "a slice repeated": slices[at - 1],
        "a slice + 100 HU": slices[at] + 100,
        "a slice + 1024 HU": slices[at] + 1024,
    }.items():
        yield f"fault: {name}", np.concatenate([slices[:at], fault[None], slices[at + 1 :]])
    for shift in (100, 200):
        block = slices.copy()
        block[at : at + 7] += np.int16(shift)
        yield f"fault: seven slices + {shift} HU", block
    yield (
        "fault: 20 slices exchanged with the next 20",
        slices[np.r_[: at - 20, at : at + 20, at - 20 : at, at + 20 : len(slices)]],
    )


def _alternating(count: int, every: int) -> NDArray[np.int64]:
    """An order of slices: one of so many first, then the next one of each."""
    return np.argsort(np.arange(count) % every, kind="stable")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+", help="CTs in axial slices, or folders of them")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    scans, errors = find_scans(arguments.scans, ("CT",))
    for error in errors:
        print(f"not a scan: {error}")
    rng = np.random.default_rng(SEED)
    counts: dict[str, Counter[str]] = {}
    unchanged: dict[str, list[str]] = {}
    for scan in scans:
        volume = read_scan(scan).volume
        slices = volume.voxels[0].astype(np.int16)
        for name, voxels in changed(slices, rng):
            flags = misfits(replace(volume, voxels=voxels[None], orientation=AXIAL), CT)
            counts.setdefault(name, Counter()).update(
                ["scans", *(flag.code for flag in flags), *["flagged"][: len(flags)]]
            )
            if flags and name == "intact: unchanged":
                unchanged[place_of(scan[0]).name] = [f"{flag.code}: {flag.detail}" for flag in flags]
        for name, axes in ALONG.items():
            flags = misfits(replace(volume, voxels=slices[None], orientation=Orientation(axes, (False,) * 3)), CT)
            counts.setdefault(f"intact: {name}", Counter()).update(["scans", *["flagged"][: len(flags)]])
    for name, found in sorted(counts.items()):
        print(f"{name}: {found['flagged']} of {found['scans']} flagged")
    content = {**machine_and_versions(), "counts": counts, "unchanged": unchanged}
    write_text(json.dumps(content, indent=1), arguments.out)


if __name__ == "__main__":
    main()
