"""What `parotid-seg commission` finds: planted faults by number of patients, equal runs, and another HU window.

    python benchmarks/quality/planted_faults.py DATA --out FILE.json

The packaged model segments the patients that `commission` would use. Faults are then made in all of its masks, and
random groups of patients are looked at: how often is the fault named, and how often is a shift named that was not made?
Equal runs are commissionings of two patients, each compared with the one before. The other window is the packaged model
with -160 to 240 HU in its contract.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import onnx
from numpy.typing import NDArray
from resources import machine_and_versions

from parotid_seg.commission.commissioning import Order, RunnableModel, commission
from parotid_seg.commission.drift import MASKS
from parotid_seg.commission.faults import Signs, faults_in, signs_of
from parotid_seg.commission.labelled import Chosen, choose
from parotid_seg.commission.limits import read_limits
from parotid_seg.commission.record import CommissionRecord, read_commission
from parotid_seg.export.onnx_file import with_contract
from parotid_seg.files import hash_file, write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.records import record_text
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.label_match import match_labels
from parotid_seg.runtime.pipeline.executor import LocalExecutor
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.scan.nifti import read_mask

Labels = NDArray[np.uint8]
GROUPS = (3, 5, 10, 20)
"""Numbers of patients that are looked at together."""
WINDOW = (-160.0, 240.0)


def without_half(labels: Labels) -> Labels:
    """Without the upper half of the left gland, by its voxels."""
    cut, places = labels.copy(), np.argwhere(labels == 1)[:, 0]
    if places.size:
        upper = cut[int(np.median(places)) + 1 :]
        upper[upper == 1] = 0
    return cut


def exchanged(labels: Labels) -> Labels:
    """With the sides exchanged."""
    return np.array([0, 2, 1], np.uint8)[labels]


def shifted(axis: int, by: int, labels: Labels) -> Labels:
    """Shifted by voxels along an axis."""
    return np.roll(labels, by, axis)


FAULTS: Mapping[str, tuple[Callable[[Labels], Labels], str]] = {
    "none": (lambda labels: labels, ""),
    "sides exchanged": (exchanged, "left and right seem exchanged"),
    "upper half of the left gland missing": (without_half, "the upper part of the left parotid is missing"),
    **{
        f"shifted by 1 voxel to {words}": (partial(shifted, axis, by), f"by 1 voxel to {words},")
        for axis, by, words in (
            (0, 1, "superior"),
            (0, -1, "inferior"),
            (1, 1, "posterior"),
            (1, -1, "anterior"),
            (2, 1, "the left"),
            (2, -1, "the right"),
        )
    },
}
"""How a mask is changed, and the words that name it."""


def commissioned(chosen: Chosen, out: Path, model: Path, earlier: Path | None = None) -> CommissionRecord:
    """Commission a model with the engine that is equal everywhere."""

    @cache
    def load() -> Backend:
        return load_backend(model, "onnxruntime", "cpu", output="labels", allow_unverified=True, say=lambda _: None)

    options = InferOptions()
    run = RunnableModel(model.name, lambda: LocalExecutor(load, options, lambda _: None))
    before = read_commission(earlier) if earlier else None
    return commission(Order(chosen, out, run, read_limits(None, dose=False), earlier=before, options=options))


def recognised(chosen: Chosen, out: Path, names: Sequence[str], draws: int) -> dict[str, Any]:
    """For each fault and number of patients the shares of groups in which it, and anything else, is named."""
    labels = match_labels(out / MASKS, chosen.references)
    pairs = {}
    for name in names:
        patient = chosen.patients[name]
        mask, reference, _ = labels.common(
            read_mask(out / MASKS / f"{name}.nii.gz")[0], read_mask(patient.reference)[0]
        )
        pairs[name] = mask, reference
    found: dict[str, Any] = {}
    for fault, (change, words) in FAULTS.items():
        signs = {name: signs_of(change(mask), reference, labels.names) for name, (mask, reference) in pairs.items()}
        sizes = [*(size for size in GROUPS if size < len(names)), len(names)]
        found[fault] = {str(size): shares(signs, size, draws if size < len(names) else 1, words) for size in sizes}
    return found


def shares(signs: Mapping[str, Signs], size: int, draws: int, words: str) -> dict[str, float]:
    """The shares of random groups in which faults are named.

    Args:
        signs: of all patients.
        size: patients of a group.
        draws: number of groups.
        words: what names the planted fault; empty for none.
    """
    rng, named, other_shifts = np.random.default_rng(0), 0, 0
    for _ in range(draws):
        group = rng.choice(sorted(signs), size, replace=False)
        faults = faults_in({name: signs[name] for name in group}, "references")
        named += bool(words) and any(words in each.text for each in faults)
        other_shifts += any(each.kind == "shifted" and (not words or words not in each.text) for each in faults)
    return {"groups": draws, "named": named / draws, "another shift named": other_shifts / draws}


def with_window(path: Path) -> Path:
    """Write the packaged model with another window in its contract."""
    content, contract, _ = read_model(DEFAULT_MODEL)
    path.write_bytes(with_contract(onnx.load_from_string(content), replace(contract, windows=(WINDOW,))))
    return path


def main() -> None:
    """Write the shares, the alarms and the words of the other window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--draws", type=int, default=100, help="groups of each size")
    parser.add_argument("--runs", type=int, default=50, help="equal runs")
    arguments = parser.parse_args()
    chosen = choose(arguments.data)
    few = replace(chosen, patients=dict(list(chosen.patients.items())[:2]))
    with tempfile.TemporaryDirectory() as folder:
        all_of_them = Path(folder) / "all"
        record = commissioned(chosen, all_of_them, DEFAULT_MODEL)
        planted = recognised(chosen, all_of_them, record.patients.names, arguments.draws)
        equal = Path(folder) / "equal"
        verdicts = [commissioned(few, equal, DEFAULT_MODEL).drift for _ in range(arguments.runs + 1)][1:]
        other = commissioned(few, Path(folder) / "window", with_window(Path(folder) / "window.onnx"), equal)
    content = {
        "model_sha256": hash_file(DEFAULT_MODEL),
        **machine_and_versions(),
        "data": chosen.why,
        "faults as they are": {each.text: each.patients for each in record.faults},
        "planted": planted,
        "equal runs": len(verdicts),
        "alarms in equal runs": sum(not each or bool(each.changed or each.conditions) for each in verdicts),
        "another window": other.drift.verdict if other.drift else "",
    }
    write_text(record_text(content), arguments.out)


if __name__ == "__main__":
    main()
