"""The patients of a data set: voxels and labels in canonical order, decoded once and memory-mapped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import IGNORE
from parotid_seg.errors import InputError, ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.records import read_record, record_text
from parotid_seg.scan.ct.slice_order import misfits
from parotid_seg.scan.grid import body_centre
from parotid_seg.scan.intensity import Window, Windows, fixed_windows, in_windows
from parotid_seg.scan.labels import LEFT, RIGHT, is_parotid, mirrored_labels, side_of
from parotid_seg.scan.nifti import read_mask, read_nifti
from parotid_seg.scan.seen import voxels_hash
from parotid_seg.scan.volume import Mask, Orientation, Volume, Voxels
from parotid_seg.train.data.data_set import SOFT_FOLDER, DataSet, named

DOUBTS = frozenset(code for code in FlagCode if code.value.startswith("hu_"))
"""Flags of a CT that may not be in HU."""
SMALLEST_BODY = 0.02
"""Least share of tissue in a slice that counts as showing the patient."""
CACHE_FORMAT = 8
FEWEST_TO_JUDGE = 3
IGNORED = np.uint8(255)
"""Stands for ignored voxels in the hash of a label map."""
SHARE_OF_ALL = 255
"""Value of a voxel's soft label where the structure is certain."""
ASIDE_MM = 20.0
"""A structure that lies so far (mm) to one side in each of at least so many patients has a side, even if its name has
none. Parotid glands lie 47 mm or more beside the middle."""


@dataclass(frozen=True)
class Patient:
    """One patient; the arrays are read from disk on demand.

    Attributes:
        volume, windows: the scan, (C, D, H, W), and windows of its channels, from `scan.intensity.in_windows`; its
            flags are those of `DOUBTS` and `misfits`.
        labels: its label map, (D, H, W); background for a stage without labels, and where it is ignored. Of a patient
            who has none but soft labels: the largest of them.
        centre_mm: in-plane centre (y, x) of the body.
        shown_in: for each label the indices of the slices that show it, rising; empty for background.
        body_slices: indices of the slices that show the patient.
        ignored: (D, H, W) bool, the unlabelled voxels; None if the data set has no label "ignore".
        known_slices: indices of the slices that are not completely ignored, rising.
        soft: (structures, D, H, W) uint8, shares of each structure in 1/255; None without soft labels.
        contoured: whether there is a label map.
        sha256: hash of the scan's voxels in canonical order.
        labels_sha256: the same of what is learnt from: label map, ignored voxels and soft labels; "" without any.
    """

    name: str
    volume: Volume
    windows: Windows
    labels: Mask
    centre_mm: tuple[float, float]
    shown_in: tuple[tuple[int, ...], ...]
    body_slices: tuple[int, ...]
    known_slices: tuple[int, ...]
    ignored: NDArray[np.bool_] | None = None
    soft: NDArray[np.uint8] | None = None
    contoured: bool = True
    sha256: str = ""
    labels_sha256: str = ""


@dataclass(frozen=True)
class Facts:
    """Cached data of a decoded scan besides its voxels; see `Patient`. A flag's fields are in their order."""

    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    windows: tuple[tuple[float, float], ...]
    centre_mm: tuple[float, float]
    body_slices: tuple[int, ...]
    flags: tuple[tuple[FlagCode, str, float | None, str], ...]
    sha256: str


def load_patients(
    data: DataSet,
    cases: Sequence[str],
    cache: Path,
    window_hu: Window,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Patient]:
    """Decode scans and labels once into `cache`, then memory-map them, so that only drawn slices are in memory.

    Args:
        window_hu: the window of channels named CT.

    Raises:
        ScanError: if a scan or label map cannot be used, a CT is not in HU, or a label map has other voxels than the
            scan's first channel.
        InputError: if a label map holds a label without a name.
    """
    cache.mkdir(parents=True, exist_ok=True)
    patients = []
    for case in cases:
        progress(case)
        patients.append(_load_patient(data, case, cache, window_hu))
    return patients


def doubts_line(patients: Sequence[Patient]) -> str:
    """A warning with the scans whose CT may not be in HU; empty if there are none."""
    found = {each.name: [flag.code for flag in each.volume.flags if flag.code in DOUBTS] for each in patients}
    doubtful = {name: codes for name, codes in found.items() if codes}
    if not doubtful:
        return ""
    names = ", ".join(f"{name} ({', '.join(codes)})" for name, codes in doubtful.items())
    return (
        f"warning: {len(doubtful)} of {len(patients)} scans may not be in HU: {names}; "
        "`parotid-seg inspect FILE` says why"
    )


