"""Masks from Python: scans in memory to labels, without files.

from parotid_seg import segment

result = segment(nibabel.load("scan.nii.gz"))              # labels in the image's own voxel order
result = segment(hounsfield, spacing_mm=(3.0, 0.98, 0.98)) # (slices, rows, columns)
result.mask, result.volumes_ml, result.flags
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from parotid_seg.errors import InputError, OptionError, first_line
from parotid_seg.export.find_engine import runnable
from parotid_seg.models import PACKAGED, model_file
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.load import load_backend, output_for
from parotid_seg.runtime.engines.registry import AUTO, CPU
from parotid_seg.runtime.segmentation.segment import Segmentation, segment_volume
from parotid_seg.runtime.segmentation.segmentation_options import Search, SegmentationOptions
from parotid_seg.scan.nifti import joined_channels, scan_of_image
from parotid_seg.scan.volume import Volume

log = logging.getLogger(__name__)

IN_MEMORY = Path("scan")
"""The name of a scan without a file, in errors."""
LARGEST_INT = int(np.iinfo(np.int32).max)
"""Largest whole number that a voxel may hold."""
SUPERIOR_POSTERIOR_LEFT = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
"""Directions of an array's axes in RAS."""


class Segmenter:
    """A loaded model that segments any number of scans.

    Another engine than the one named, the building of one, and the CPU in place of a GPU are logged as warnings.

    Args:
        model: model file; None or "packaged" is the CT model of this package.
        backend: "auto" or the name of an engine, see `load_backend`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        allow_unverified: whether a model may be used that `parotid-seg export` has not verified.
        batch_size: slices at once; None for the number with which the engine is fastest.
        tta: test-time augmentation: segment the mirror image, too, see `Segmentation.agreement`.
        clean_up: keep only the largest piece of each left or right structure.
        search: "auto" finds the structures on a few slices first, then segments around them; "full" segments every
            slice.
        flips: the old name of `tta`, accepted for one release.

    Raises:
        ParotidSegError: if the model cannot be loaded or run as requested.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        backend: str = "auto",
        device: str = "auto",
        batch_size: int | None = None,
        tta: bool = False,
        clean_up: bool = True,
        search: Search = "auto",
        allow_unverified: bool = False,
        flips: bool = False,
    ) -> None:
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise OptionError(f"batch_size: found {batch_size!r}, expected a whole number of at least 1, or None")
        tta = tta or flips
        options = SegmentationOptions(clean_up=clean_up, tta=tta, search=search)
        file = runnable(model_file(model), backend, device, report=log.warning)
        lines: list[str] = []
        output = output_for(file, tta, log.warning)
        self._backend = load_backend(
            file, backend, device, output=output, allow_unverified=allow_unverified, say=lines.append
        )
        on_cpu_instead = device == AUTO and self._backend.ran.device == CPU and find_gpu(0)
        for line in lines:
            log.log(logging.WARNING if on_cpu_instead else logging.INFO, line)
        self.contract = self._backend.contract
        self._segment = functools.partial(segment_volume, self._backend, options=options, batch_size=batch_size)

    def __call__(
        self, scan: ArrayLike | SpatialImage | Sequence[SpatialImage], spacing_mm: Sequence[float] | None = None
    ) -> Segmentation:
        """Segment a scan.

        Args:
            scan: a nibabel image, or one for each of the model's channels, on the same voxels; or an array (D, H, W) of
                slices from feet to head, rows from front to back and columns from the patient's right to left, with
                channels (C, D, H, W) if the model has several. CT in HU.
            spacing_mm: of an array, the distance between slices, rows and columns.

        Returns:
            Labels in the order of the image or the array, volumes, flags (codes and values, see `flags.Flag`) and
            agreement.

        Raises:
            InputError: for an array of no intensities or without its spacing, or an image with another spacing.
            ScanError: if the model cannot segment it.
        """
        if isinstance(scan, SpatialImage):
            scan = [scan]
        if isinstance(scan, list | tuple) and scan and all(isinstance(image, SpatialImage) for image in scan):
            if spacing_mm is not None:
                raise InputError("spacing_mm: found one for an image, which has its own; leave it out")
            images = [nibabel.Nifti1Image.from_image(image) for image in scan]
        else:
            images = _images_of_array(cast(ArrayLike, scan), spacing_mm)
        volume = _volume_of(images)
        result = self._segment(volume)
        mask = volume.orientation.to_storage(result.mask).reshape(images[0].shape)
        return replace(result, mask=np.ascontiguousarray(mask))


def segment(
    scan: ArrayLike | SpatialImage | Sequence[SpatialImage],
    spacing_mm: Sequence[float] | None = None,
    *,
    model: str | Path | None = None,
    backend: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    tta: bool = False,
    clean_up: bool = True,
    search: Search = "auto",
    flips: bool = False,
) -> Segmentation:
    """Segment a scan with a model that stays loaded between calls (a cached `Segmenter`), until its file is replaced.

    Args:
        scan: see `Segmenter.__call__`.
        spacing_mm: of an array, the distance between slices, rows and columns.
        model: model file; None or "packaged" is the CT model of this package. This and what follows: see `Segmenter`.
        backend: "auto" or the name of an engine.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: slices at once; None for the number with which the engine is fastest.
        tta: test-time augmentation.
        clean_up: keep only the largest piece of each left or right structure.
        search: "auto" or "full".
        flips: the old name of `tta`.

    Returns:
        See `Segmenter.__call__`.

    Raises:
        ParotidSegError: if the model cannot be loaded or run as requested.
        InputError, ScanError: see `Segmenter.__call__`.
    """
    chosen = None if model is None or str(model) == PACKAGED else str(Path(model).resolve())
    return _loaded(
        chosen,
        _state_of(chosen),
        backend=backend,
        device=device,
        batch_size=batch_size,
        tta=tta or flips,
        clean_up=clean_up,
        search=search,
    )(scan, spacing_mm)


@functools.lru_cache(maxsize=4)
def _loaded(model: str | None, _state: tuple[int, ...], **options: Any) -> Segmenter:
    """The `Segmenter` of a model file in one state."""
    return Segmenter(model, **options)


def _state_of(model: str | None) -> tuple[int, ...]:
    """What changes when a model file is replaced; nothing for the packaged model, and for one that is not there."""
    try:
        status = None if model is None else Path(model).stat()
    except OSError:
        status = None
    return () if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)


def _volume_of(images: Sequence[nibabel.Nifti1Image]) -> Volume:
    first, *others = images
    for other in others:
        if other.shape != first.shape or not np.allclose(other.affine, first.affine, atol=1e-3):
            raise InputError("scan: the channels' images do not lie on the same voxels (shape and affine)")
    return joined_channels([scan_of_image(image, IN_MEMORY).volume for image in images])


def _images_of_array(array: ArrayLike, spacing_mm: Sequence[float] | None) -> list[nibabel.Nifti1Image]:
    if np.ma.is_masked(array):
        raise InputError("scan: found a masked array with hidden voxels, expected an array of numbers; fill them")
    try:
        voxels: NDArray[np.generic] = np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:  # uneven lists; tensors that NumPy cannot take
        raise InputError(f"scan: {first_line(error)}") from error
    if voxels.ndim not in (3, 4) or voxels.dtype.kind not in "iuf":
        raise InputError(
            f"scan: found an array of shape {voxels.shape} and type {voxels.dtype}, expected numbers (D, H, W) or "
            "(C, D, H, W)"
        )
    given = list(spacing_mm) if isinstance(spacing_mm, Iterable) else []
    numbers = [each for each in given if isinstance(each, int | float | np.number)]
    if spacing_mm is None or not len(numbers) == len(given) == 3 or not all(0 < each < math.inf for each in numbers):
        raise InputError(f"spacing_mm: found {spacing_mm}, expected the distance of slices, rows and columns in mm")
    if voxels.dtype.kind in "iu" and voxels.size and (voxels.min() < -LARGEST_INT or voxels.max() > LARGEST_INT):
        raise InputError(f"scan: found values from {voxels.min()} to {voxels.max()}, expected at most {LARGEST_INT}")
    affine = SUPERIOR_POSTERIOR_LEFT @ np.diag([*map(float, given), 1.0])
    kept = voxels.astype(np.float32 if voxels.dtype.kind == "f" else np.int32)
    return [nibabel.Nifti1Image(channel, affine) for channel in (kept if voxels.ndim == 4 else kept[None])]
