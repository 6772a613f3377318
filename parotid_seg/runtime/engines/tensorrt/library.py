"""TensorRT and TensorRT-RTX: two packages with one Python interface, imported only when they are used."""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from parotid_seg.errors import InputError


@dataclass(frozen=True)
class Library:
    """Differences between the two libraries that are known without importing them.

    Attributes:
        module: name of the module.
        package: name of the package for pip.
        extra: the extra of parotid-seg for running its engines; building them needs `package` only.
        title: its name in messages.
        runs_on: the GPUs an engine can be built for, the default first (see `engine_file.EngineOptions`).
        needs_gpu: whether building needs a GPU: TensorRT times kernels on the GPU that will run them; TensorRT-RTX
            makes portable code that is completed on the GPU at its first run.
        carries_over: whether an engine can be built to run on later versions.
        keeps_timings: whether kernel timings can be stored in a file for the next build.
        captures: whether it makes CUDA graphs itself, after the kernels for a shape are compiled; capturing from
            outside would freeze the fallback kernels that run until then.
    """

    module: str
    package: str
    extra: str
    title: str
    runs_on: tuple[str, ...]
    needs_gpu: bool
    carries_over: bool
    keeps_timings: bool
    captures: bool


LIBRARIES = {
    "tensorrt": Library(
        module="tensorrt",
        package="tensorrt",
        extra="tensorrt-run",
        title="TensorRT",
        runs_on=("this-gpu", "same-capability", "ampere-plus"),
        needs_gpu=True,
        carries_over=True,
        keeps_timings=True,
        captures=False,
    ),
    "tensorrt-rtx": Library(
        module="tensorrt_rtx",
        package="tensorrt-rtx",
        extra="rtx-run",
        title="TensorRT-RTX",
        runs_on=("ampere-plus",),
        needs_gpu=False,
        carries_over=False,
        keeps_timings=False,
        captures=True,
    ),
}


def library_named(name: str) -> Library:
    """One of `LIBRARIES`. Raises InputError for any other name."""
    if name not in LIBRARIES:
        raise InputError(f"engine: found {name!r}, expected one of: {', '.join(LIBRARIES)}")
    return LIBRARIES[name]


def import_library(name: str) -> ModuleType:
    """Import one of `LIBRARIES`.

    Raises:
        InputError: if it is not installed or does not load, with the command that installs it.
    """
    library = library_named(name)
    return import_for(library, library.module, library.package, install=library.package)


def import_for(library: Library, module: str, package: str, *, install: str) -> ModuleType:
    """Import a module of a package that a library needs.

    Raises:
        InputError: if it is not installed or does not load, with what to give to `pip install`.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{library.title}: the package {package} is missing or does not load ({reason}): pip install {install}"
        ) from error


def known_capabilities(trt: ModuleType) -> frozenset[tuple[int, int]] | None:
    """The compute capabilities that a library makes code for, for example (8, 9); None if it names none.

    TensorRT-RTX has an enumeration of them, with members such as SM89 and SM120; TensorRT has none.
    """
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    found = (re.fullmatch(r"SM(\d+)(\d)", name) for name in members)
    return frozenset((int(each[1]), int(each[2])) for each in found if each) or None


@functools.cache
def log_of(name: str) -> Any:
    """The library's logger: a `trt.ILogger` that prints nothing and keeps errors until `clear()`; `said()` returns
    them.

    There is one per process, because the library keeps using the first one.
    """
    trt = import_library(name)

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]  # known only once imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self._errors: list[str] = []
            self._internal: list[str] = []  # warnings also occur in successful builds, so they are the second choice

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.ERROR:
                self._errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.Severity.INTERNAL_ERROR:
                self._internal.append(" ".join(message.split()))

        def said(self) -> str:
            return next(iter((*self._errors, *self._internal)), "it gives no reason")

    return Log()
