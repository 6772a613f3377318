"""What `infer` does on a machine on which it has never run: graphs are made, compared and timed; the choice and why.

In a process of its own with an empty cache folder, so that nothing is kept from before.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu.end_to_end import PYTHON
from gpu.inputs import GRAPHS, graph_file
from parotid_seg.files import write_text
from parotid_seg.runtime.engines.autotune import cache_folder
from parotid_seg.runtime.engines.load import load_backend

HERE = Path(__file__).parent
SO_FAR = "first_use.json"
"""The figures of a first use that is running."""


def first_use(model: Path, device: str, out: Path, most_s: float) -> dict[str, Any]:
    """Figures of a first use, as far as it comes.

    Args:
        model, device: as for `infer`.
        out: folder in which the figures so far are kept while it runs.
        most_s: it is ended after so many seconds.

    Returns:
        imports_s: seconds until everything is imported,
        graphs_s: seconds to make each graph, by name,
        choice_s: seconds for comparing and timing all of them,
        again_s: seconds to load what was chosen, as every later run does,
        ran, batch_size: what was chosen,
        said: what `infer` prints and notes of it, each with the seconds since the start,
        samples_a_second, refused: what it was chosen from, and reasons, by name,
        stopped: why what comes after is missing; only if something is.
    """
    code = (
        "import sys, time; began = time.monotonic(); sys.path[0:0] = sys.argv[1:3]; from gpu.first_use import report; "
    )
    code += "report(began, sys.argv[3], sys.argv[4], sys.argv[5])"
    write_text("{}", out / SO_FAR)
    stopped = ""
    with tempfile.TemporaryDirectory() as cache:
        command = [*PYTHON, "-c", code, *map(str, (HERE.parent, HERE.parents[1], model, device, out / SO_FAR))]
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=max(1.0, most_s)
            )
            if done.returncode:
                stopped = f"it ended with status {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
        except subprocess.TimeoutExpired:
            stopped = f"stopped after {most_s:.0f} s"
    found = left_by_an_earlier(out)
    found.pop("stopped", None)
    return {**found, "stopped": stopped} if stopped else found


def left_by_an_earlier(out: Path) -> dict[str, Any]:
    """The figures that a first use has kept so far, removed from there; none if there are none."""
    try:
        found = dict(json.loads((out / SO_FAR).read_text(encoding="utf-8")))
        (out / SO_FAR).unlink()
    except (OSError, ValueError):
        return {}
    return {**found, "stopped": "ended from outside"}


def report(began: float, model: str, device: str, so_far: str) -> None:
    """Do what a first use does, with the folder for caches that is set, and write the figures after each part."""
    path, said, graphs_s = Path(model), list[str](), dict[str, float]()
    found: dict[str, Any] = {"imports_s": seconds_since(began), "graphs_s": graphs_s, "said": said}

    def keep(**more: Any) -> None:
        found.update(more)
        write_text(json.dumps(found), Path(so_far))

    def say(line: str) -> None:
        said.append(f"{seconds_since(began):.1f} s: {line}")
        keep()

    logging.getLogger("parotid_seg").addHandler(_Noted(say))
    logging.getLogger("parotid_seg").setLevel(logging.INFO)
    for name in GRAPHS[1:]:
        started = time.monotonic()
        try:
            graph_file(name, path)
        except Exception as error:  # the choice goes on without it
            say(f"{name}: {error}")
        graphs_s[name] = seconds_since(started)
        keep()
    backend, choice_s = timed(lambda: load_backend(path, device=device, allow_unverified=True, say=say))
    keep(ran=str(backend.ran), batch_size=backend.batch_size, choice_s=choice_s)
    for choice in (cache_folder() / "engines").glob("*.json"):
        kept = json.loads(choice.read_text())
        keep(samples_a_second=kept["samples_per_s"], refused=kept["refused"])
    backend.close()
    again, again_s = timed(lambda: load_backend(path, device=device, allow_unverified=True))
    again.close()
    keep(again_s=again_s)


class _Noted(logging.Handler):
    """Passes on what is logged."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Pass it on."""
        self._say(record.getMessage())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What work gives, and its seconds."""
    started = time.monotonic()
    return work(), seconds_since(started)


def seconds_since(moment: float) -> float:
    """Rounded."""
    return round(time.monotonic() - moment, 2)
