"""What is measured with, all of it made from the package: scans, the trained network, and graphs of the model."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.rewriting.gpu_graph import GpuGraph

SIDE, SLICES = 512, 288
"""Rows and columns, and slices, of a made scan: an ordinary CT, long enough for chunks of 256 samples."""
SCANS = 2
GRAPHS = ("fp32", "fp16", "fp32 fused", "fp16 fused")
"""Graphs of a model: the file itself, and those that are made for a GPU (docs/engines.md)."""
VARIANTS = {
    "biases in convolutions": {"fuse_conv_bias": "1"},
    "attention without cuDNN": {"sdpa_kernel": "16"},
    "NHWC": {"prefer_nhwc": "1"},
}
"""Options of onnxruntime's CUDA provider that only a GPU can judge, tried with the last of `GRAPHS`."""


def make_scans(folder: Path, count: int = SCANS, side: int = SIDE, slices: int = SLICES) -> list[Path]:
    """The example scan with finer rows and columns, and repeated, each time mirrored, until it is long enough.

    Args:
        folder: where they are written; those that are there stay.
        count: how many; each begins at another slice of the example.
        side: rows and columns, over the same millimetres.
        slices: of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"made-{number}_0000.nii.gz" for number in range(count)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        example = nibabel.load(next((example_folder() / "imagesTr").glob("*.nii.gz")))
        voxels = np.asarray(example.dataobj)
        for axis in (0, 1):
            voxels = _finer(voxels, side, axis)
        voxels = np.take(voxels, _to_and_fro(voxels.shape[2], slices, first=number * 20), axis=2)
        affine = example.affine @ np.diag([example.shape[0] / side, example.shape[1] / side, 1.0, 1.0])
        scan = nibabel.Nifti1Image(voxels, affine)
        scan.header.set_xyzt_units("mm")
        partial = path.with_name(f".{path.name}")
        nibabel.save(scan, partial)
        partial.rename(path)
    return paths


def _finer(voxels: NDArray[np.generic], side: int, axis: int) -> NDArray[np.int16]:
    """Linear interpolation along an axis to a number of samples over the same length."""
    old = voxels.shape[axis]
    places = np.clip((np.arange(side) + 0.5) * old / side - 0.5, 0, old - 1)
    low = np.minimum(places.astype(int), old - 2)
    share = (places - low).reshape([-1 if each == axis else 1 for each in range(voxels.ndim)])
    one, other = (np.take(voxels, low + step, axis=axis) for step in (0, 1))
    between: NDArray[np.int16] = np.round(one * (1 - share) + other * share).astype(np.int16)
    return between


def _to_and_fro(length: int, count: int, first: int) -> NDArray[np.int64]:
    """Indices 0, 1, ... length - 1, length - 1, ... 1, 0, 0, 1, ..., from a position on."""
    there = np.arange(length)
    return np.take(np.concatenate([there, there[::-1]]), np.arange(first, first + count), mode="wrap")


def make_checkpoint(path: Path) -> Path:
    """The packaged model's network for torch; a file that is there stays."""
    from packaged_checkpoint import unproven_checkpoint

    from parotid_seg.train.checkpoint import save_checkpoint

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(unproven_checkpoint(), path)
    return path


def graph_file(name: str, model: Path = DEFAULT_MODEL) -> Path:
    """The file of a graph of a model in FP32, made and kept as `infer` does it on first use.

    Args:
        name: one of `GRAPHS`.
        model: the model file. A file in FP16 that lies beside it is taken.

    Raises:
        ParotidSegError: as `GpuGraph.made`.
    """
    precision, _, fused = name.partition(" ")
    beside = model.with_suffix(".fp16.onnx")
    has_own = precision == "fp16" and beside.exists()
    source = beside if has_own else model
    if not fused and (precision == "fp32" or has_own):
        return source
    return GpuGraph(source, precision, fused=bool(fused)).made()
