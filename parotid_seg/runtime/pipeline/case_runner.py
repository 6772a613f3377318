"""Runs a case from scan to mask: done before, completely done now, or failed with a reason."""

from __future__ import annotations

import hashlib
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.calibration import calibration_of, quality_text
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import EXHAUSTED, InputError, MachineError, OutputError, ScanError, system_reason
from parotid_seg.files import hash_file, make_folder_in, visible
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.journal import Entry, is_whole
from parotid_seg.runtime.pipeline.preflight import read_for_model
from parotid_seg.runtime.pipeline.protocol.messages import PICTURES, WorkerConfig, entry_of, failed, views_of
from parotid_seg.runtime.pipeline.sources import Scan, hash_source
from parotid_seg.runtime.report.overlay import draw_case, save_picture
from parotid_seg.runtime.segmentation.locate import Ask, labels_of_scan
from parotid_seg.runtime.segmentation.segment import Segmentation, postprocess
from parotid_seg.scan.intensity import window_of
from parotid_seg.scan.nifti import NiftiScan
from parotid_seg.scan.volume import Mask

if TYPE_CHECKING:
    from parotid_seg.runtime.doses import CaseDose


def run_case(work: WorkerConfig, case: Case, earlier: Entry | None, ask: Ask) -> tuple[str, Entry]:
    """Run a case.

    Args:
        work, case: configuration and case.
        earlier: the journal's entry of the case.
        ask: computes the labels.

    Returns:
        "done", "skipped" (done before) or "failed", and the case's entry.

    Raises:
        OutputError: if results cannot be written at all.
        MachineError: if a resource of the machine is exhausted, such as open files.
    """
    key, begun = "", time.perf_counter()
    try:
        key = key_of(case.scan, work)
        dose_sha256 = _hash_of_dose(case.dose) if case.dose else ""
        same = earlier and earlier.key == key and dose_sha256 in ("", earlier.dose_sha256)
        if earlier and same and not work.options.overwrite and is_whole(earlier, work.out):
            return "skipped", earlier
        entry = _segment(work, case, key, ask, begun)
        return "done", replace(entry, dose=str(case.dose or ""), dose_sha256=dose_sha256)
    except (ScanError, InputError) as error:
        return "failed", failed(case, error.reason, key, path=error.path)
    except MemoryError:
        reason = "there is not enough memory for it"
    except (OutputError, MachineError, EOFError, BrokenPipeError):
        raise
    except Exception as error:  # a bug; the other scans go on
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            raise MachineError.of(error) from error
        reason = f"unexpected {_bug(error, case)}"
    return "failed", failed(case, reason, key)


def _bug(error: Exception, case: Case) -> str:
    """Print an error's traceback, and return its type only, because its text may name folders and quote a scan's file.

    For DICOM files the text is not printed either.
    """
    if any(isinstance(source, Series) for source in case.scan):
        traceback.print_tb(error.__traceback__)
    else:
        traceback.print_exc()
    return f"{type(error).__name__}; see the traceback above"


def key_of(scan: Scan, work: WorkerConfig) -> str:
    """Hash of everything that determines the mask.

    Raises:
        ScanError: if a file cannot be read.
    """
    hashes = []
    for channel, source in zip(work.contract.channels, scan, strict=True):
        try:
            hashes.append(hash_source(source))
        except FileNotFoundError as error:
            raise ScanError(f"no such file, expected the case's channel {channel}", path=error.filename) from error
        except OSError as error:
            raise ScanError(f"cannot be read ({system_reason(error)})", path=error.filename) from error
    return hashlib.sha256(" ".join((*hashes, *work.fingerprint)).encode()).hexdigest()


def _hash_of_dose(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise ScanError(f"cannot be read ({system_reason(error)})", path=path) from error


def _segment(work: WorkerConfig, case: Case, key: str, ask: Ask, begun: float) -> Entry:
    source = case.scan[0]
    work.options.outputs.check(source)
    paths = [work.out / name for name in work.options.outputs.names(case.name)]
    scan, result, seconds, answered = _labelled(work, case, ask, begun)
    dose = _dose_of(case, scan, result.mask, work.contract.labels)
    noticed = work.options.outputs.write(
        result.mask, scan, source, work.contract.labels, work.made_by, work.out / case.name, _notes(result, work)
    )
    first, *further = paths
    dz, dy, dx = scan.volume.spacing_mm
    seconds["write"] = time.perf_counter() - answered
    return replace(
        entry_of(case, key, "done"),
        mask=first.name,
        mask_sha256=hash_file(first),
        further={path.name: hash_file(path) for path in further},
        volumes_ml={name: round(size, 3) for name, size in result.volumes_ml.items()},
        agreement={name: round(dsc, 4) for name, dsc in result.agreement.items()},
        flags=(*result.flags, *noticed, *(dose.flags if dose else ())),
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        settings=work.settings,
        decoders=scan.volume.decoders,
        shape=scan.volume.shape,
        spacing_mm=(round(dz, 6), round(dy, 6), round(dx, 6)),
        mean_gy={name: round(gray, 3) for name, gray in dose.mean_gy.items()} if dose else {},
        expected_dsc={name: round(dsc, 4) for name, dsc in result.expected_dsc.items()},
        floor_dsc={name: round(dsc, 4) for name, dsc in result.floor_dsc.items()},
    )


def _notes(result: Segmentation, work: WorkerConfig) -> dict[str, str]:
    """A sentence on the quality of each structure found, for DICOM objects."""
    return {
        name: quality_text(result.expected_dsc.get(name), result.floor_dsc.get(name))
        for name, size in result.volumes_ml.items()
        if name in result.expected_dsc or (size and calibration_of(name, work.contract.calibrations) is None)
    }


def _dose_of(case: Case, scan: NiftiScan, mask: Mask, labels: tuple[str, ...]) -> CaseDose | None:
    """The mean dose of each structure; None if the case has no dose."""
    if not case.dose:
        return None
    from parotid_seg.runtime import doses

    stored = scan.volume.orientation.to_storage(mask)
    planned = doses.read(case.dose, in_frame=isinstance(case.scan[0], Series))
    return doses.mean_doses(planned, stored, scan.geometry.affine, labels)


def _labelled(
    work: WorkerConfig, case: Case, ask: Ask, begun: float
) -> tuple[NiftiScan, Segmentation, dict[str, float], float]:
    """Read and segment a scan, and draw its pictures.

    Returns:
        The scan without its voxels, which writing does not need; its mask; seconds of reading and segmenting; and when
        the model's answer came, by `time.perf_counter`.
    """
    contract = work.contract
    scan, prepared = read_for_model(case.scan, contract)
    read = time.perf_counter()
    cropped, labelled = labels_of_scan(prepared, ask, work.options)
    answered = time.perf_counter()
    result = postprocess(
        labelled.labels, cropped, scan.volume, contract, work.options, agreement=labelled.agreement
    ).only(work.options.rois.written(contract.labels), contract.labels)
    seconds = {"read": read - begun, "segment": labelled.seconds}
    del prepared, cropped, labelled  # before pictures are drawn, as copies of a large scan
    if work.options.pictures:
        pictures = make_folder_in(work.out, PICTURES)
        window = window_of(scan.volume.voxels[0], contract.windows[0])
        named, sizes = visible(case.name), result.volumes_ml
        picture = draw_case(scan.volume, window, result.mask, contract.labels, sizes, named, rois=work.options.rois)
        save_picture(picture, pictures / f"{case.name}.png")
        if work.options.views:
            save_picture(picture, pictures / views_of(case.name))
    return replace(scan, volume=scan.volume.without_voxels()), result, seconds, answered
