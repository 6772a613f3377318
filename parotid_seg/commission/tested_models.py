"""The tested models: on which of the patients a model was trained, by the hashes of scans that it records, and which of
two models to use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from parotid_seg.commission.conditions import determining
from parotid_seg.commission.labelled import Labelled
from parotid_seg.commission.record import CommissionModelRecord, Equal
from parotid_seg.contract import Contract
from parotid_seg.runtime.compare import FEWEST, ComparisonRecord
from parotid_seg.scan.seen import Seen, hash_of_scan, is_packaged


class Hashes:
    """Hashes of the patients' scans, each read when it is first asked for.

    Args:
        patients: by name.
    """

    def __init__(self, patients: Mapping[str, Labelled]) -> None:
        self._patients, self._known = patients, dict[tuple[object, ...], str]()

    def of(self, name: str, contract: Contract) -> str:
        """The hash of a patient's scan, as a model with these channels records it.

        Raises:
            ScanError: if the scan cannot be read.
        """
        key = (name, contract.channels, contract.windows)
        if key not in self._known:
            files = self._patients[name].channels(len(contract.channels))
            self._known[key] = hash_of_scan(files, contract.channels, contract.windows)
        return self._known[key]


def model_record(
    name: str, sha256: str, contract: Contract, tested: Iterable[str], hashes: Hashes
) -> CommissionModelRecord:
    """The record of a model.

    Args:
        name: in words.
        sha256: hash of its file.
        contract: its contract, which says what it was trained on.
        tested: patients with a mask.
        hashes: of their scans.

    Raises:
        ScanError: if a scan cannot be read.
    """
    seen = Seen.recorded(contract.training)
    found = [each for each in tested if seen.has(hashes.of(each, contract))] if seen.scans else []
    return CommissionModelRecord(name=name, sha256=sha256, trained_on=tuple(found), scans_complete=seen.complete)


def in_words(model: CommissionModelRecord, tested: int) -> str:
    """Whether a model was trained on some of so many tested patients."""
    if found := model.trained_on:
        text = f"{model.name} was trained on {len(found)} of these {tested} patients ({', '.join(found)}): "
        text += "its figures are better than those of new patients would be"
        return text if model.scans_complete else f"{text}; which other scans it was trained on is not recorded"
    if not model.scans_complete:
        unknown = "not recorded which scans it was trained on; whether these patients are among them is not known"
        return f"{model.name}: {unknown}"
    return f"{model.name} was trained on none of these scans, compared voxel by voxel"


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
    same_use = determining(contracts[0]) == determining(contracts[1])
    if same_use and contracts[0].graph_sha256 and contracts[0].graph_sha256 == contracts[1].graph_sha256:
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
