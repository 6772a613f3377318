"""Writes masks as DICOM Segmentation (PS3.3, A.51): binary (a bit per voxel and structure) or label map (a byte
per voxel).

highdicom builds the object from stand-ins for the source's slices, which have their geometry but no patient data;
`identity` adds the patient as for every object. A tilted gantry needs no special handling, because every frame has its
own position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from highdicom.color import CIELabColor
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.planes import Plane, read_planes
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.write.identity import REQUIRED, carry_identity, image_references, read_source, slice_reference
from parotid_seg.dicom.write.objects import MAKER, NO_NOTES, SERIES_NUMBER, add_maker, check_mask, described, line, save
from parotid_seg.dicom.write.round_trip import verify_round_trip
from parotid_seg.files import atomic_write
from parotid_seg.scan.codes import ALL_ROIS, ANATOMICAL_STRUCTURE, LEARNING, Coded, Rois, Structure, structures_of
from parotid_seg.scan.volume import Mask
from parotid_seg.version import VERSION


def write_seg(
    series: Series,
    mask: Mask,
    labels: tuple[str, ...],
    path: Path,
    *,
    model: str,
    kind: Literal["binary", "labelmap"] = "binary",
    rois: Rois = ALL_ROIS,
    notes: Mapping[str, str] = NO_NOTES,
) -> None:
    """Write labels as segments; the file appears only after it is complete and verified.

    Slices without a label are omitted, unless all slices are empty. Every label is described, even one without a voxel.
    Neither kind is compressed: bits cannot be, and for bytes not every reader has the decoder.

    Args:
        series: the scan the labels belong to.
        mask: (slices, rows, columns), in the order of the series' slices.
        labels: names by value, background first.
        path: the file to make.
        model: name or hash of the model, for the description of the algorithm.
        kind: "binary", which most systems read, or "labelmap", which is newer.
        rois: which labels become segments, and their names and colours. Segments are numbered from 1.
        notes: by label, a sentence for the segment's description.

    Raises:
        InputError: if mask, labels and series do not fit together.
        ScanError: if the series' files cannot be used, or the object does not reproduce the mask.
        OutputError: if the file cannot be written.
    """
    check_mask(series, mask, labels, path)
    source, planes, structures = read_source(series), read_planes(series), structures_of(labels, rois=rois)
    stand_ins = [_stand_in(series, plane, planes) for plane in planes]
    segments = [_segment(each, number, model, notes.get(each.label, "")) for number, each in enumerate(structures, 1)]
    with phi_safe(path, "DICOM segmentation"):
        dataset = Segmentation(
            source_images=stand_ins,
            pixel_array=_numbered(mask, structures, len(labels)),
            segmentation_type=kind.upper(),
            segment_descriptions=segments,
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=VERSION,
            device_serial_number=line(model),
            content_label="SEGMENTATION",
            content_description=described(),
            series_description=f"{MAKER} segments",
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        _refer_to_slices(dataset, series, stand_ins, source.get("NumberOfFrames"))
        carry_identity(source, dataset, [model, *(each.name for each in structures)])
        add_maker(dataset, model)
    with atomic_write(path) as partial:
        save(dataset, partial, path)
        verify_round_trip(partial, series, mask, labels, kind, shown=path, rois=rois)


def _numbered(mask: Mask, structures: Sequence[Structure], labels: int) -> Mask:
    """The mask with the numbers of the segments, from 1; 0 where no structure is written."""
    numbers = np.zeros(labels, np.uint8)
    numbers[[each.value for each in structures]] = range(1, len(structures) + 1)
    return numbers[mask]


def _stand_in(series: Series, plane: Plane, planes: tuple[Plane, ...]) -> Dataset:
    """An image with the geometry of a slice, its own UID, and the other attributes that highdicom requires."""
    item = Dataset()
    for keyword in REQUIRED.split():
        setattr(item, keyword, "")
    item.SOPClassUID, item.SOPInstanceUID, item.Modality = CTImageStorage, generate_uid(), series.modality
    item.StudyInstanceUID, item.SeriesInstanceUID = series.study_uid, series.series_uid
    item.FrameOfReferenceUID = series.frame_of_reference_uid
    item.Rows, item.Columns = series.rows, series.columns
    item.ImagePositionPatient = [format_number_as_ds(float(value)) for value in plane.position]
    orientation = np.concatenate([planes[0].row, planes[0].column])
    item.ImageOrientationPatient = [format_number_as_ds(float(value)) for value in orientation]
    item.PixelSpacing = [format_number_as_ds(value) for value in planes[0].spacing_mm]
    item.SliceThickness = format_number_as_ds(abs(float(series.affine[:3, 0] @ planes[0].normal)))
    return item


def _segment(structure: Structure, number: int, model: str, note: str) -> SegmentDescription:
    segment = SegmentDescription(
        segment_number=number,
        segment_label=structure.name,
        segmented_property_category=_concept(ANATOMICAL_STRUCTURE),
        segmented_property_type=_concept(structure.code),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=MAKER, family=_concept(LEARNING), version=VERSION, source=MAKER, parameters={"model": line(model)}
        ),
        tracking_uid=generate_uid(),
        tracking_id=structure.name,
        display_color=CIELabColor.from_rgb(*structure.colour),
    )
    segment.SegmentDescription = described(note)
    if structure.side:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(structure.side)]
    return segment


def _concept(code: Coded) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)


def _refer_to_slices(dataset: Dataset, series: Series, stand_ins: list[Dataset], frames_in_file: int | None) -> None:
    """Replace references to stand-ins by references to the actual slices."""
    slices = {item.SOPInstanceUID: image for item, image in zip(stand_ins, series.slices, strict=True)}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        for item in group.DerivationImageSequence[0].SourceImageSequence:
            if item.ReferencedSOPInstanceUID in slices:
                item.update(slice_reference(slices[item.ReferencedSOPInstanceUID]))
    dataset.SourceImageSequence = image_references(series, frames_in_file)
    images = [slice_reference(replace(image, frame=None)) for image in series.slices]
    unique = {image.ReferencedSOPInstanceUID: image for image in images}
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(unique.values())
