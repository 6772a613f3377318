"""DICOM series for tests, and their NIfTI twins.

    voxels = ct_voxels((12, 16, 20))                      # HU (slices, rows, columns)
    affine = lay(spacing=(3, 1, 1), row=..., column=...)  # (slice, row, column, 1) -> x, y, z in mm, LPS
    paths = write_series(tmp_path / "ct", voxels, affine) # one file a slice; names and instance numbers in no order
    path = write_enhanced(tmp_path / "all.dcm", voxels, affine)
    twin = write_twin(tmp_path / "twin.nii.gz", voxels, affine)

What a test wants otherwise it changes in the dataset itself: `change(index, dataset)` is called for each slice (once,
with index 0, for a multi-frame file) before the dataset is encoded and written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

Change = Callable[[int, Dataset], None]
Triple = Sequence[float] | NDArray[np.float64]

CLASSES = {
    ("CT", ""): "1.2.840.10008.5.1.4.1.1.2",
    ("CT", "enhanced"): "1.2.840.10008.5.1.4.1.1.2.1",
    ("CT", "legacy"): "1.2.840.10008.5.1.4.1.1.2.2",
    ("MR", ""): "1.2.840.10008.5.1.4.1.1.4",
    ("MR", "enhanced"): "1.2.840.10008.5.1.4.1.1.4.1",
    ("MR", "legacy"): "1.2.840.10008.5.1.4.1.1.4.4",
}
"""SOP classes by modality and kind of object."""
TILTED = ((0.8, -0.6, 0.0), (0.36, 0.48, 0.8))
"""A row's and a column's direction, neither along the patient's axes."""


def ct_voxels(shape: tuple[int, int, int] = (12, 16, 20), seed: int = 0) -> NDArray[np.int16]:
    """Noise of a CT's intensities, from -1000 to 1500 HU (slices, rows, columns); no two places look alike."""
    rng = np.random.default_rng(seed)
    tissue = rng.choice(4, size=shape, p=(0.3, 0.15, 0.45, 0.1))  # air, fat, soft tissue, bone
    middle, deviation = np.array([-960, -100, 40, 600])[tissue], np.array([20, 15, 20, 300])[tissue]
    return rng.normal(middle, deviation).clip(-1000, 1500).astype(np.int16)


def lay(
    spacing: Triple = (3.0, 1.0, 1.0),
    *,
    row: Triple = (1.0, 0.0, 0.0),
    column: Triple = (0.0, 1.0, 0.0),
    origin: Triple = (-100.0, -120.0, -50.0),
    step: Triple | None = None,
) -> NDArray[np.float64]:
    """Affine (4, 4) from (slice, row, column, 1) to x, y, z in mm, LPS.

    Args:
        spacing: between slices, rows and columns, in mm.
        row: direction in which a row runs (the column number grows), as ImageOrientationPatient's first three numbers.
        column: direction in which a column runs (the row number grows), as its last three.
        origin: position of the first slice's first voxel.
        step: from a slice to the next in mm; default: along the slices' normal (row x column). A negative normal gives
            slices that run the other way, any other direction a tilted gantry.
    """
    affine = np.eye(4)
    normal = np.cross(row, column)
    affine[:3, 0] = normal * spacing[0] if step is None else step
    affine[:3, 1] = np.asarray(column) * spacing[1]
    affine[:3, 2] = np.asarray(row) * spacing[2]
    affine[:3, 3] = origin
    return affine


def write_twin(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
    """Write the same volume as NIfTI, stored (column, row, slice) as converters do, by nibabel alone."""
    affine = lay() if affine is None else affine
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.transpose(voxels, (2, 1, 0)), to_ras)
    image.set_sform(to_ras, 1)
    nibabel.save(image, path)
    return path


def write_series(
    folder: Path,
    voxels: NDArray[np.generic],
    affine: NDArray[np.float64] | None = None,
    *,
    modality: str = "CT",
    number: int | None = 3,
    slope: float = 1.0,
    intercept: float = -1024.0,
    dtype: type[np.integer] = np.uint16,
    bits_stored: int | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    uids: str = "",
    names: str = "IM",
    change: Change = lambda index, dataset: None,
) -> list[Path]:
    """Write a series of one file a slice.

    Args:
        folder: made if it is not there.
        voxels: intensities (slices, rows, columns) in the order of `affine`'s slices.
        affine: see `lay`; default: axial slices of 1 x 1 mm every 3 mm, feet to head.
        modality: "CT" or "MR".
        number: SeriesNumber.
        slope, intercept: what is stored is (voxels - intercept) / slope, rounded; an MR object has neither.
        dtype: of what is stored.
        bits_stored: BitsStored; default: all.
        transfer_syntax: RLE Lossless, JPEG-LS Lossless, JPEG 2000 Lossless (its encoder takes no slice smaller than
            32 x 32) and the uncompressed ones, big endian and deflated, too.
        uids: series of one folder name and one `uids` share study, series and frame of reference; see `uid`.
        names: the files' names begin with it.
        change: see above.

    Returns:
        The files in the order of the slices. Their names, dates and instance numbers are in another order.
    """
    affine = lay() if affine is None else affine
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(len(voxels)).permutation(len(voxels))
    paths = []
    for index, stored in enumerate(np.subtract(voxels, intercept) / slope if modality == "CT" else voxels):
        dataset = _dataset(folder.name + uids, modality, "", number)
        dataset.SOPInstanceUID = uid(folder.name, uids, "instance", str(index))
        dataset.InstanceNumber = int(order[index]) + 1
        _lay_plane(dataset, dataset, dataset, affine, index)
        if modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "HU"
        _set_pixels(dataset, np.rint(stored).astype(dtype), bits_stored)
        path = folder / f"{names}{order[index]:05d}.dcm"
        change(index, dataset)
        save(dataset, path, transfer_syntax)
        paths.append(path)
    return paths


