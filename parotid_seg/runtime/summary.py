"""summary.csv, a row a case, and run.json, what the run was made with."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import platform
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parotid_seg.files import write_text
from parotid_seg.runtime.backend import Backend
from parotid_seg.runtime.journal import Entry
from parotid_seg.runtime.machine import versions_of

STATUSES = ("done", "skipped", "failed")
STAGES = ("read", "segment", "write")
PACKAGES = (
    "parotid-seg",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
    "numpy",
    "scipy",
    "nibabel",
    "isal",
)


FORMULA = frozenset("=+-@\t\r\n")
"""First characters of what a spreadsheet runs as a formula, or looks behind for one (OWASP, "CSV Injection")."""


def write_summary(entries: Sequence[Entry], labels: tuple[str, ...], path: Path) -> None:
    """Write a row a case: status, volumes in ml, flags, seconds by stage, what ran.

    Texts come from names of files and of labels, so all go through `harmless`.

    Raises:
        OutputError: if that fails.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    names = labels[1:]
    short = [harmless(name.removeprefix("parotid_")) for name in names]
    flipped = any(entry.agreement for entry in entries)
    agreement = [f"{name}_agreement" for name in short] if flipped else []
    volumes, times = [f"{name}_ml" for name in short], [f"{stage}_s" for stage in STAGES]
    ran = ["backend", "device", "precision"]
    writer.writerow(["case", "status", *volumes, *agreement, "flags", *times, *ran, "reason", "mask", "source"])
    for entry in entries:
        case, flags = harmless(entry.case), harmless("; ".join(entry.flags))
        sizes = [f"{entry.volumes_ml[name]:.2f}" if name in entry.volumes_ml else "" for name in names]
        alike = [f"{entry.agreement[name]:.3f}" if name in entry.agreement else "" for name in names if flipped]
        seconds = [entry.seconds.get(stage, "") for stage in STAGES]
        told = map(harmless, (entry.backend, entry.device, entry.precision, entry.reason, entry.mask, entry.source))
        writer.writerow([case, entry.status, *sizes, *alike, flags, *seconds, *told])
    write_text(text.getvalue(), path)


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula: with an apostrophe in front if it begins like one.

    Full-width forms of these characters count as well: spreadsheets in Japanese take them for the same.
    """
    return f"'{text}" if unicodedata.normalize("NFKC", text[:1]) in FORMULA else text


def write_run(
    backend: Backend, options: Any, scans: Sequence[Path], begun: datetime, cases: Mapping[str, int], path: Path
) -> None:
    """Write what a run was made with.

    Args:
        backend: the model that ran.
        options: a dataclass.
        scans: what was asked for.
        begun: when.
        cases: how many ended how.
        path: the file to make.

    Raises:
        OutputError: if that fails.
    """
    content = {
        "begun": begun.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {**dataclasses.asdict(options), "scans": [str(scan) for scan in scans]},
        "model": {"sha256": backend.model_sha256, "contract": json.loads(backend.contract.to_json())},
        "ran": dataclasses.asdict(backend.ran),
        "cases": cases,
        "versions": versions_of(PACKAGES),
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
    }
    write_text(json.dumps(content, indent=1) + "\n", path)
