"""Scores of a network in a file: NAME.npz with `scores`, a byte each (255 is 1) for every gland and voxel of the part
of the scan (canonical order: superior, posterior, left) that begins at `corner`; they are 0 elsewhere in the scan,
which has the sizes `shape`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parotid_seg.files import write_bytes
from parotid_seg.scan.components import label_boxes


def write_scores(scores: NDArray[np.float32], path: Path) -> None:
    """Write scores (glands, D, H, W), rounded to 1/255."""
    levels = (255 * scores).round().astype(np.uint8)
    (box,) = label_boxes((levels.max(axis=0) > 0).astype(np.uint8), 1)
    part = box or (slice(0, 0),) * 3
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        scores=levels[(slice(None), *part)],
        corner=np.array([side.start for side in part]),
        shape=np.array(scores.shape[1:]),
    )
    write_bytes(packed.getvalue(), path)


def read_scores(path: Path) -> NDArray[np.float32]:
    """The scores (glands, D, H, W) in a file of `write_scores`."""
    with np.load(path) as stored:
        found = stored["scores"]
        scores = np.zeros((len(found), *stored["shape"]), np.float32)
        part = tuple(slice(first, first + size) for first, size in zip(stored["corner"], found.shape[1:], strict=True))
        scores[(slice(None), *part)] = found / np.float32(255)
    return scores
