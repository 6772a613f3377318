"""The scans that weights were trained on: hashes of their voxels, as checkpoints and models record them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parotid_seg.files import hash_file
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.scan.intensity import Window, in_windows
from parotid_seg.scan.nifti import read_nifti

HASH_DIGITS = 16
"""Hexadecimal digits of a scan's hash that models record."""


@dataclass(frozen=True)
class Seen:
    """The scans that weights were trained on, as a checkpoint or a model records them in `training`.

    Attributes:
        scans: the first `HASH_DIGITS` of each one's hash (see `voxels_hash`), with those of earlier trainings.
        complete: whether it is known that there are no others.
    """

    scans: tuple[str, ...] = ()
    complete: bool = True

    @classmethod
    def recorded(cls, training: Mapping[str, Any]) -> Seen:
        """Of a checkpoint's or a contract's `training`."""
        found = training.get("scans")
        scans = found if isinstance(found, list) and all(isinstance(each, str) for each in found) else []
        return cls(tuple(scans), isinstance(found, list) and training.get("scans_complete") is True)

    def record(self, hashes: Iterable[str]) -> dict[str, Any]:
        """The same with the scans of a training, by their hashes, as fields of `training`."""
        own = {each[:HASH_DIGITS] for each in hashes}
        return {"scans": sorted({*self.scans, *own}), "scans_complete": self.complete}

    def has(self, sha256: str) -> bool:
        """Whether a scan of this hash is among them."""
        return sha256[:HASH_DIGITS] in self.scans


def is_packaged(model_sha256: str) -> bool:
    """Whether a model's file is a copy of the packaged one, by its hash."""
    return model_sha256 == hash_file(DEFAULT_MODEL)


def voxels_hash(voxels: NDArray[Any]) -> str:
    """Hash of a scan's voxels (C, D, H, W) in canonical order, after `in_windows`."""
    return hashlib.sha256(np.ascontiguousarray(voxels).data).hexdigest()


def hash_of_scan(files: Sequence[Path], channels: Sequence[str], fixed: Sequence[Window | None]) -> str:
    """Hash of the voxels of a scan in NIfTI files, see `voxels_hash`.

    Args:
        files: of its channels.
        channels, fixed: names and windows of the model's channels, see `in_windows`.

    Raises:
        ScanError: if the scan cannot be used.
    """
    return voxels_hash(in_windows(read_nifti(*files).volume, channels, fixed)[0].voxels)
