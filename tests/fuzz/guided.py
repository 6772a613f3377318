"""Fuzzing guided by coverage, on demand: atheris grows a corpus of inputs that reach new lines of a reader.

    pip install atheris    (Linux and macOS)
    python -m tests.fuzz.guided READER CORPUS [-max_total_time=SECONDS and other options of libFuzzer]

CORPUS is a folder for inputs, filled with good ones first if it is empty. What a reader raises beside the package's own
errors ends the run, and the input lies in the current folder as crash-...
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["parotid_seg"], enable_loader_override=False):
    from parotid_seg.dataset.structures import read_structures
    from parotid_seg.dicom.read.series_volume import find_series
    from parotid_seg.errors import ParotidSegError
    from parotid_seg.runtime.engines.model_file import read_model
    from parotid_seg.runtime.pipeline.journal import NAME, Journal
    from parotid_seg.scan.nifti import read_nifti
    from parotid_seg.scan.other_formats import read_image

from typing import Any

from parotid_seg.models import DEFAULT_MODEL, example_folder
from tests.dataset.studies import write_study

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nifti": ("scan.nii", read_nifti),
    "packed-nifti": ("scan.nii.gz", read_nifti),
    "nrrd": ("scan.nrrd", read_image),
    "dicom": ("slice.dcm", lambda path: find_series([path])),
    "rtstruct": ("set.dcm", read_structures),
    "onnx": ("model.onnx", read_model),
    "journal": (NAME, lambda path: Journal(path.parent).entries),
}
"""The name that an input gets, and what reads it."""


def good(reader: str, folder: Path) -> list[bytes]:
    """Inputs to begin with."""
    if reader in ("dicom", "rtstruct"):
        write_study(folder)
        images: list[Any] = []
        sets: list[Any] = []
        for path in folder.rglob("*.dcm"):
            (sets if b"RTSTRUCT" in path.read_bytes() else images).append(path.read_bytes())
        return images[:2] if reader == "dicom" else sets
    if reader == "onnx":
        return [DEFAULT_MODEL.read_bytes()[:100_000]]
    if reader == "journal":
        return [b'{"case": "a", "source": "a.nii", "key": "k", "status": "failed"}\n']
    if reader == "nrrd":
        return [b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: little\n\n" + bytes(16)]
    packed = next((example_folder() / "imagesTr").glob("*.nii.gz")).read_bytes()
    return [packed] if reader == "packed-nifti" else [bytes(348)]


def main() -> None:
    """Run libFuzzer."""
    reader, corpus = sys.argv[1], Path(sys.argv[2])
    name, read = READERS[reader]
    corpus.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        if not any(corpus.iterdir()):
            for number, content in enumerate(good(reader, Path(folder, "good"))):
                (corpus / f"good-{number}").write_bytes(content)
        place = Path(folder, "input", name)
        place.parent.mkdir()

        def once(content: bytes) -> None:
            place.write_bytes(content)
            with contextlib.suppress(ParotidSegError):
                read(place)

        atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
