"""Which of the tested patients a model was trained on, by the hashes of scans that it records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from parotid_seg.commission.labelled import Labelled
from parotid_seg.commission.record import CommissionModelRecord
from parotid_seg.contract import Contract
from parotid_seg.scan.seen import Seen, hash_of_scan


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
