"""A CT in NIfTI to a mask of the parotid glands, by onnxruntime alone: python segment.py MODEL.onnx SCAN MASK"""

import json
import sys

import nibabel
import numpy as np
import onnxruntime
from scipy import ndimage


def resample(source, target, half_width, clamp=False):
    """Weights (M, N) of a triangle filter from N evenly spaced positions in mm to M others."""
    step = (source[-1] - source[0]) / (len(source) - 1) if len(source) > 1 else half_width
    half_width, pad = max(half_width, step), 0 if clamp else int(np.ceil(max(half_width, step) / step))
    target = np.clip(target, source[0], source[-1]) if clamp else target
    extended = source[0] + step * np.arange(-pad, len(source) + pad)
    weights = np.maximum(1 - np.abs(target[:, None] - extended) / half_width, 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
    return np.ascontiguousarray(weights[:, pad : pad + len(source)], np.float32)


def on_axis(profile, size, spacing, grid):
    """The voxels of an axis that the grid covers, and the matrices to the grid and back."""
    centre = 2 * int(np.searchsorted(np.cumsum(profile), profile.sum() / 2))  # median of tissue in every 2nd voxel
    pixels = (np.arange(grid["size"]) - (grid["size"] - 1) / 2) * grid["spacing_mm"]
    reach = int(np.ceil((pixels[-1] + max(grid["kernel_mm"], grid["spacing_mm"], spacing)) / spacing))
    voxels = spacing * np.arange(-reach, reach + 1)
    there, back = resample(voxels, pixels, grid["kernel_mm"]), resample(pixels, voxels, spacing)
    used = np.flatnonzero((there > 1e-6).any(axis=0) | (back > 1e-6).any(axis=1)) + centre - reach
    used = used[(used >= 0) & (used < size)]
    kept = used - centre + reach
    return slice(used[0], used[-1] + 1), np.ascontiguousarray(there[:, kept]), np.ascontiguousarray(back[kept])


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
contract = json.loads(session.get_modelmeta().custom_metadata_map["parotid_seg.contract"])
grid, window = contract["grid"], np.array(contract["windows"], np.float32)
image = nibabel.load(sys.argv[2])
to_lps = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), [[2, 1], [1, -1], [0, -1]])
lps = image.as_reoriented(to_lps)  # slices to superior, rows to posterior, columns to the patient's left
hu, (between, row_mm, column_mm) = np.asarray(lps.dataobj, np.float32), map(float, lps.header.get_zooms())
tissue = hu[:, ::2, ::2] > window[0, 0]
rows, rows_there, rows_back = on_axis(tissue.sum(axis=(0, 2)), hu.shape[1], row_mm, grid)
columns, columns_there, columns_back = on_axis(tissue.sum(axis=(0, 1)), hu.shape[2], column_mm, grid)
step, slices_mm = max(1, int(grid["slice_step_mm"] / between + 1e-6)), between * np.arange(len(hu))
samples_mm = step * between * np.arange(-(-(len(hu) - 1) // step) + 1)
wanted = samples_mm[:, None] + np.array(grid["offsets_mm"])
neighbours = resample(slices_mm, wanted.ravel(), grid["slice_kernel_mm"], clamp=True).reshape(*wanted.shape, -1)
inputs = {"slices": np.clip(hu[None, :, rows, columns], -65504, 65504).astype(np.float16), "window": window}
inputs |= {"rows": rows_there, "rows_back": rows_back, "columns": columns_there, "columns_back": columns_back}
inputs |= {"neighbours": neighbours, "slices_back": resample(samples_mm, slices_mm, 0.0, clamp=True)}
mask = np.zeros(hu.shape, np.uint8)
mask[:, rows, columns] = session.run(["labels"], inputs)[0]
for value in range(1, len(contract["labels"])):  # of each gland only the largest piece
    pieces, count = ndimage.label(mask == value, structure=np.ones((3, 3, 3)))
    if count > 1:
        mask[(pieces > 0) & (pieces != 1 + np.argmax(np.bincount(pieces.ravel())[1:]))] = 0
back = nibabel.orientations.ornt_transform([[2, 1], [1, -1], [0, -1]], nibabel.io_orientation(image.affine))
nibabel.save(nibabel.Nifti1Image(mask, lps.affine).as_reoriented(back), sys.argv[3])
