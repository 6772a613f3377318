"""What is measured with, all of it made from the package: scans, the trained network, and the model in FP16."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from parotid_seg.files import write_bytes
from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.model_file import read_model

SIDE, SLICES = 512, 288
"""Rows and columns, and slices, of a made scan: an ordinary CT, long enough for chunks of 256 samples."""
SCANS = 2


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


def make_fp16(path: Path, model: Path = DEFAULT_MODEL) -> Path:
    """A model file of FP32, whose weights are stored in FP16, computing in FP16. It is not verified.

    The one that lies beside the model is taken where there is one. A file that is there stays.
    """
    packaged = model.with_suffix(".fp16.onnx")
    if path.exists() or packaged.exists():
        return path if path.exists() else packaged
    import onnx

    from parotid_seg.export.onnx_file import with_contract
    from parotid_seg.runtime.engines.rewriting.precision import lower, with_whole_weights

    content, contract = read_model(model)
    lowered = lower(with_whole_weights(onnx.load_from_string(content)), "fp16", lambda _: False)
    contract = dataclasses.replace(contract, precision="fp16", weights="fp16", verification={})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(with_contract(lowered, contract), path)
    return path