def misfits_line(patients: Sequence[Patient]) -> str:
    """A warning with the scans whose slices do not fit their neighbours; empty if there are none."""
    found = {each.name: [flag for flag in each.volume.flags if flag.code not in DOUBTS] for each in patients}
    doubtful = {name: flags for name, flags in found.items() if flags}
    if not doubtful:
        return ""
    told = (
        f"{name} ({', '.join(f'{each.code}: {each.detail}' for each in flags)})" for name, flags in doubtful.items()
    )
    return (
        f"warning: slices of {len(doubtful)} of {len(patients)} scans do not fit their neighbours: {named(told)}; are "
        "they damaged, repeated, or in another order?"
    )


def check_labels(data: DataSet, train: Sequence[Patient], validation: Sequence[Patient], mirrored: bool) -> list[str]:
    """Check that label maps contain structures for training and validation.

    Args:
        data: the data set.
        train, validation: its patients.
        mirrored: whether training mirrors scans.

    Returns:
        Remarks, one line each.

    Raises:
        InputError: if label maps are empty, or show left and right structures on the other side, with their patients.
            Single maps of other organs may be empty.
    """
    if not data.label_folder:
        return []
    folder = data.folder / data.label_folder
    empty = [each.name for each in (*train, *validation) if each.contoured and not any(each.shown_in)]
    if empty and not data.partly_contoured:
        raise InputError(
            f"found no voxel of any label in the label maps of {named(empty)}, expected some in each; patients "
            "without any belong in no list of splits.json",
            path=folder,
        )
    if swapped := [each.name for each in (*train, *validation) if each.contoured and _is_swapped(each, data.labels)]:
        raise InputError(
            f"left and right are swapped in {len(swapped)} of {len(train) + len(validation)} label maps: "
            f"{named(swapped)}; expected the patient's left and right, as scan and label map state them",
            path=folder,
        )
    for patients, what in ((train, "training"), (validation, "validation")):
        if not any(any(patient.shown_in) for patient in patients):
            raise InputError(f"found no voxel of any organ in the {what} patients' label maps", path=folder)
    notes = []
    for value, name in enumerate(data.labels[1:], start=1):
        offsets_mm = [_left_of_middle_mm(patient, value) for patient in train if patient.shown_in[value]]
        if not offsets_mm:
            notes.append(f"no training patient's label map shows {name}")
        elif mirrored and not side_of(name) and len(offsets_mm) >= FEWEST_TO_JUDGE:
            sides = [
                side for side, sign in ((LEFT, 1), (RIGHT, -1)) if min(sign * off for off in offsets_mm) > ASIDE_MM
            ]
            notes += [
                f"{name} lies on the patient's {side} in all {len(offsets_mm)} training patients, but its name says no "
                "side that is known: scans seen in the mirror show it on the other side as well"
                for side in sides
            ]
    return notes


def _is_swapped(patient: Patient, names: Sequence[str]) -> bool:
    """Whether a left structure lies to the right of its counterpart, or a left parotid gland alone far on the right.

    Of other organs a left part may lie there.
    """
    partners = mirrored_labels(names)
    left_mm = {
        value: _left_of_middle_mm(patient, value)
        for value, name in enumerate(names)
        if patient.shown_in[value] and side_of(name)
    }
    for value, offset_mm in left_mm.items():
        partner = partners[value]
        alone = partner == value or partner not in left_mm
        if alone and not is_parotid(names[value]):
            continue
        aside_mm = offset_mm - (0.0 if alone else left_mm[partner])
        if (aside_mm if side_of(names[value]) == RIGHT else -aside_mm) > (ASIDE_MM if alone else 0.0):
            return True
    return False


def _left_of_middle_mm(patient: Patient, value: int) -> float:
    """Distance of a structure from the body's middle to the patient's left; columns run to the patient's left."""
    counts = np.count_nonzero(patient.labels[list(patient.shown_in[value])] == value, axis=(0, 1))
    column = float(counts @ np.arange(len(counts)) / counts.sum())
    return column * patient.volume.spacing_mm[2] - patient.centre_mm[1]


