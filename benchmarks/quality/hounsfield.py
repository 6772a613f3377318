"""What true CTs give `scan.ct.hounsfield`, and which faults of the intensities it notices.

    python benchmarks/quality/hounsfield.py SCANS [SCANS ...] [--every N] [--out FILE.json]

Reads scans only, no labels. Every scan is judged as it is; every N-th is changed in ways that leave it in HU, of which
none may be flagged or refused, and in ways that do not, of which all should be. The limits in `scan.ct.hounsfield` are
read off the first table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parotid_seg.errors import ScanError
from parotid_seg.files import write_text
from parotid_seg.scan.ct import hounsfield, hu_template
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.scan.volume import Volume

Intensities = NDArray[Any]
Change = Callable[[Intensities], Intensities]
FIGURES = ("tissue", "soft", "fat", "scale", "gain", "mirrored_gain", "dark", "below_air", "bump")
PERCENTILES = (0, 1, 5, 50, 95, 99, 100)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+", help="folders of true CTs as NIfTI files; -1024 is no data")
    parser.add_argument("--every", type=int, default=6, help="change every n-th scan")
    parser.add_argument("--only", nargs="*", help="names of changes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    paths = [path for folder in arguments.scans for path in sorted(folder.glob("*.nii.gz"))]
    figures = [] if arguments.only else [figures_of(read_nifti(path).volume) for path in paths]
    result: dict[str, Any] = {"scans": len(paths), "figures": {}, "changes": {}}
    for name in figures[0] if figures else ():
        result["figures"][name] = np.percentile([each[name] for each in figures], PERCENTILES).round(3).tolist()
        print(f"{name:16s}", result["figures"][name], flush=True)
    outcomes: dict[str, list[str]] = {}
    if not arguments.only:
        volumes = (read_nifti(path).volume for path in paths)
        outcomes["HU: as it is"] = [verdict(each.voxels[0], each.spacing_mm) for each in volumes]
    for number, path in enumerate(paths[:: arguments.every]):
        volume = read_nifti(path).volume
        voxels = volume.voxels[0].astype(np.int16)
        for name, change in changes(np.random.default_rng(number)):
            if not arguments.only or name in arguments.only:
                outcomes.setdefault(name, []).append(verdict(change(voxels), volume.spacing_mm))
    for name, found in outcomes.items():
        kinds = {kind: sum(each.split(":")[0] == kind for each in found) for kind in ("accepted", "flagged", "refused")}
        result["changes"][name] = {"scans": len(found), **kinds, "first": found[0]}
        print(f"{name:34s} {len(found):4d}  " + "  ".join(f"{kind} {count}" for kind, count in kinds.items()))
        print(f"    {next((each for each in found if each != 'accepted'), '')}", flush=True)
    if arguments.out:
        write_text(json.dumps(result, indent=1) + "\n", arguments.out)


def figures_of(volume: Volume) -> dict[str, float]:
    """What the limits are set on."""
    samples, step_mm = hounsfield.examined(volume.voxels[0], volume.spacing_mm)
    found = hounsfield.appearance_of(hu_template.histogram_of(samples))
    if found is None:
        raise ScanError("shows no tissue")
    uneven = hounsfield.unevenness(samples, step_mm, found.constants)
    return {**{name: getattr(found, name) for name in FIGURES}, "unevenness": uneven}


def verdict(voxels: Intensities, spacing_mm: tuple[float, float, float]) -> str:
    """What becomes of a scan; `spacing_mm` is that of the unchanged one."""
    kept = voxels if voxels.dtype == np.int16 else voxels.astype(np.float32)
    try:
        flags = hounsfield.check_hounsfield(kept, spacing_mm)
    except ScanError as error:
        return f"refused: {error}"
    return f"flagged: {', '.join(flag.code for flag in flags)}" if flags else "accepted"


def changes(rng: np.random.Generator) -> Iterator[tuple[str, Change]]:
    """Changes by name; those whose name begins with HU leave a scan in HU."""
    yield from harmless_changes(rng)
    yield from faults_of_scale(rng)
    yield from other_modalities(rng)


def harmless_changes(rng: np.random.Generator) -> Iterator[tuple[str, Change]]:
    """What leaves a scan in HU."""
    yield "HU: air around", lambda voxels: with_air(voxels, rng)
    for value in (-1000, -2000, -3024, 0, 3071):
        yield f"HU: outside {value}", lambda voxels, value=value: np.where(voxels > -1024, voxels, value)
    yield "HU: strip of 0", lambda voxels: np.pad(voxels, ((0, 0), (0, 0), (0, 12)))
    yield "HU: tight crop", lambda voxels: cropped(voxels, 0.3)
    yield "HU: tighter crop", lambda voxels: cropped(voxels, 0.2)
    for deviation in (20, 40, 60):
        yield f"HU: noise {deviation}", lambda voxels, deviation=deviation: noisy(voxels, deviation, rng)
    yield "HU: mask and air", lambda voxels: with_mask(voxels, rng)
    yield "HU: contrast agent", lambda voxels: voxels + np.interp(voxels, [-40, 20, 150, 300], [0, 30, 30, 0])
    yield "HU: metal", with_metal
    yield "HU: coarser, linear", lambda voxels: ndimage.zoom(voxels.astype(np.float32), 0.7, order=1)
    yield "HU: finer, cubic", lambda voxels: ndimage.zoom(voxels.astype(np.float32), (1, 1.3, 1.3), order=3)
    yield "HU: every second slice", lambda voxels: voxels[::2]


def faults_of_scale(rng: np.random.Generator) -> Iterator[tuple[str, Change]]:
    """Shifted, scaled, inverted and clipped intensities."""
    for shift in (1024, 1000, -1024, -1000):
        yield f"shifted {shift:+d}", lambda voxels, shift=shift: voxels + np.int16(shift)
        yield f"shifted {shift:+d}, air around", lambda voxels, shift=shift: with_air(voxels, rng) + shift
    for value in (-2000, -1024):
        yield (
            f"shifted +1024, outside {value}",
            lambda voxels, value=value: np.where(voxels > -1024, voxels + 1024, value),
        )
    yield "shifted +1024, tight crop", lambda voxels: cropped(voxels, 0.3) + 1024
    for scale in (0.1, 0.5, 2.0, 10.0):
        yield f"scaled {scale:g}", lambda voxels, scale=scale: voxels * scale
        yield f"scaled {scale:g}, air around", lambda voxels, scale=scale: with_air(voxels, rng) * scale
    yield "scaled 0.5, outside -1024", lambda voxels: np.where(voxels > -1024, voxels * 0.5, -1024)
    yield "scaled 0.5, tight crop", lambda voxels: cropped(voxels, 0.3) * 0.5
    yield "scaled 2, tight crop", lambda voxels: cropped(voxels, 0.3) * 2.0
    yield "0 to 1", lambda voxels: grey(voxels, -1024, 3071, 1)
    yield "0 to 255", lambda voxels: grey(voxels, -1024, 3071, 255)
    yield "0 to 255, windowed", lambda voxels: grey(voxels, -160, 240, 255)
    yield "0 to 4095, windowed", lambda voxels: grey(voxels, -1000, 1000, 4095)
    yield "inverted", lambda voxels: -voxels
    yield "inverted, air around", lambda voxels: -with_air(voxels, rng)
    yield "inverted, tight crop", lambda voxels: -cropped(voxels, 0.3)
    yield "inverted, 12 bits", lambda voxels: 3071 - voxels
    for low, high in ((-200, 300), (-160, 240), (-500, 500)):
        yield f"clipped {low} to {high}", lambda voxels, low=low, high=high: voxels.clip(low, high)


def other_modalities(rng: np.random.Generator) -> Iterator[tuple[str, Change]]:
    """What MR and cone-beam CT look like, made from a CT."""
    for scale in (0.2, 1.0, 4.0):
        yield f"MR, scale {scale:g}", lambda voxels, scale=scale: magnetic(voxels, scale, rng)
        yield f"MR, scale {scale:g}, - 1024", lambda voxels, scale=scale: magnetic(voxels, scale, rng) - 1024
    for shift in (-300, -200, -150, -100, 100, 150, 200, 300):
        yield f"cone beam, off {shift:+d}", lambda voxels, shift=shift: voxels + np.int16(shift)
        yield (
            f"cone beam, tissue off {shift:+d}",
            lambda voxels, shift=shift: np.where(voxels > -500, voxels + np.int16(shift), voxels),
        )
    for deviation in (100, 150, 250):
        yield f"cone beam, noise {deviation}", lambda voxels, deviation=deviation: noisy(voxels, deviation, rng)
    for amplitude in (100, 200, 300):
        yield f"cone beam, cupping {amplitude}", lambda voxels, amplitude=amplitude: cupped(voxels, amplitude)
        yield f"cone beam, ramp {amplitude}", lambda voxels, amplitude=amplitude: ramped(voxels, amplitude)


def noisy(voxels: Intensities, deviation: float, rng: np.random.Generator) -> Intensities:
    """Noise in the body."""
    changed, body = voxels.copy(), voxels > -1024
    changed[body] = (changed[body] + rng.normal(0, deviation, np.count_nonzero(body))).clip(-1024, 3071)
    return changed


def with_air(voxels: Intensities, rng: np.random.Generator) -> Intensities:
    """Air with noise where the scan has no data."""
    changed, outside = voxels.copy(), voxels == -1024
    changed[outside] = np.resize(rng.normal(-1000, 15, 99991).clip(-1024, 3071), np.count_nonzero(outside))
    return changed


def with_mask(voxels: Intensities, rng: np.random.Generator) -> Intensities:
    """A mask of plastic around the head, in air."""
    shell = ndimage.binary_dilation(voxels > -1024, iterations=2) & (voxels == -1024)
    changed = with_air(voxels, rng)
    changed[shell] = rng.normal(-300, 200, np.count_nonzero(shell))
    return changed


def with_metal(voxels: Intensities) -> Intensities:
    """A bright block in ten slices of streaks."""
    depth, height, width = (size // 2 for size in voxels.shape)
    rows, columns = np.indices(voxels.shape[1:])
    streaks = 250 * np.sin(12 * np.arctan2(rows - height, columns - width))
    changed = voxels.copy()
    slices = changed[depth - 5 : depth + 5]
    slices[:] = np.where(slices > -1024, (slices + streaks).clip(-1024, 3071), slices)
    changed[depth - 1 : depth + 2, height - 1 : height + 1, width - 1 : width + 1] = 3071
    return changed


def cupped(voxels: Intensities, amplitude: float) -> Intensities:
    """Darker in the middle of the body than at its surface."""
    rows, columns = np.indices(voxels.shape[1:])
    body = np.argwhere(voxels > -200)
    _, row, column = body.mean(axis=0)
    radius = np.hypot(rows - row, columns - column) / (1.4 * np.hypot(*body.std(axis=0)[1:]))
    return np.where(voxels > -1024, voxels + amplitude * (radius.clip(0, 1.2) ** 2 - 0.5), voxels)


def ramped(voxels: Intensities, amplitude: float) -> Intensities:
    """Brighter on one side of the body than on the other."""
    ends = np.argwhere(voxels > -200)[:, 2]
    part = (np.arange(voxels.shape[2]) - ends.min()) / max(1, np.ptp(ends))
    return np.where(voxels > -1024, voxels + amplitude * (part - 0.5), voxels)


def magnetic(voxels: Intensities, scale: float, rng: np.random.Generator) -> Intensities:
    """The signal of a T1-weighted MR for each kind of tissue, with Rician noise."""
    tissue = [-1024, -300, -150, -100, -50, 0, 40, 70, 150, 300, 800, 3071]
    signal = [5, 5, 300, 700, 600, 300, 250, 260, 350, 150, 40, 20]
    noise = np.resize(rng.normal(0, 12, 99991), (2, *voxels.shape))
    magnitude: Intensities = scale * np.hypot(np.interp(voxels, tissue, signal) + noise[0], noise[1])
    return magnitude.round()


def grey(voxels: Intensities, low: float, high: float, top: float) -> Intensities:
    """Grey values from 0 to `top` of a window."""
    return ((np.clip(voxels, low, high) - low) * (top / (high - low))).round(0 if top > 1 else 4)


def cropped(voxels: Intensities, half: float) -> Intensities:
    """The middle of the body, so many of its lengths to either side."""
    body = np.argwhere(voxels > -200)
    low, high = body.min(axis=0), body.max(axis=0)
    middle, reach = (low + high) // 2, np.maximum(2, (half * (high - low)).astype(int))
    return voxels[tuple(slice(at - far, at + far) for at, far in zip(middle, reach, strict=True))]


if __name__ == "__main__":
    main()
