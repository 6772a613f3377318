"""The packaged model, and the example scan for its verification."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.errors import InputError

DEFAULT_MODEL = Path(__file__).with_name("parotid-ct.onnx")
PACKAGED = "packaged"
"""What options call that file. A file of this name is given as a path: `./packaged`, as text."""


def model_file(model: str | Path | None) -> Path:
    """The file of a model that an option or argument names: the packaged one for `PACKAGED` and None."""
    return DEFAULT_MODEL if model is None or str(model) == PACKAGED else Path(model)


def title_of(model: str | Path | None) -> str:
    """The same model for readers: its file as it was given, or "the packaged model"."""
    return "the packaged model" if model_file(model) == DEFAULT_MODEL else str(model)


def example_folder() -> Path:
    """The folder with the example scan and its contour: beside the package in a checkout, inside it in a wheel.

    Raises:
        InputError: if neither exists.
    """
    for folder in (Path(__file__).parents[2] / "examples", Path(__file__).parents[1] / "examples"):
        if (folder / "imagesTr").is_dir():
            return folder
    raise InputError("the example scan is not installed with this package; name a folder of scans instead")
