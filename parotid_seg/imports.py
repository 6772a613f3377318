"""Imports in less time: without parts of packages that a command does not use, and without searches for garbage."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator


def import_without(package: str, part: str) -> None:
    """Import a package as if a module that it imports, where that is installed, were not there.

    Nothing is done if either has been imported before. Afterwards the module can be imported as usual.

    Args:
        package: name of the package.
        part: full name of the module.

    Raises:
        ImportError: if the package is not installed, or does not load.
    """
    if package in sys.modules or part in sys.modules:
        return
    sys.modules[part] = None  # type: ignore[assignment]  # Python's way to forbid an import
    try:
        importlib.import_module(package)
    finally:
        del sys.modules[part]


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Let Python not search for cyclic garbage meanwhile: imports make many objects and hardly any garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def lighten_command() -> None:
    """In the process of a command that segments: leave out what it does not use of the packages that it imports.

    OpenVINO imports its conversion of models from other frameworks, and with it what would report to Google Analytics.
    NumPy's arrays take memory by 4 KB, not by 2 MB, as they are filled.
    """
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import_nibabel()


def import_nibabel() -> None:
    """Import nibabel without pydicom, which it only needs for DICOM extensions of NIfTI headers; they are not read."""
    import_without("nibabel", "pydicom")