def write_enhanced(
    path: Path,
    voxels: NDArray[np.generic],
    affine: NDArray[np.float64] | None = None,
    *,
    modality: str = "CT",
    kind: str = "enhanced",
    slope: float = 1.0,
    intercept: float = -1024.0,
    order: Sequence[int] | NDArray[np.integer] | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    uids: str = "",
    change: Change = lambda index, dataset: None,
) -> Path:
    """Write a series as one multi-frame file.

    Orientation and spacing are shared functional groups, position, rescaling and frame content are per frame.

    Args:
        path: the file to make; its folder is made if it is not there.
        voxels, affine, modality, slope, intercept, transfer_syntax, uids, change: as `write_series`.
        kind: "enhanced" or "legacy" (legacy converted).
        order: of the frames in the file: the slice that each frame shows; default: the last slice first.
    """
    affine = lay() if affine is None else affine
    path.parent.mkdir(parents=True, exist_ok=True)
    order = list(range(len(voxels)))[::-1] if order is None else list(order)
    dataset = _dataset(path.stem + uids, modality, kind, 1)
    dataset.SOPInstanceUID = uid(path.stem, uids, "instance")
    dataset.InstanceNumber = 1
    shared, frames = Dataset(), []
    orientation, measures = Dataset(), Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    kinds = Dataset()
    kinds.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    setattr(shared, f"{modality}ImageFrameTypeSequence", [kinds])
    for place, index in enumerate(map(int, order)):
        frame, position, content = Dataset(), Dataset(), Dataset()
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", index + 1, [1, index + 1]
        content.FrameAcquisitionNumber = 1
        content.FrameReferenceDateTime = f"20200101120000.{place:06d}"
        _lay_plane(position, orientation, measures, affine, index)
        if modality == "CT":
            rescale = Dataset()
            rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, intercept, "HU"
            frame.PixelValueTransformationSequence = [rescale]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    stored = np.subtract(voxels[order], intercept) / slope if modality == "CT" else voxels[order]
    _set_pixels(dataset, np.rint(stored).astype(np.uint16), None)
    dataset.NumberOfFrames = len(order)
    change(0, dataset)
    save(dataset, path, transfer_syntax)
    return path


def uid(*words: str) -> UID:
    """A UID that is the same for the same words."""
    return generate_uid(entropy_srcs=list(words))


def save(dataset: Dataset, path: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a dataset of uncompressed little endian pixels in any transfer syntax an encoder is installed for."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "1.2.3")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    wanted = UID(transfer_syntax)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if wanted.is_compressed else wanted
    if wanted.is_compressed and not wanted.is_deflated:
        dataset.compress(wanted, generate_instance_uid=False)
    elif wanted.is_deflated:
        dataset.file_meta.TransferSyntaxUID = wanted
    if not wanted.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
    pydicom.dcmwrite(
        path,
        dataset,
        implicit_vr=dataset.file_meta.TransferSyntaxUID.is_implicit_VR,
        little_endian=wanted.is_little_endian,
        enforce_file_format=True,
    )


def _dataset(name: str, modality: str, kind: str, number: int | None) -> Dataset:
    """All that does not depend on the slice."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME" if kind else "AXIAL"]
    dataset.SOPClassUID = CLASSES[modality, kind]
    dataset.Modality = modality
    dataset.Manufacturer = "Tests"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20200101", "120000", ""
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Doe^Jane", "4711", "", "O"
    dataset.ReferringPhysicianName, dataset.StudyID = "", "1"
    dataset.SeriesDescription = "Neck 3.0"
    dataset.StudyInstanceUID = uid(name, "study")
    dataset.SeriesInstanceUID = uid(name, "series")
    dataset.FrameOfReferenceUID = uid(name, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.SeriesNumber = number
    dataset.AcquisitionNumber = 1
    return dataset


def _lay_plane(
    position: Dataset, orientation: Dataset, measures: Dataset, affine: NDArray[np.float64], index: int
) -> None:
    """Where a slice lies, in the datasets that say so."""
    step, column, row, origin = affine[:3].T
    spacing = float(np.linalg.norm(column)), float(np.linalg.norm(row))
    normal = np.cross(row, column) / (spacing[0] * spacing[1])
    position.ImagePositionPatient = _decimals(origin + index * step)
    orientation.ImageOrientationPatient = _decimals([*(row / spacing[1]), *(column / spacing[0])])
    measures.PixelSpacing = _decimals(spacing)
    measures.SliceThickness = _decimals([abs(normal @ step)])[0]


def _decimals(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """As decimal strings, which DICOM gives 16 characters."""
    return [pydicom.valuerep.format_number_as_ds(float(value)) for value in values]


def _set_pixels(dataset: Dataset, stored: NDArray[np.integer], bits_stored: int | None) -> None:
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored = bits_stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
