"""Calls a function in a separate process, for scans whose decoder can crash, as GDCM does on some damaged images.

`infer` reads all scans in its workers; commands that read scans in their own process use this module. It protects a
command from crashes, but not from a file that takes a process over: the answer is unpickled.
"""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from parotid_seg.dicom.read.decoders import FAMILIES, decoder_for
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.runtime.pipeline.protocol.worker_stdio import cause, command_of, ends, send

T = TypeVar("T")

ENDS_PROCESSES = "python-gdcm"
"""The package whose decoder crashes on some damaged images."""
SLOWEST_S = 600.0
"""Most seconds that reading one scan may take."""


def with_care(sources: tuple[Path | Series, ...], function: Callable[..., T], *arguments: object) -> T:
    """A function's result; it is called in a separate process if a decoder of the sources may crash.

    Args:
        sources: image files and series that the function reads.
        function: a function of a module; it and its arguments are pickled.

    Raises:
        ScanError: if the process has ended or takes too long.
        Exception: any exception of the function.
    """
    series = [each for each in sources if isinstance(each, Series)]
    if not any(map(_may_end_process, series)):
        return function(*arguments)
    return apart(function, *arguments, path=series[0].folder)


def apart(function: Callable[..., T], *arguments: object, path: Path) -> T:
    """A function's result, called in a separate process; see `with_care`.

    Args:
        path: of the scan, for the error.
    """
    content = pickle.dumps((function, arguments), protocol=pickle.HIGHEST_PROTOCOL)
    try:
        process = subprocess.run(
            command_of(__name__),
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # output of a decoder
            timeout=SLOWEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ScanError(f"pixels that cannot be decoded: no end after {SLOWEST_S:.0f} s", path=path) from None
    if process.returncode:
        raise ScanError(f"pixels that cannot be decoded: {cause(process.returncode)}", path=path)
    answer: T | Exception = pickle.loads(process.stdout)
    if isinstance(answer, Exception):
        raise answer
    return answer


def main() -> None:
    """Entry point of the process: call the function."""
    requests, answers = ends()
    function, arguments = pickle.load(requests)
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = error
    send(answer, answers)


def _may_end_process(series: Series) -> bool:
    return any(_is_for_gdcm(path) for path in {each.path for each in series.slices})


def _is_for_gdcm(path: Path) -> bool:
    try:
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    except (OSError, InvalidDicomError, ValueError):  # the error is reported when its pixels are read
        return False
    decoder = decoder_for(syntax) if syntax in FAMILIES else None
    return decoder is not None and decoder.package == ENDS_PROCESSES
