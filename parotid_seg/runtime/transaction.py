"""A case from scan to mask: done before, done now as a whole, or failed with its reason."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable

from parotid_seg.errors import OutputError, ScanError
from parotid_seg.files import make_folder
from parotid_seg.runtime.batches import Labelled
from parotid_seg.runtime.cases import Case, Scan
from parotid_seg.runtime.journal import Entry, hash_file, is_whole
from parotid_seg.runtime.messages import PICTURES, Work, failed, views_of
from parotid_seg.runtime.picture import draw_overlay
from parotid_seg.runtime.report_views import draw_views
from parotid_seg.runtime.segmenter import conclude, prepare
from parotid_seg.scan.chunks import Covered
from parotid_seg.scan.intensity import window_of
from parotid_seg.scan.nifti import is_own_mask, read_nifti, write_mask

Ask = Callable[[Covered], Labelled]
"""What the model makes of a scan."""


def do_case(work: Work, case: Case, known: Entry | None, ask: Ask) -> tuple[str, Entry]:
    """Do a case.

    Args:
        work, case: what to do.
        known: what the journal has of the case.
        ask: gives the labels.

    Returns:
        "done", "skipped" (done before) or "failed", and what is to be known of it.

    Raises:
        OutputError: if results cannot be written at all.
    """
    key, begun = "", time.perf_counter()
    try:
        key = key_of(case.scan, work)
        if known and not work.overwrite and known.key == key and is_whole(known, work.out):
            return "skipped", known
        return "done", _segment(work, case, known, key, ask, begun)
    except ScanError as error:
        named = any(str(path) in str(error) for path in case.scan)
        reason = str(error) if named else f"{case.scan[0]}: {error}"
    except MemoryError:
        reason = f"{case.scan[0]}: there is not enough memory for it"
    except (OutputError, EOFError, BrokenPipeError):
        raise
    except Exception as error:  # a bug; the other scans need not wait until it is mended
        traceback.print_exc()
        reason = f"{case.scan[0]}: unexpected {type(error).__name__}: {' '.join(str(error).split())}"
    return "failed", failed(case, reason, key)


def key_of(scan: Scan, work: Work) -> str:
    """Hash over everything that decides the mask.

    Raises:
        ScanError: if a file cannot be read.
    """
    hashes = []
    for channel, path in zip(work.contract.channels, scan, strict=True):
        try:
            hashes.append(hash_file(path))
        except FileNotFoundError as error:
            raise ScanError(f"{path}: no such file, expected the case's channel {channel}") from error
        except OSError as error:
            raise ScanError(f"{path}: cannot be read ({error.strerror})") from error
    return hashlib.sha256(" ".join((*hashes, *work.decides)).encode()).hexdigest()


def _segment(work: Work, case: Case, known: Entry | None, key: str, ask: Ask, begun: float) -> Entry:
    path = work.out / f"{case.name}.nii.gz"
    if known is None and path.exists() and not is_own_mask(path):
        raise ScanError(f"{case.scan[0]}: {path} exists and is no mask of ours; move it or choose another --out")
    scan = read_nifti(*case.scan)
    covered = prepare(scan.volume, work.contract)
    read = time.perf_counter()
    labelled = ask(covered)
    answered = time.perf_counter()
    found = conclude(
        labelled.labels, covered, scan.volume, work.contract, clean_up=work.clean_up, agreement=labelled.agreement
    )
    if work.pictures or work.views:
        pictures = work.out / PICTURES
        make_folder(pictures)
        window = window_of(scan.volume.voxels[0], work.contract.windows[0])
        if work.pictures:
            picture = pictures / f"{case.name}.png"
            draw_overlay(scan.volume, window, found.mask, found.volumes_ml, case.name, picture)
        if work.views:
            draw_views(scan.volume, window, found.mask, work.contract.labels, pictures / views_of(case.name))
    write_mask(found.mask, scan, path)
    mask_sha256 = hash_file(path)
    seconds = {"read": read - begun, "segment": labelled.seconds, "write": time.perf_counter() - answered}
    return Entry(
        case=case.name,
        source=str(case.scan[0]),
        key=key,
        status="done",
        mask=path.name,
        mask_sha256=mask_sha256,
        volumes_ml={name: round(size, 3) for name, size in found.volumes_ml.items()},
        agreement={name: round(dsc, 4) for name, dsc in found.agreement.items()},
        flags=found.flags,
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
    )
