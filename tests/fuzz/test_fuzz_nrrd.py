"""NRRD files in every encoding: mutants end in a scan or one line, in no time and little memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.scan.other_formats import count_voxels_of, read_image
from tests.fuzz.memory import little_memory
from tests.fuzz.mutate import feed

nrrd = pytest.importorskip("nrrd")
SHAPE = (12, 14, 16)
LINES = {
    b"sizes:": (b"sizes: 99999 99999 99999", b"sizes: 1200 1200 1200", b"sizes: -1 4 4", b"sizes: 9e9 1 1", b"sizes:"),
    b"type:": (b"type: double", b"type: block", b"type: int128", b"type: uint8"),
    b"dimension:": (b"dimension: 99999999999999999999", b"dimension: -3", b"dimension: nan"),
    b"encoding:": (b"encoding: raw", b"encoding: hex", b"encoding: gzip", b"encoding: bzip2", b"encoding: ascii"),
    b"space:": (b"space: left-posterior-superior-time", b"space: scanner-xyz", b"space:"),
    b"space directions:": (
        b"space directions: (nan,0,0) (0,inf,0) (0,0,1)",
        b"space directions: none (0,1,0) (0,0,1)",
        b"space directions: (0,0,0) (0,0,0) (0,0,0)",
        b"space directions: (1e308,0,0) (0,1e308,0) (0,0,1e308)",
    ),
    b"space origin:": (b"space origin: (nan,0,1e999)", b"space origin: (1,2)"),
    b"endian:": (b"endian: middle", b"endian: big"),
}
FURTHER = (
    b"line skip: 999999999999", b"byte skip: -1", b"byte skip: -2", b"byte skip: 999999999999", b"line skip: -1",
    b"data file: /dev/zero", b"data file: LIST", b"datafile: ../../x", b"space units: \"m\" \"m\" \"m\"",
    b"content: =1+1",
    b"thicknesses: a b c", b"sizes: 2 2 2", b"axis mins: nan nan nan",
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # numpy's, over what is wrong here on purpose


def written(encoding: str, dtype: type = np.int16) -> bytes:
    values: NDArray[Any] = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([3.0, 2.0, 4.0]),
        "space origin": np.zeros(3),
        "encoding": encoding,
    }
    file = io.BytesIO()
    nrrd.write(file, values, header)
    return file.getvalue()


GOOD = [written(encoding) for encoding in ("raw", "gzip", "bzip2", "ascii")] + [written("raw", np.float64)]


def variants(content: bytes) -> list[bytes]:
    """A file with each line of its header replaced, and with others added."""
    header, _, data = content.partition(b"\n\n")
    lines = header.split(b"\n")
    made = []
    for number, line in enumerate(lines):
        changes = next((each for begin, each in LINES.items() if line.startswith(begin)), ())
        made += [[*lines[:number], change, *lines[number + 1 :]] for change in (*changes, b"")]
    made += [[*lines, line] for line in FURTHER]
    return [b"\n".join(each) + b"\n\n" + data for each in made]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., None]:
    path = tmp_path / "a.nrrd"

    def reading(content: bytes) -> None:
        path.write_bytes(content)
        assert 0 <= count_voxels_of(path) <= 1 << 30
        assert np.isfinite(read_image(path).volume.voxels).all()

    return reading


def test_good_files_are_read(read: Callable[..., None]) -> None:
    for content in GOOD:
        read(content)


def test_every_line_of_the_header_and_mutants(read: Callable[..., None], inputs: Callable[[int], int]) -> None:
    seeds = [each for content in GOOD for each in variants(content)]
    with little_memory():
        for each in seeds:
            with contextlib.suppress(ScanError):
                read(each)
        tally = feed(read, [*GOOD, *seeds], inputs(500), seed=2)
    assert tally.outcomes["ScanError"]
