"""summary.csv with a row per case, and the record of the run in run.json and results.json."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parotid_seg.files import visible
from parotid_seg.runtime.engines.registry import ENGINES
from parotid_seg.runtime.pipeline.executor import Executor
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.report.flag_text import sentences
from parotid_seg.runtime.report.identities import PatientIdentity
from parotid_seg.runtime.report.results import ModelRecord, RunRecord
from parotid_seg.system import versions_of
from parotid_seg.tables import write_csv

STATUSES = ("done", "skipped", "failed")
STAGES = ("read", "segment", "write")
PACKAGES = (
    "parotid-seg",
    *(package for engine in ENGINES.values() for package in engine.packages),
    "pycuda",
    "tritonclient",
    "ray",
    "pydicom",
    "highdicom",
    "pylibjpeg-openjpeg",
    "pyjpegls",
    "python-gdcm",
    "numpy",
    "scipy",
    "nibabel",
    "isal",
)


def write_summary(
    entries: Sequence[Entry],
    labels: tuple[str, ...],
    path: Path,
    patients: Mapping[str, PatientIdentity] | None = None,
) -> None:
    """Write a row per case: status, volumes in ml, expected DSC and floor, flags as text and codes, seconds, engine.

    Expected DSC and floor are empty for a model that is not calibrated. Mean doses in Gy have columns if some case has
    a dose. The last column, the DICOM series of a scan, exists only if some scan is a DICOM series.

    Args:
        entries: of the cases.
        labels: names by value.
        path: the file to make.
        patients: by case, for an additional column; None for no such column.

    Raises:
        OutputError: if that fails.
    """
    names = labels[1:]
    short = [name.removeprefix("parotid_") for name in names]
    flipped = any(entry.agreement for entry in entries)
    agreement = [f"{name}_agreement" for name in short] if flipped else []
    planned = any(entry.dose for entry in entries)
    doses = [f"{name}_mean_gy" for name in short] if planned else []
    quality = [f"{name}_{figure}" for name in short for figure in ("expected_dsc", "floor_dsc")]
    volumes, times = [f"{name}_ml" for name in short], [f"{stage}_s" for stage in STAGES]
    ran = ["backend", "device", "precision"]
    series = ["series"] if any(entry.series for entry in entries) else []
    patient_heads, flagged = [] if patients is None else ["patient"], ["flags", "flag_codes"]
    heads = ["case", *patient_heads, "status", *volumes, *quality, *doses, *agreement, *flagged, *times, *ran]
    rows: list[list[object]] = [[*heads, "reason", "mask", "source", *series]]
    for entry in entries:
        codes = ";".join(flag.code for flag in entry.flags)
        sizes = [f"{entry.volumes_ml[name]:.2f}" if name in entry.volumes_ml else "" for name in names]
        gray = [f"{entry.mean_gy[name]:.2f}" if name in entry.mean_gy else "" for name in names if planned]
        alike = [f"{entry.agreement[name]:.3f}" if name in entry.agreement else "" for name in names if flipped]
        expected = [
            f"{figures[name]:.3f}" if name in figures else ""
            for name in names
            for figures in (entry.expected_dsc, entry.floor_dsc)
        ]
        seconds = [entry.seconds.get(stage, "") for stage in STAGES]
        run_values = [entry.backend, entry.device, entry.precision, entry.failure, entry.mask, entry.place]
        run_values += [entry.series for _ in series]
        patient_values = [] if patients is None else [visible(patients.get(entry.case, ""))]
        flags = [sentences(entry.flags), codes]
        figures = [*sizes, *expected, *gray, *alike]
        rows.append([entry.case, *patient_values, entry.status, *figures, *flags, *seconds, *run_values])
    write_csv(rows, path)


def run_record(
    site: Executor,
    model_name: str,
    options: Any,
    scans: Sequence[Path],
    begun: datetime,
    cases: Mapping[str, int],
    not_reached: int,
    not_used: Mapping[str, int],
) -> RunRecord:
    """The record of a run, at its end.

    Args:
        site: the executor of the cases.
        model_name: see `ModelRecord`.
        options: a dataclass.
        scans: the scans of the command line.
        begun: start time.
        cases, not_reached, not_used: see `RunRecord`.
    """
    return RunRecord(
        begun=begun.isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        options={**dataclasses.asdict(options), "scans": [str(scan) for scan in scans]},
        model=ModelRecord(sha256=site.model_sha256, contract=site.contract, name=model_name),
        ran=site.ran,
        **site.about,
        cases=dict(cases),
        not_reached=not_reached,
        not_used=dict(not_used),
        versions=versions_of(PACKAGES),
        machine={"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
    )
