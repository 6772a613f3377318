"""Files of DICOM series: mutants of one of them end in a series, a line or an error, in no time and little memory."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from parotid_seg.dicom.read.planes import read_planes
from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.dicom.write.identity import read_source
from parotid_seg.errors import ScanError
from parotid_seg.runtime.inspection import describe_source
from tests.dicom_series import ct_voxels, lay, write_enhanced, write_series
from tests.fuzz.dicom_elements import changed
from tests.fuzz.memory import little_memory
from tests.fuzz.mutate import feed

SHAPE = (3, 32, 36)
AFFINE = lay((10.0, 1.0, 1.0))
SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "j2k": JPEG2000Lossless,
    "jls": JPEGLSLossless,
}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # pydicom's, over what is wrong here on purpose


def read_all(paths: list[Path]) -> None:
    """Find, describe and read; what is not found is in a line."""
    found = find_series(paths)
    assert found.series or found.left_out
    assert all(len(str(left).splitlines()) == 1 for left in found.left_out)
    for series in found.series:
        for also in (describe_source, read_planes, read_source):
            with contextlib.suppress(ScanError):
                also(series)
        assert np.isfinite(read_series(series).volume.voxels).all()


@pytest.mark.parametrize("kind", [*SYNTAXES, "enhanced"])
def test_mutants(kind: str, tmp_path: Path, inputs: Callable[[int], int]) -> None:
    if kind == "enhanced":
        paths = [write_enhanced(tmp_path / "all.dcm", ct_voxels(SHAPE), AFFINE)]
    else:
        paths = write_series(tmp_path / "ct", ct_voxels(SHAPE), AFFINE, transfer_syntax=SYNTAXES[kind])
    content, taken = paths[0].read_bytes(), []
    by_elements = kind in ("explicit", "enhanced", "rle", "j2k", "jls")

    def read(mutated: bytes) -> None:
        number = zlib.crc32(mutated)
        by_structure = by_elements and number % 3
        paths[0].write_bytes(changed(content, random.Random(number)) if by_structure else mutated)
        read_all(paths)
        taken.append(number)

    read_all(paths)
    with little_memory():
        feed(read, [content], inputs(40), seed=len(kind))
    assert taken
