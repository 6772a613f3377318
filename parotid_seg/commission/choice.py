"""Which of two models to use, in words."""

from __future__ import annotations

from collections.abc import Mapping

from parotid_seg.commission.record import CommissionModelRecord, Equal
from parotid_seg.contract import Contract
from parotid_seg.runtime.compare import FEWEST, ComparisonRecord
from parotid_seg.scan.seen import is_packaged


def equality(
    models: tuple[CommissionModelRecord, CommissionModelRecord],
    contracts: tuple[Contract, Contract],
    masks: tuple[Mapping[str, str], Mapping[str, str]],
) -> Equal | None:
    """In what two models are equal; None if they differ in their masks.

    Args:
        models, contracts: of both.
        masks: hashes of the voxels of both models' masks, by patient.
    """
    if models[0].sha256 == models[1].sha256:
        return "file"
    if contracts[0].graph_sha256 and contracts[0].graph_sha256 == contracts[1].graph_sha256:
        return "network"
    return "masks" if masks[0] == masks[1] and contracts[0].labels == contracts[1].labels else None


def advice(
    comparison: ComparisonRecord, a: CommissionModelRecord, b: CommissionModelRecord, equal: Equal | None
) -> str:
    """Which model to use.

    Args:
        comparison: of masks of `a` and of `b`.
        a: the model that the commissioned one is compared with.
        b: the commissioned one.
        equal: see `equality`.
    """
    models, patients = {"A": a, "B": b}, len(comparison.patients)
    both = f"A ({a.name}) and B ({b.name})"
    if equal:
        return {
            "file": f"{both} are the same model file: there is nothing to choose.",
            "network": f"{both} are the same network with the same weights: there is nothing to choose.",
            "masks": f"{both} give equal masks of all {patients} patients: these cannot tell which to use.",
        }[equal]
    known = "B" if is_packaged(b.sha256) else "A"
    keep = f"keep {known} ({models[known].name})"
    if comparison.better:
        better, other = ("A", "B") if comparison.better == "A" else ("B", "A")
        verb = "Keep" if better == known else "Use"
        text = f"{verb} {better} ({models[better].name}): it is better on these patients than {models[other].name}."
    elif patients < FEWEST:
        text = f"{patients} patient{'s are' if patients != 1 else ' is'} too few to choose between {both}: {keep}."
    else:
        text = f"B ({b.name}) is not shown to be better than A ({a.name}), or A than B: {keep}."
    for letter, model in models.items():
        if count := sum(name in comparison.patients for name in model.trained_on):
            text += f" But {letter} was trained on {count} of these {patients} patients, which counts in its favour."
    return text
