"""Keeps patient data out of messages while DICOM files are read.

pydicom and highdicom quote a file's text in warnings, log entries and errors of any type; `phi_safe` suppresses all of
them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from parotid_seg.errors import ParotidSegError, ScanError, system_reason
from parotid_seg.scan.foreign import cause_of

for _library in ("pydicom", "highdicom"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)


@contextmanager
def phi_safe(path: Path, what: str) -> Iterator[None]:
    """Turn any exception raised over a file's content into one line without any of that content.

    Args:
        path: the file.
        what: for example "DICOM image".

    Raises:
        ScanError: with the cause by the type of the exception, or the missing attribute.
    """
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ParotidSegError:
            raise
        except MemoryError:
            raise ScanError("there is not enough memory for it", path=path) from None
        except OSError as error:
            raise ScanError(f"cannot be read ({system_reason(error)})", path=path) from None
        except Exception as error:
            if isinstance(error, AttributeError) and isinstance(error.obj, Dataset):
                raise ScanError(f"not a complete {what}: found no {error.name}", path=path) from None
            cause = cause_of(error) or "its content is not as expected"
            raise ScanError(f"not a readable {what} (pydicom: {cause})", path=path) from None
