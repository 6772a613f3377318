"""Writes masks as an RT Structure Set (DICOM PS3.3, A.19), or adds them to an existing one.

Contours lie in the planes of the source's slices, by the slices' own headers, halfway between voxels inside and
outside. An object gets its final name only after it has been read back and has reproduced the mask (`round_trip`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from parotid_seg.dicom.contours import Points, outlines
from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.planes import Plane, read_planes
from parotid_seg.dicom.read.series import Series, Slice
from parotid_seg.dicom.write.identity import carry_identity, read_source, refer_to, slice_reference
from parotid_seg.dicom.write.objects import (
    MAKER,
    NO_NOTES,
    SERIES_NUMBER,
    add_maker,
    algorithm,
    check_mask,
    coded,
    described,
    line,
    now_in,
    save,
)
from parotid_seg.dicom.write.round_trip import verify_round_trip
from parotid_seg.dicom.write.rt_append import copy_for_appending
from parotid_seg.files import atomic_write
from parotid_seg.flags import Flag
from parotid_seg.scan.codes import ALL_ROIS, ANATOMICAL_STRUCTURE, Rois, Structure, structures_of
from parotid_seg.scan.volume import Mask
from parotid_seg.version import VERSION

DECIMALS = 4
"""Decimals of contour points in mm: far below a voxel, and within the 16 characters of a DS value."""
MOST_EXPLICIT = 65534 // (3 * 17)
"""Most points of a contour that always fit into an explicit transfer syntax, with at most 65534 bytes per DS value."""


def write_rtstruct(
    series: Series,
    mask: Mask,
    labels: tuple[str, ...],
    path: Path,
    *,
    model: str,
    append: Path | None = None,
    rois: Rois = ALL_ROIS,
    notes: Mapping[str, str] = NO_NOTES,
) -> tuple[Flag, ...]:
    """Write labels as structures; the file appears only after it is complete and verified.

    A label without a voxel becomes a structure without contours. The transfer syntax is implicit VR little endian, in
    which the length of contours is not limited.

    Args:
        series: the scan the labels belong to.
        mask: (slices, rows, columns), in the order of the series' slices.
        labels: names by value, background first.
        path: the file to make.
        model: name or hash of the model, for the description of the algorithm.
        append: a structure set of the same patient, study and frame of reference. The result is a new object with
            its structures and these; names in use get a number (Parotid_L_1). Other attributes stay, except for author,
            changes and approval: the new object is unapproved.
        rois: which labels become structures, and their names and colours.
        notes: by label, a sentence for the structure's description.

    Returns:
        Flags on `append`.

    Raises:
        InputError: if mask, labels and series do not fit together.
        ScanError: if the series' files or `append` cannot be used, or the object does not reproduce the mask.
        OutputError: if the file cannot be written.
    """
    check_mask(series, mask, labels, path, append)
    source, planes = read_source(series), read_planes(series)
    flags: tuple[Flag, ...] = ()
    if append is None:
        structures = structures_of(labels, rois=rois)
        dataset = _new(series, source, structures, model)
    else:
        dataset, structures, flags = copy_for_appending(append, series, source, labels, model, rois)
    _add(dataset, series, planes, mask, structures, model, notes)
    with atomic_write(path) as partial:
        save(dataset, partial, path)
        verify_round_trip(partial, series, mask, labels, "rtstruct", shown=path, rois=rois)
    return flags


def _new(series: Series, source: Dataset, structures: tuple[Structure, ...], model: str) -> Dataset:
    """A structure set without structures."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    with phi_safe(series.slices[0].path, "DICOM image"):
        carry_identity(source, dataset, [model, *(each.name for each in structures)])
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "RTSTRUCT", generate_uid(), SERIES_NUMBER
    dataset.SeriesDescription, dataset.OperatorsName = f"{MAKER} structures", None
    add_maker(dataset, model)
    dataset.InstanceNumber = 1
    dataset.StructureSetLabel = MAKER
    refer_to(series, dataset, source.get("NumberOfFrames"))
    dataset.StructureSetROISequence = []
    dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], []
    return dataset


def _add(
    dataset: Dataset,
    series: Series,
    planes: tuple[Plane, ...],
    mask: Mask,
    structures: tuple[Structure, ...],
    model: str,
    notes: Mapping[str, str],
) -> None:
    """Add structures under unused numbers, and mark the set as unapproved."""
    rois, drawn = dataset.StructureSetROISequence, dataset.ROIContourSequence
    observed = dataset.RTROIObservationsSequence
    referred = {int(each.get("ReferencedROINumber") or 0) for each in (*drawn, *observed)}
    used = {int(each.ROINumber) for each in rois} | referred
    numbers = (number for number in count(1) if number not in used)
    observed_before = {int(each.ObservationNumber) for each in observed}
    observation_numbers = (number for number in count(1) if number not in observed_before)
    for structure, number, observation_number in zip(structures, numbers, observation_numbers, strict=False):
        rois.append(_roi(structure, number, series, model, notes.get(structure.label, "")))
        drawn.append(_drawn(structure, number, series, planes, mask))
        observed.append(_observation(structure, number, observation_number))
    contours = [each for roi in drawn[-len(structures) :] for each in roi.get("ContourSequence") or ()]
    if any(each.NumberOfContourPoints > MOST_EXPLICIT for each in contours):
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    now = now_in(dataset)
    dataset.StructureSetDate, dataset.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"


def _roi(structure: Structure, number: int, series: Series, model: str, note: str) -> Dataset:
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = series.frame_of_reference_uid
    item.ROIName = structure.name
    item.ROIDescription = described(note)
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = line(f"{MAKER} {VERSION}, model {model}")
    item.ROIDerivationAlgorithmIdentificationSequence = [algorithm(model)]
    return item


def _drawn(structure: Structure, number: int, series: Series, planes: tuple[Plane, ...], mask: Mask) -> Dataset:
    """The contours of a structure, slice by slice."""
    item = Dataset()
    item.ROIDisplayColor = list(structure.colour)
    item.ReferencedROINumber = number
    inside = mask == structure.value
    contours = [
        _contour(series.slices[index], planes[index].to_patient(points))
        for index in np.flatnonzero(inside.any(axis=(1, 2)))
        for points in outlines(inside[index])
    ]
    for place, contour in enumerate(contours, start=1):
        contour.ContourNumber = place
    if contours:
        item.ContourSequence = contours
    return item


def _contour(image: Slice, points_mm: Points) -> Dataset:
    item = Dataset()
    item.ContourImageSequence = [slice_reference(image)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points_mm)
    item.ContourData = [_decimal(value) for value in points_mm.ravel()]
    return item


def _decimal(value: float) -> str:
    """A number as a DS value, without trailing zeros."""
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _observation(structure: Structure, number: int, observation_number: int) -> Dataset:
    """An item of RTROIObservationsSequence with the codes of a structure."""
    code = coded(structure.code)
    if structure.side:
        code.SegmentedPropertyTypeModifierCodeSequence = [coded(structure.side)]
    item = Dataset()
    item.ObservationNumber, item.ReferencedROINumber = observation_number, number
    item.SegmentedPropertyCategoryCodeSequence = [coded(ANATOMICAL_STRUCTURE)]
    item.RTROIIdentificationCodeSequence = [code]
    item.RTROIInterpretedType = "ORGAN" if structure.known else ""
    item.ROIInterpreter = ""
    return item
