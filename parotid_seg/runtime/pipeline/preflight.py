"""Reads and checks a scan for the model; shared by `infer` and `inspect`."""

from __future__ import annotations

from parotid_seg.contract import Contract
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag
from parotid_seg.runtime.pipeline.sources import Scan, place_of, read_scan
from parotid_seg.runtime.report.flag_text import sentences
from parotid_seg.runtime.segmentation.locate import Prepared
from parotid_seg.runtime.segmentation.segment import prepare
from parotid_seg.scan.nifti import NiftiScan

SEGMENTED = "segmented"
"""Beginning of the decision on a scan that the model accepts."""


def read_for_model(scan: Scan, contract: Contract) -> tuple[NiftiScan, Prepared]:
    """Read a scan, and prepare it for the model.

    Raises:
        ScanError: if it cannot be read, or the model cannot use it.
    """
    read = read_scan(scan)
    return read, prepare(read.volume, contract)


def decision_on(scan: Scan, contract: Contract) -> str:
    """What `infer` would do with a scan, in one line: segment it, with its flags; or refuse it, with the reason."""
    from parotid_seg.runtime.pipeline.apart import with_care

    try:
        flags = with_care(scan, _flags_of, scan, contract)
    except MemoryError:
        return "refused: there is not enough memory for it"
    except ScanError as error:
        path = scan[0].folder if isinstance(scan[0], Series) else place_of(scan[0])
        return f"refused: {error.reason if error.path in (None, path) else error}"
    notes = sentences(flags)
    return SEGMENTED + (f"; note: {notes}" if notes else "")


def _flags_of(scan: Scan, contract: Contract) -> tuple[Flag, ...]:
    return read_for_model(scan, contract)[1].flags
