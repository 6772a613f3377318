"""NIfTI files, packed or not, and pairs: mutants end in a scan or one line, in no time and little memory."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from parotid_seg.errors import ScanError
from parotid_seg.scan.nifti import check_same_voxels, count_voxels, describe, read_mask, read_nifti
from parotid_seg.scan.other_formats import count_voxels_of, is_readable, read_image
from tests.fuzz.memory import little_memory
from tests.fuzz.mutate import feed

SHAPE = (12, 14, 16)
AFFINE = np.diag([3.0, -2.0, 4.0, 1.0])
FLOATS = (np.inf, -np.inf, np.nan, 0.0, -1.0, 1e-40, 1e30, -1e30, 352.5, 3e9)
WHOLE = (0, 1, -1, 7, 66, 255, 1536, 2304, 9999)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # numpy's and nibabel's, over what is wrong here on purpose


def image(
    kind: Any = nibabel.Nifti1Image, dtype: type = np.int16, scaled: bool = False, order: Literal["<", ">"] = "<"
) -> nibabel.Nifti1Image:
    values = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.dtype(dtype).newbyteorder(order))
    header = kind.header_class(endianness=order)
    header.set_data_dtype(values.dtype)
    made = kind(values, AFFINE, header)
    made.set_sform(AFFINE, 1)
    if scaled:
        made.header.set_slope_inter(0.5, -10)
    return made


GOOD = [
    image().to_bytes(),
    image(nibabel.Nifti2Image).to_bytes(),
    image(order=">").to_bytes(),
    image(dtype=np.uint8, scaled=True).to_bytes(),
    image(dtype=np.float32).to_bytes(),
]


def variants(content: bytes, header: type[Nifti1Header]) -> list[bytes]:
    """A file with each number of its header set to each extreme value."""
    made = []
    dtype = header.template_dtype
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        number = field.base
        if number.kind not in "iuf":
            continue
        for index in range(int(np.prod(field.shape))):
            for value in FLOATS if number.kind == "f" else (*WHOLE, np.iinfo(number).min, np.iinfo(number).max):
                if number.kind != "f" and not np.iinfo(number).min <= value <= np.iinfo(number).max:
                    continue
                changed = bytearray(content)
                at = offset + index * number.itemsize
                with np.errstate(all="ignore"):
                    changed[at : at + number.itemsize] = np.array(value).astype(number).tobytes()
                made.append(bytes(changed))
    return made


def packed(content: bytes) -> bytes:
    """Every other content packed, one way in two."""
    kind = zlib.crc32(content) % 4
    if kind > 1:
        return content
    whole = gzip.compress(content, 1, mtime=0)
    return whole if kind else whole[: -(zlib.crc32(whole) % 40) or None] + content[:30]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., None]:
    good = tmp_path / "good.nii"
    good.write_bytes(GOOD[0])
    path = tmp_path / "a.nii"

    def reading(content: bytes) -> None:
        path.write_bytes(packed(content))
        assert 0 <= count_voxels(path) <= 1 << 30
        for also in (lambda: read_mask(path), lambda: check_same_voxels(path, good)):
            with contextlib.suppress(ScanError):
                also()
        scan = read_nifti(path)
        assert np.isfinite(scan.volume.voxels).all()
        assert describe(scan)

    return reading


@pytest.fixture
def read_pair(tmp_path: Path) -> Callable[..., None]:
    header, voxels = tmp_path / "a.hdr", tmp_path / "a.img"

    def reading(content: bytes) -> None:
        header.write_bytes(content[:348].replace(b"n+1\0", b"ni1\0"))
        voxels.write_bytes(content[352:])
        if is_readable(header):
            assert 0 <= count_voxels_of(header) <= 1 << 30
            read_image(header)

    return reading


def test_good_files_are_read(read: Callable[..., None]) -> None:
    for content in GOOD:
        read(content)


@pytest.mark.parametrize(
    ("content", "header"), [(GOOD[0], Nifti1Header), (GOOD[1], Nifti2Header)], ids=["NIfTI-1", "NIfTI-2"]
)
def test_every_number_of_the_header(
    content: bytes,
    header: type[nibabel.Nifti1Header],
    read: Callable[..., None],
    read_pair: Callable[..., None],
    inputs: Callable[[int], int],
) -> None:
    made, seen = variants(content, header), 0
    with little_memory():
        for each in made[:: max(1, len(made) // inputs(150))]:
            for way in (read, read_pair):
                with contextlib.suppress(ScanError):
                    way(each)
                    seen += 1
    assert seen


def test_mutants(read: Callable[..., None], inputs: Callable[[int], int]) -> None:
    seeds = [*GOOD, *variants(GOOD[0], Nifti1Header)[::7]]
    with little_memory():
        tally = feed(read, seeds, inputs(300), seed=1)
    assert tally.outcomes["read"]
    assert tally.outcomes["ScanError"]


def test_mutants_of_pairs(read_pair: Callable[..., None], inputs: Callable[[int], int]) -> None:
    with little_memory():
        assert feed(read_pair, [GOOD[0], GOOD[4]], inputs(200), seed=2).outcomes["ScanError"]
