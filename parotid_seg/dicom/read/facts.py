"""What the header of a series says of its acquisition, for readers of a report."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydicom.dataset import Dataset

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import read_dicom
from parotid_seg.dicom.read.groups import images_in
from parotid_seg.dicom.read.identity_words import contains_any, secrets_of
from parotid_seg.dicom.read.series import SeriesFacts
from parotid_seg.dicom.read.text import text_of
from parotid_seg.dicom.read.values import Unusable, number_of
from parotid_seg.errors import ScanError
from parotid_seg.scan.codes import LONGEST_LINE, plain

SHORTEST_SECRET = 2
"""Fewest characters of a part of the patient's identity."""
WITHHELD = "withheld, as it may name the patient"
"""In place of a text."""
LARGEST_KV, LARGEST_TESLA = 1000.0, 100.0
"""Numbers beyond are not shown."""


def read_facts(path: Path, modality: str, number: int | None) -> SeriesFacts:
    """What a series' first file says.

    Each text is on one line, at most 64 characters long, and withheld if it contains a part of the patient's names, IDs
    or birth date, however it is written. What is missing or malformed is left out; of a file that cannot be read the
    description is withheld.

    Args:
        path: the file.
        modality, number: of the series.
    """
    try:
        with phi_safe(path, "DICOM image"):
            file = read_dicom(path)
            header = Dataset() if file is None else file.header
            secrets = secrets_of(header, SHORTEST_SECRET)
            _, place = next(images_in(header))
    except (ScanError, StopIteration):
        return SeriesFacts(modality, number, description=WITHHELD)
    maker, model = (_text(header, each, header, secrets) for each in ("Manufacturer", "ManufacturerModelName"))
    return SeriesFacts(
        modality,
        number,
        description=_text(header, "SeriesDescription", header, secrets),
        kv=_number(place("CTXRayDetailsSequence"), "KVP", LARGEST_KV),
        kernel=_text(place("CTReconstructionSequence"), "ConvolutionKernel", header, secrets),
        tesla=_number(header, "MagneticFieldStrength", LARGEST_TESLA),
        scanner=WITHHELD if WITHHELD in (maker, model) else _together(maker, model),
    )


def _text(item: Dataset, keyword: str, header: Dataset, secrets: frozenset[str]) -> str:
    try:
        with phi_safe(Path(), keyword):
            text = text_of(item, keyword, header)
    except ScanError:
        return ""
    if contains_any(text, secrets):
        return WITHHELD
    return plain(text.value.strip().replace("\\", "/"))[:LONGEST_LINE]


def _number(dataset: Dataset, keyword: str, most: float) -> float | None:
    with suppress(Unusable):
        number = number_of(dataset, keyword)
        if number is not None and 0 < number <= most:
            return number
    return None


def _together(maker: str, model: str) -> str:
    """Maker and model; makers that repeat their name in the model's have it once."""
    repeated = model.casefold().startswith(maker.casefold())
    return model if repeated else f"{maker} {model}".strip()
