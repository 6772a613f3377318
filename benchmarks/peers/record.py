"""What a race has found so far, kept after every step, so that a race that was cut goes on."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report

from parotid_seg.files import write_text
from parotid_seg.system import available_cores, cpu_name, memory_bytes


class Record:
    """What the race has found so far.

    Args:
        path: FILE.json; what it holds already is gone on with.
        settings: a race goes on only with the same.

    Raises:
        SystemExit: if the file is of a race with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = {"settings": settings, "machine": {}, "environments": {}, "contestants": {}}
        if path.exists():
            self.found = json.loads(path.read_text())
            if (before := self.found["settings"]) != settings:
                differ = [name for name in settings if before.get(name) != settings[name]]
                raise SystemExit(f"{path}: a race with other {', '.join(differ)}; take another --out, or remove it")

    def row(self, name: str) -> dict[str, Any]:
        """What is known of a contestant."""
        row: dict[str, Any] = self.found["contestants"].setdefault(name, {"one_s": [], "many_s": []})
        return row

    def write(self) -> None:
        """FILE.json, FILE.md and FILE.png."""
        report.add_figures(self.found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(self.found, indent=1) + "\n", self.path)
        report.write(self.found, self.path)


def machine() -> dict[str, Any]:
    """What it is run on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": cpu_name(),
        "cores": available_cores(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "system": platform.system(),
    }
