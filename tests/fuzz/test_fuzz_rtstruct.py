"""Structure sets: mutants end in masks or one line, in no time and little memory, and name nobody."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from parotid_seg.dataset.structures import is_rtstruct, read_structures
from parotid_seg.dicom.read.rt_read import read_rtstruct
from parotid_seg.dicom.read.series_volume import find_series
from parotid_seg.errors import ScanError
from tests.dataset.studies import write_study
from tests.fuzz.dicom_elements import changed, elements_of, encoded
from tests.fuzz.memory import little_memory
from tests.fuzz.mutate import feed

NAME = "Secret^Name"
SEQUENCES = (b"\x06\x30\x20\x00", b"\x06\x30\x39\x00", b"\x06\x30\x10\x00")
"""Structures, contours, and what they refer to."""

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # pydicom's, over what is wrong here on purpose


def named(index: object, dataset: pydicom.dataset.Dataset) -> None:
    dataset.PatientName = NAME


def deeper(content: bytes, chance: random.Random) -> bytes:
    """A structure set with something changed within one of its sequences, which keeps its length."""
    start, elements = elements_of(content)
    pieces = []
    for tag, vr, value in elements:
        inside = bytearray(value)
        if tag in SEQUENCES and inside:
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(inside))
                inside[at : at + 1] = bytes([chance.choice((0, 0x5C, 0x7F, 0xFF, chance.randrange(256)))])
        pieces.append(encoded((tag, vr, bytes(inside))))
    return start + b"".join(pieces)


def test_mutants(tmp_path: Path, inputs: Callable[[int], int]) -> None:
    images = write_study(tmp_path / "study", change=named)
    (series,) = find_series(images).series
    implicit = tmp_path / "study" / "contours.dcm"
    explicit = tmp_path / "explicit.dcm"
    dataset = pydicom.dcmread(implicit)
    dataset.decode()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(explicit, implicit_vr=False, little_endian=True)
    good = [implicit.read_bytes(), explicit.read_bytes()]
    path = tmp_path / "mutant.dcm"

    def read(mutated: bytes) -> None:
        number = zlib.crc32(mutated)
        chance = random.Random(number)
        path.write_bytes((mutated, changed(good[1], chance), deeper(good[1], chance))[number % 3])
        is_rtstruct(path)
        with contextlib.suppress(ScanError):
            read_structures(path)
        reasons = []
        try:
            for each in read_rtstruct(path, series):
                each.drawn()
        except ScanError as error:
            reasons.append(str(error))
            raise
        finally:
            assert NAME not in "".join(reasons)

    for content in good:
        path.write_bytes(content)
        assert is_rtstruct(path)
        assert all(each.drawn().mask.any() for each in read_rtstruct(path, series))
    with little_memory():
        tally = feed(read, good, inputs(300), seed=3)
    assert tally.outcomes["read"]
    assert tally.outcomes["ScanError"]
