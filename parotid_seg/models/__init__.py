"""The packaged model, and the example scan for its verification."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.errors import InputError

DEFAULT_MODEL = Path(__file__).with_name("parotid-ct.onnx")


def example_folder() -> Path:
    """The folder with the example scan and its contour: beside the package in a checkout, inside it in a wheel.

    Raises:
        InputError: if neither exists.
    """
    for folder in (Path(__file__).parents[2] / "examples", Path(__file__).parents[1] / "examples"):
        if (folder / "imagesTr").is_dir():
            return folder
    raise InputError("the example scan is not installed with this package; name a folder of scans instead")
