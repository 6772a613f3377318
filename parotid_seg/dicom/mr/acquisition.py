"""How the images of an MR series were acquired, by the header of its first slice.

Classic objects have the attributes in one place (DICOM PS3.3, C.8.3.1), enhanced ones in functional groups with other
values (C.8.13); here both become the same `Acquisition`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydicom.dataset import Dataset

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import fill_blank, read_object
from parotid_seg.dicom.read.groups import images_in
from parotid_seg.dicom.read.series import Slice
from parotid_seg.dicom.read.values import Unusable, items_of, text_of, values_of, words_of
from parotid_seg.errors import ScanError

T = TypeVar("T")

TAGS: list[str | int] = [
    "SOPClassUID", "SOPInstanceUID", "NumberOfFrames", "ImageType", "SeriesDescription", "ProtocolName",
    "ScanningSequence", "SequenceVariant", "ScanOptions", "AngioFlag", "RepetitionTime", "EchoTime", "InversionTime",
    "ContrastBolusAgent", "ContrastBolusAgentSequence", "DiffusionBValue", "AcquisitionContrast",
    "ComplexImageComponent", "EchoPulseSequence", "EchoPlanarPulseSequence", "PhaseContrast", "TimeOfFlightContrast",
    "SpectrallySelectedSuppression", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
GROUPS = (
    "MRImageFrameTypeSequence",
    "MRTimingAndRelatedParametersSequence",
    "MREchoSequence",
    "MRModifierSequence",
    "MRDiffusionSequence",
    "ContrastBolusUsageSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
    "UnassignedSharedConvertedAttributesSequence",
)
"""Functional groups with acquisition attributes; the last two are in objects converted from classic ones."""
ENHANCED_PULSES = {
    ("EchoPulseSequence", "SPIN"): {"SE"},
    ("EchoPulseSequence", "GRADIENT"): {"GR"},
    ("EchoPulseSequence", "BOTH"): {"SE", "GR"},
    ("EchoPlanarPulseSequence", "YES"): {"EP"},
    ("InversionRecovery", "YES"): {"IR"},
    ("Spoiling", "RF"): {"SP"},
    ("Spoiling", "GRADIENT"): {"SP"},
    ("Spoiling", "RF_AND_GRADIENT"): {"SP"},
}
"""Values of enhanced objects as values of ScanningSequence and SequenceVariant."""
NO_AGENT = frozenset(("", "NO", "NONE", "N", "0"))
"""Values of ContrastBolusAgent that mean no contrast agent."""


@dataclass(frozen=True)
class Acquisition:
    """How an image was acquired.

    Attributes:
        types: ImageType or FrameType, and ComplexImageComponent.
        pulses: ScanningSequence and SequenceVariant, such as SE, IR, GR, EP; SP, MP.
        repetition_ms, echo_ms, inversion_ms: times; None where there is none.
        contrast: AcquisitionContrast; empty if there is none.
        diffusion: whether there is a b-value above 0; some scanners write 0 for any sequence.
        flow: whether it shows flow: angiography.
        fat_suppressed: whether fat was suppressed spectrally.
        agent: whether a contrast agent was given.
        described: SeriesDescription and ProtocolName: untrusted text that may name the patient.
    """

    types: frozenset[str]
    pulses: frozenset[str]
    repetition_ms: float | None
    echo_ms: float | None
    inversion_ms: float | None
    contrast: str
    diffusion: bool
    flow: bool
    fat_suppressed: bool
    agent: bool
    described: str


def acquisition_of(first: Slice) -> Acquisition:
    """The acquisition in the header of a slice.

    Raises:
        ScanError: if it cannot be read, or is of another image than when the series was found.
    """
    with phi_safe(first.path, "DICOM image"):
        header = read_object(first.path, TAGS)
        fill_blank(header)
        if text_of(header, "SOPInstanceUID") != first.sop_instance_uid:
            raise ScanError("found another image than when the series was read", path=first.path)
        try:
            places = dict(images_in(header))
            return _acquisition([*(places[first.frame](group) for group in GROUPS), header])
        except Unusable as error:
            raise ScanError(f"{error}", path=first.path) from None


def _acquisition(places: Sequence[Dataset]) -> Acquisition:
    """The acquisition from some data sets; each attribute is taken from the first that has it."""

    def words(keyword: str) -> frozenset[str]:
        return frozenset(_first(places, keyword, words_of))

    def number(keyword: str) -> float | None:
        values = _first(places, keyword, _numbers)
        return values[0] if values else None

    def text(keyword: str) -> str:
        return " ".join(map(str, _first(places, keyword, values_of)))

    def either(*numbers: float | None) -> float | None:
        return next((each for each in numbers if each is not None), None)

    enhanced = (pulses for (keyword, word), pulses in ENHANCED_PULSES.items() if word in words(keyword))
    suppressed = words("SpectrallySelectedSuppression") & {"FAT", "FAT_AND_WATER"}
    return Acquisition(
        types=(words("FrameType") or words("ImageType")) | words("ComplexImageComponent"),
        pulses=words("ScanningSequence").union(words("SequenceVariant"), *enhanced),
        repetition_ms=number("RepetitionTime"),
        echo_ms=either(number("EffectiveEchoTime"), number("EchoTime")),
        inversion_ms=either(number("InversionTimes"), number("InversionTime")),
        contrast="".join(_first(places, "AcquisitionContrast", words_of)),
        diffusion=(number("DiffusionBValue") or 0.0) > 0,
        flow="Y" in words("AngioFlag") or "YES" in words("PhaseContrast") | words("TimeOfFlightContrast"),
        fat_suppressed=bool(suppressed) or "FS" in words("ScanOptions"),
        agent=_has_agent(places, words),
        described=f"{text('SeriesDescription')} {text('ProtocolName')}",
    )


def _has_agent(places: Sequence[Dataset], words: Callable[[str], frozenset[str]]) -> bool:
    agents = words("ContrastBolusAgent") - NO_AGENT
    listed = _first(places, "ContrastBolusAgentSequence", items_of)
    return bool(agents) or (bool(listed) and "NO" not in words("ContrastBolusAgentAdministered"))


def _first(places: Sequence[Dataset], keyword: str, read: Callable[[Dataset, str], Iterable[T]]) -> list[T]:
    """The values of an attribute in the first data set that has it; none if they have another type than expected."""
    with contextlib.suppress(Unusable):
        for place in places:
            if values := list(read(place, keyword)):
                return values
    return []


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """The values of an attribute as numbers.

    Raises:
        Unusable: if they are not numbers.
    """
    try:
        return tuple(map(float, values_of(dataset, keyword)))
    except (TypeError, ValueError, OverflowError):
        raise Unusable(f"{keyword} cannot be read") from None
