"""Errors that a user can fix. Any other exception is a bug and keeps its traceback.

    ParotidSegError
    ├── InputError         an argument, a configuration or a data set
    │   ├── OptionError    an option or argument of a command, independent of scans and machine
    │   └── RecordError    a JSON file or a line of one
    ├── ScanError          one scan: unreadable, or not what the model expects
    ├── ModelError         a model file: foreign, damaged, or of another contract version
    │   └── MissingModelError  a missing model file; an OptionError, too
    ├── OutputError        a result that cannot be written
    ├── MachineError       no more open files, processes or memory; the scan may be fine
    ├── DeviceError        a GPU that cannot run the model: driver, libraries or the GPU itself
    └── DeviceMemoryError  a model or a batch that does not fit into the GPU's memory

Every message is one line that states what, where, what was found and what was expected. `commands/shared.py` catches
`ParotidSegError` once and exits with its `exit_status`: 2 for a wrong command line, even if it is detected late, else
1. A batch catches `ScanError` for each case and continues."""

from __future__ import annotations

import errno
import os
from pathlib import Path

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Errors of the system which mean that a resource of the machine, or a limit of the user, is exhausted."""


class ParotidSegError(Exception):
    """Base of all errors that a user can fix.

    Attributes:
        reason: what was found and what was expected, without the path.
        path: the file or folder the error is about; None where there is none.
        exit_status: exit status of a command that ends with it.
    """

    exit_status = 1

    def __init__(self, reason: str, *, path: Path | str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = None if path is None else Path(path)

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


class InputError(ParotidSegError):
    """An argument, a configuration value or a data set is not usable."""


class OptionError(InputError):
    """An option or argument of a command has an invalid value, or names a missing file."""

    exit_status = 2


class RecordError(InputError):
    """A JSON file, or a line of one, cannot be read or is not the expected record."""


class ScanError(ParotidSegError):
    """A scan cannot be read, or is not one the model can segment."""


class ModelError(ParotidSegError):
    """A model file is foreign, damaged or made for another version."""


class MissingModelError(ModelError, OptionError):
    """There is no model file of the given name."""


class OutputError(ParotidSegError):
    """A result cannot be written."""


class MachineError(ParotidSegError):
    """The machine has run out of open files, processes or memory. Nothing is wrong with the scan; try it again."""

    @classmethod
    def of(cls, error: OSError) -> MachineError:
        """The error for a system error in `EXHAUSTED`."""
        return cls(f"this machine has run out of something ({error.strerror}); nothing is wrong with the scan")


class DeviceError(ParotidSegError):
    """A GPU cannot run the model: its driver or libraries are too old or missing, it is not supported, or it failed.

    Nothing is wrong with the model and the scan.
    """


class DeviceMemoryError(ParotidSegError):
    """A model or a batch does not fit into the GPU's memory; a smaller batch may."""


def system_reason(error: OSError) -> str:
    """The operating system's message for a failure; never the name of a Python class.

    Raises:
        MachineError: if a resource is exhausted, which is no reason to refuse a file.
    """
    if error.errno in EXHAUSTED:
        raise MachineError.of(error) from error
    return error.strerror or (os.strerror(error.errno) if error.errno else "the system gave no reason")


def first_line(error: BaseException) -> str:
    """The first line of a library's error message; the error's class if the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
