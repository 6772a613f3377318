"""Segment scans the way published research code does: eager torch, a slice at a time, scipy for the resampling.

    python benchmarks/speed/plain_loop.py CHECKPOINT OUT SCAN...

Same weights and nearly the same masks as `parotid-seg infer`; it prints the seconds each scan took. Loading the network
is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage

from parotid_seg.contract import Grid
from parotid_seg.train.checkpoint import load_checkpoint
from parotid_seg.train.network import ParotidNet


def to_canonical(image: nibabel.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Voxels as (superior, posterior, left), and their spacing in mm."""
    ras = nibabel.as_closest_canonical(image)
    voxels = np.asarray(ras.dataobj, np.float32)[::-1, ::-1].transpose(2, 1, 0)
    return voxels, np.array(ras.header.get_zooms()[:3])[::-1]


@torch.no_grad()
def segment(net: ParotidNet, grid: Grid, window: tuple[float, float], image: nibabel.Nifti1Image) -> np.ndarray:
    """Labels in the order of the image."""
    voxels, spacing = to_canonical(image)
    scaled = np.clip((voxels - window[0]) / (window[1] - window[0]), 0, 1)
    scaled = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(scaled, 1.6 / spacing[1], axis=1), 1.6 / spacing[2], 2)
    factors = spacing[1:] / grid.spacing_mm
    small = ndimage.zoom(scaled, (1, *factors), order=1)
    tissue = (small > 0).sum(axis=0)
    middle = [int(np.searchsorted(np.cumsum(tissue.sum(axis=1 - axis)), tissue.sum() / 2)) for axis in (0, 1)]
    half = grid.size // 2
    padded = np.pad(small, ((0, 0), (half, half), (half, half)))
    around = padded[:, middle[0] : middle[0] + grid.size, middle[1] : middle[1] + grid.size]
    logits = np.zeros((3, len(voxels), *padded.shape[1:]), np.float32)
    logits[0] = 1.0
    for index in range(len(voxels)):
        at = np.clip(index + np.array(grid.offsets_mm) / spacing[0], 0, len(voxels) - 1)
        below, share = np.floor(at).astype(int), (at % 1)[:, None, None]
        above = np.minimum(below + 1, len(voxels) - 1)
        stack = around[below] * (1 - share) + around[above] * share
        scores = net.unet(torch.from_numpy(stack[None].astype(np.float32)))[0].softmax(dim=0).numpy()
        logits[:, index, middle[0] : middle[0] + grid.size, middle[1] : middle[1] + grid.size] = scores
    logits = logits[:, :, half:-half, half:-half]
    back = np.array(voxels.shape[1:]) / np.array(logits.shape[2:])
    labels = np.stack([ndimage.zoom(each, (1, *back), order=1) for each in logits]).argmax(axis=0).astype(np.uint8)
    for value in (1, 2):
        pieces, count = ndimage.label(labels == value)
        if count > 1:
            largest = 1 + np.argmax(ndimage.sum_labels(labels == value, pieces, range(1, count + 1)))
            labels[(pieces > 0) & (pieces != largest)] = 0
    ras = labels.transpose(2, 1, 0)[::-1, ::-1]
    stored = nibabel.io_orientation(image.affine)
    back_order = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), stored)
    turned: np.ndarray = nibabel.orientations.apply_orientation(ras, back_order)
    return turned


def main() -> None:
    """Segment, and print seconds by scan as JSON."""
    checkpoint, out, *scans = sys.argv[1:]
    trained = load_checkpoint(Path(checkpoint))
    net = trained.network().eval()
    seconds = {}
    for scan in scans:
        started = time.perf_counter()
        image = nibabel.load(scan)
        labels = segment(net, trained.config.grid, trained.config.window_hu, image)
        name = Path(scan).name.removesuffix(".nii.gz").removesuffix("_0000")
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), Path(out) / f"{name}.nii.gz")
        seconds[name] = time.perf_counter() - started
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
