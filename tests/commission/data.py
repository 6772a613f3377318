"""Labelled patients with drawn glands, and models that find them, right or with a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from parotid_seg.commission.commissioning import Order, RunnableModel, commission
from parotid_seg.commission.labelled import choose
from parotid_seg.commission.limits import read_limits
from parotid_seg.commission.record import CommissionRecord, read_commission
from parotid_seg.contract import Contract
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.scan.chunks import CroppedScan
from tests.runtime.report.drawn import AFFINE, LEFT, NOISE, RIGHT, Here, drawn_voxels

DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "parotid_left": 1, "parotid_right": 2},
    "file_ending": ".nii.gz",
}
Fault = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def write_patient(data: Path, name: str, up: int = 0, folders: tuple[str, str] = ("imagesTr", "labelsTr")) -> None:
    """Write a scan with two glands of 30 mm, so many slices higher than usual, and its label map."""
    voxels = drawn_voxels((8 + up, 17, 29), (8 + up, 17, 8), (6, 6))
    voxels[0, 0, :8] += np.frombuffer(f"{name:8.8}".encode(), np.uint8)  # no two patients have the same scan
    labels = np.select([np.abs(voxels - LEFT) <= NOISE, np.abs(voxels - RIGHT) <= NOISE], [1, 2]).astype(np.uint8)
    drawn_in = np.zeros_like(voxels, np.uint8)
    glands = (slice(8 + up, 14 + up), slice(17, 23))
    drawn_in[glands] = labels[glands]  # not the bone of this intensity
    for folder, content, ending in ((folders[0], voxels, "_0000.nii.gz"), (folders[1], drawn_in, ".nii.gz")):
        (data / folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(content.transpose(2, 1, 0), AFFINE), data / folder / f"{name}{ending}")


def data_set(folder: Path, patients: int = 4) -> Path:
    """A data set of so many patients, p0 and on."""
    for number in range(patients):
        write_patient(folder, f"p{number}", up=number % 3)
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return folder


class Faulty(Here):
    """Finds the glands, and then makes a fault.

    Args:
        fault: changes a label map (D, H, W) of a part of the scan.
        sha256: hash of its file.
        contract: its contract.
    """

    def __init__(
        self, fault: Fault = lambda labels: labels, sha256: str = Here.model_sha256, contract: Contract = Here.contract
    ) -> None:
        self._fault, self.model_sha256, self.contract = fault, sha256, contract

    def labelled(self, covered: CroppedScan) -> Prediction:
        return replace_labels(super().labelled(covered), self._fault)


def replace_labels(prediction: Prediction, fault: Fault) -> Prediction:
    """A prediction with other labels."""
    return replace(prediction, labels=np.ascontiguousarray(fault(prediction.labels)))


def swapped(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Left is right."""
    return np.array([0, 2, 1], np.uint8)[labels]


def shifted(axis: int, by: int = 1) -> Fault:
    """Shifted by a voxel."""
    return lambda labels: np.roll(labels, by, axis)


def halved(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Without the upper half of the left gland."""
    slices = np.flatnonzero((labels == 1).any(axis=(1, 2)))
    cut = labels.copy()
    if len(slices):
        upper = cut[int(np.median(slices)) + 1 :]
        upper[upper == 1] = 0
    return cut


def worse(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Without the lowest slice of each gland."""
    return labels * (labels == np.roll(labels, 1, 0))


def run(
    data: Path,
    out: Path,
    model: Here | None = None,
    *,
    against: Here | None = None,
    earlier: Path | None = None,
    limits: Path | None = None,
    dose: Path | None = None,
) -> CommissionRecord:
    """Commission a model."""
    executor = model or Faulty()
    other = RunnableModel("other.onnx", lambda: against) if against else None
    order = Order(
        choose(data),
        out,
        RunnableModel("mine.onnx", lambda: executor),
        read_limits(limits, dose=dose is not None),
        other,
        read_commission(earlier) if earlier else None,
        dose,
        InferOptions(),
    )
    return commission(order)