def _load_patient(data: DataSet, case: str, cache: Path, window_hu: Window) -> Patient:
    images = [data.image_path(case, channel) for channel in range(len(data.channels))]
    entry, facts = decoded(data, case, cache, window_hu)
    voxels: Voxels = _mapped(entry / "voxels.npy", 4)
    flags = tuple(Flag(*each) for each in facts.flags)
    volume = Volume(voxels, facts.spacing_mm, Orientation(facts.axes, facts.flips), flags)
    labels: Mask = np.broadcast_to(np.uint8(0), volume.shape)
    shown_in: tuple[tuple[int, ...], ...] = ((),) * len(data.labels)
    ignored: NDArray[np.bool_] | None = None
    known_slices = tuple(range(volume.shape[0]))
    soft: NDArray[np.uint8] | None = None
    hashes: list[str] = []
    contoured = bool(data.label_folder) and case not in data.unlabelled
    if case in data.soft:
        files = [data.soft_path(case, value) for value in range(1, len(data.labels))]
        entry = cache / f"{case}-{SOFT_FOLDER}-{_key(images[0], *files)}"
        if not entry.exists():
            _save_soft(entry, files, images[0])
        soft = _mapped(entry / "soft.npy", 4)
        labels, shown_in = _read_labels(entry, hashes)
    if contoured:
        values = data.stored_values if data.ignore is None else (*data.stored_values, IGNORE, data.ignore)
        entry = cache / f"{case}-{data.label_folder}-{_key(images[0], data.label_path(case), values=values)}"
        if not entry.exists():
            _save_labels(entry, data, case)
        labels, shown_in = _read_labels(entry, hashes)
        if data.ignore is not None:
            ignored = _mapped(entry / "ignored.npy", 3)
            known_slices = read_record(entry / "known_slices.json", tuple[int, ...])
    return Patient(
        name=case,
        volume=volume,
        labels=labels,
        windows=np.array(facts.windows, np.float32),
        centre_mm=facts.centre_mm,
        shown_in=shown_in,
        body_slices=facts.body_slices,
        known_slices=known_slices,
        ignored=ignored,
        soft=soft,
        contoured=contoured,
        sha256=facts.sha256,
        labels_sha256=" ".join(hashes),
    )


def _read_labels(entry: Path, hashes: list[str]) -> tuple[Mask, tuple[tuple[int, ...], ...]]:
    """The labels of a cache entry, and the slices that show each; their hash is added to some."""
    hashes.append(read_record(entry / "sha256.json", str))
    return _mapped(entry / "labels.npy", 3), read_record(entry / "shown_in.json", tuple[tuple[int, ...], ...])


def decoded(data: DataSet, case: str, cache: Path, window_hu: Window) -> tuple[Path, Facts]:
    """The cache's folder of a scan, which is decoded if it is not there, and its facts.

    Args:
        data, cache, window_hu: see `load_patients`.
        case: whose scan.

    Raises:
        ScanError: if the scan cannot be used.
    """
    images = [data.image_path(case, channel) for channel in range(len(data.channels))]
    fixed = fixed_windows(data.channels, window_hu)
    entry = cache / f"{case}-{_key(*images, values=fixed)}"
    if not entry.exists():
        _save_scan(entry, images, data.channels, fixed)
    return entry, read_record(entry / "facts.json", Facts)


def _mapped(path: Path, dimensions: int) -> NDArray[Any]:
    """A memory-mapped array on disk.

    Raises:
        InputError: if it is not an array with this number of dimensions.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header can raise any error of Python's parser
        reason = f"not a decoded scan ({type(error).__name__}); remove its folder, it is made again"
        raise InputError(reason, path=path) from error
    if array.ndim != dimensions:
        raise InputError(f"found {array.ndim} dimensions, expected {dimensions}; remove its folder", path=path)
    return array


def _key(*files: Path, values: Sequence[object] = ()) -> str:
    """Key of a cache entry's sources."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr([CACHE_FORMAT, *stats, *values]).encode()).hexdigest()[:16]


