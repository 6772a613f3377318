"""Is what the sparse search finds what looking everywhere gives? Masks of both, scan by scan, and the samples computed.

    python benchmarks/quality/locate.py SCAN... --out FILE.json

Every scan is segmented twice with the grid at the same place: with `--search auto`, and everywhere. The place is the
one that the search chose; how far it lies from the middle of all tissue is told, too. Masks are compared after
clean-up. `--slices 700` makes whole bodies of the scans: their lowest slice is repeated below them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from resources import machine_and_versions

from parotid_seg.contract import Contract
from parotid_seg.errors import ScanError
from parotid_seg.files import hash_file, write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.discovery import find_scans
from parotid_seg.runtime.pipeline.sources import Scan, place_of, read_scan
from parotid_seg.runtime.segmentation.locate import Ask, labels_of_scan
from parotid_seg.runtime.segmentation.segment import asking, prepare
from parotid_seg.scan.chunks import sample_step
from parotid_seg.scan.components import keep_largest_components, label_boxes


@dataclass(frozen=True)
class Compared:
    """One scan.

    Attributes:
        scan: its place.
        slices: of the scan.
        samples: of the scan, all of which are computed when looking everywhere.
        computed: samples that the search computed, all places together.
        moved_mm: from the middle of all tissue to the grid's, rows and columns.
        differing: voxels that are labelled otherwise.
        heights_mm: of each structure when looking everywhere; 0 if it was not found.
    """

    scan: str
    slices: int
    samples: int
    computed: int
    moved_mm: tuple[float, float]
    differing: int
    heights_mm: tuple[float, ...]


def compared(scan: Scan, contract: Contract, ask: Ask, least_slices: int = 0) -> Compared:
    """Segment a scan of at least so many slices both ways."""
    volume = read_scan(scan).volume
    below = max(0, least_slices - volume.shape[0])
    voxels = np.concatenate([np.repeat(volume.voxels[:, :1], below, axis=1), volume.voxels], axis=1)
    prepared = prepare(replace(volume, voxels=voxels), contract)
    covered, found = labels_of_scan(prepared, ask)
    everywhere = ask(replace(covered, samples=None, grow=False))
    masks = [keep_largest_components(each.labels, contract.labels) for each in (found, everywhere)]
    distance_mm, row_mm, column_mm = prepared.volume.spacing_mm
    usual = prepared.crop_to_grid()
    slices = prepared.volume.shape[0]
    return Compared(
        scan=place_of(scan[0]).name,
        slices=slices,
        samples=-(-slices // sample_step(distance_mm, contract.grid)),
        computed=found.computed,
        moved_mm=(
            _moved(usual.rows, covered.rows) * row_mm,
            _moved(usual.columns, covered.columns) * column_mm,
        ),
        differing=int(np.count_nonzero(masks[0] != masks[1])),
        heights_mm=tuple(
            (box[0].stop - box[0].start) * distance_mm if box else 0.0
            for box in label_boxes(masks[1], len(contract.labels) - 1)
        ),
    )


def _moved(usual: slice, now: slice) -> int:
    """By how many voxels; one end of both may be the scan's."""
    return int(now.start - usual.start or now.stop - usual.stop)


def summary(results: Sequence[Compared]) -> list[str]:
    """What there is to know, in lines."""
    shares = np.array([each.computed / each.samples for each in results])
    heights = [height for each in results for height in each.heights_mm if height]
    moved = sum(any(each.moved_mm) for each in results)
    return [
        f"scans: {len(results)}; masks equal in every voxel: {sum(not each.differing for each in results)}",
        f"share of samples computed: mean {shares.mean():.3f}, median {np.median(shares):.3f}, "
        f"from {shares.min():.3f} to {shares.max():.3f}",
        f"grid moved from the middle of all tissue: {moved} scans",
        f"lowest structure: {min(heights):.1f} mm of {len(heights)}",
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+", help="scans, or folders of scans")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--slices", type=int, default=0, help="repeat the lowest slice up to this number of slices")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    backend = load_backend(arguments.model, arguments.backend)
    scans, errors = find_scans(arguments.scans, backend.contract.channels)
    for error in errors:
        print(f"not a scan: {error}")
    ask = asking(backend, backend.batch_size)
    results: list[Compared] = []
    for scan in scans:
        try:
            results.append(compared(scan, backend.contract, ask, arguments.slices))
        except ScanError as error:
            print(f"not compared: {place_of(scan[0])}: {error}")
            continue
        each = results[-1]
        print(f"{each.scan}: {each.computed} of {each.samples} samples, {each.differing} voxels differ", flush=True)
    print(*summary(results), sep="\n")
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "model_sha256": hash_file(arguments.model),
        "ran": str(backend.ran),
        **machine_and_versions(),
        "scans": [asdict(each) for each in results],
    }
    write_text(json.dumps(record, indent=1), arguments.out)


if __name__ == "__main__":
    main()
