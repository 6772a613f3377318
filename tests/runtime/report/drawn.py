"""Scans with drawn glands, and an executor that finds them: runs without a model, equal on every machine."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import nibabel
import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Contract, Grid
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.pipeline.case_runner import run_case
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, WorkerConfig
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.scan.chunks import CroppedScan

LEFT, RIGHT = 400, 300
"""HU of the glands that are drawn into a scan, give or take `NOISE`."""
NOISE = 3
AFFINE = np.diag([-5.0, -5.0, 5.0, 1.0])
TURNED = np.array([[-4.7, 1.71, 0, 0], [-1.71, -4.7, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1.0]])


def write(
    path: Path,
    left: tuple[int, int, int] | None = (10, 18, 30),
    right: tuple[int, int, int] | None = (10, 18, 8),
    size: tuple[int, int] = (5, 5),
    affine: NDArray[Any] = AFFINE,
    codes: int = 1,
) -> None:
    """Write a scan of `drawn_voxels` as NIfTI."""
    image = nibabel.Nifti1Image(drawn_voxels(left, right, size).transpose(2, 1, 0), affine)
    image.set_sform(affine, codes)
    image.set_qform(affine, codes)
    nibabel.save(image, path)


def drawn_voxels(
    left: tuple[int, int, int] | None = (10, 18, 30),
    right: tuple[int, int, int] | None = (10, 18, 8),
    size: tuple[int, int] = (5, 5),
) -> NDArray[np.int16]:
    """A scan of 24 slices of 5 mm with two glands, cubes that begin at these voxels; None for no gland."""
    voxels = np.full((24, 40, 44), -1000, np.int16)
    rng = np.random.default_rng(0)
    voxels[:, 2:38, 2:42] = rng.normal(-105, 15, (24, 36, 40))
    voxels[::2, 2:38, [2, 41]] = -1000  # uneven skin: straight skin would be the end of the field of view
    voxels[:, 5:35, 5:39] = rng.normal(40, 15, (24, 30, 34))
    voxels[:, 28:34, 18:26] = rng.uniform(200, 1400, (24, 6, 8))
    for value, place, edge in ((LEFT, left, size[0]), (RIGHT, right, size[1])):
        if place:
            voxels[tuple(slice(at, at + edge) for at in place)] = rng.integers(
                value - NOISE, value + NOISE + 1, 3 * (edge,)
            )
    return voxels


class Here:
    """An `Executor` in this process, whose model finds the glands that were drawn."""

    agreement: ClassVar[dict[str, float]] = {"parotid_left": 0.9, "parotid_right": 0.99}
    contract = Contract(("background", "parotid_left", "parotid_right"), ("CT",), ((-200.0, 300.0),), Grid())
    model_sha256, ran = "ab" * 32, ExecutionInfo("drawn", "cpu", "fp32")
    about: Mapping[str, object] = MappingProxyType({})

    def do(self, work: WorkerConfig, jobs: Iterable[CaseRequest]) -> Iterator[CaseResult]:
        for job in jobs:
            yield CaseResult(*run_case(work, job.case, job.known, self.labelled))

    def close(self) -> None:
        pass

    def __str__(self) -> str:
        return str(self.ran)

    def labelled(self, covered: CroppedScan) -> Prediction:
        """Labels of what the model's grid covers of a scan."""
        left, right = (abs(covered.voxels[0].astype(np.float32) - value) <= NOISE for value in (LEFT, RIGHT))
        return Prediction((left + 2 * right).astype(np.uint8), self.agreement, 0.0)