def _save_scan(entry: Path, images: Sequence[Path], channels: Sequence[str], fixed: Sequence[Window | None]) -> None:
    volume = read_nifti(*images).volume
    try:
        volume, windows = in_windows(volume, channels, fixed)
    except ScanError as error:
        raise ScanError(error.reason, path=images[0]) from error
    centre = zip(body_centre(volume, windows), volume.spacing_mm[1:], strict=True)
    tissue = np.count_nonzero(volume.voxels[0] > windows[0, 0], axis=(1, 2)) / volume.voxels[0, 0].size
    y_mm, x_mm = (float(voxel * spacing) for voxel, spacing in centre)
    voxels = np.ascontiguousarray(volume.voxels)
    flags = (*(flag for flag in volume.flags if flag.code in DOUBTS), *misfits(volume, channels))
    facts = Facts(
        spacing_mm=volume.spacing_mm,
        axes=volume.orientation.axes,
        flips=volume.orientation.flips,
        windows=tuple((float(low), float(high)) for low, high in windows),
        centre_mm=(y_mm, x_mm),
        body_slices=tuple(np.flatnonzero(tissue >= SMALLEST_BODY).tolist()),
        flags=tuple(map(dataclasses.astuple, flags)),
        sha256=voxels_hash(voxels),
    )
    if not facts.body_slices:
        raise ScanError(f"shows no patient: expected slices with tissue above {windows[0, 0]:g}", path=images[0])
    with _whole_entry(entry) as partial:
        np.save(partial / "voxels.npy", voxels)
        (partial / "facts.json").write_text(record_text(facts))


def _save_labels(entry: Path, data: DataSet, case: str) -> None:
    path = data.label_path(case)
    stored, _ = read_mask(path, like=read_nifti(data.image_path(case)))
    unknown = set(np.unique(stored).tolist()) - {*data.stored_values, data.ignore}
    if data.label_folder == "labelsTr" and unknown:
        ignore = "" if data.ignore is None else f" or {data.ignore} (ignore)"
        raise InputError(f"found label {max(unknown)}, expected 0 to {len(data.labels) - 1}{ignore}", path=path)
    labels = np.zeros_like(stored)
    for value, stored_value in enumerate(data.stored_values):
        labels[stored == stored_value] = value
    shown_in = [np.flatnonzero((labels == value).any(axis=(1, 2))).tolist() for value in range(1, len(data.labels))]
    with _whole_entry(entry) as partial:
        np.save(partial / "labels.npy", labels)
        (partial / "sha256.json").write_text(record_text(voxels_hash(np.where(stored == data.ignore, IGNORED, labels))))
        (partial / "shown_in.json").write_text(record_text([[], *shown_in]))
        if data.ignore is not None:
            ignored = stored == data.ignore
            np.save(partial / "ignored.npy", ignored)
            known_slices = np.flatnonzero(~ignored.all(axis=(1, 2))).tolist()
            (partial / "known_slices.json").write_text(record_text(known_slices))


def _save_soft(entry: Path, files: Sequence[Path], image: Path) -> None:
    """Save soft labels, and the label map that they give: in each voxel what has the largest share."""
    scan = read_nifti(image)
    soft = np.stack([read_mask(path, like=scan)[0] for path in files])
    total = soft.sum(axis=0, dtype=np.int16)
    if total.max() > SHARE_OF_ALL + len(files):  # each share is rounded
        raise InputError(
            f"soft labels: found shares whose sum in a voxel is {total.max()}, expected at most {SHARE_OF_ALL}",
            path=files[0],
        )
    labels = np.where(soft.max(axis=0) > SHARE_OF_ALL - total, 1 + soft.argmax(axis=0), 0).astype(np.uint8)
    shown_in = [np.flatnonzero((labels == value).any(axis=(1, 2))).tolist() for value in range(1, 1 + len(files))]
    with _whole_entry(entry) as partial:
        np.save(partial / "soft.npy", soft)
        (partial / "sha256.json").write_text(record_text(voxels_hash(soft)))
        np.save(partial / "labels.npy", labels)
        (partial / "shown_in.json").write_text(record_text([[], *shown_in]))


@contextlib.contextmanager
def _whole_entry(entry: Path) -> Iterator[Path]:
    """A folder that gets its final name when it is complete; another process may have made it first."""
    partial = entry.with_name(f"{entry.name}.partial-{secrets.token_hex(8)}")
    partial.mkdir()
    yield partial
    try:
        partial.rename(entry)
    except OSError:
        if not entry.exists():
            raise
        shutil.rmtree(partial)
