"""What `infer` does on a machine on which it has never run: graphs are made, compared and timed; the choice and why.

In a process of its own with an empty cache folder, so that nothing is kept from before. Prints JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu.end_to_end import PYTHON
from gpu.inputs import GRAPHS, graph_file
from parotid_seg.runtime.engines.autotune import cache_folder
from parotid_seg.runtime.engines.load import load_backend

HERE = Path(__file__).parent


def first_use(model: Path, device: str, most_s: float) -> dict[str, Any]:
    """Figures of a first use.

    Returns:
        imports_s: seconds until everything is imported,
        graphs_s: seconds to make each graph, by name,
        choice_s: seconds for comparing and timing all of them,
        again_s: seconds to load what was chosen, as every later run does,
        ran, batch_size, said: what was chosen, and the line that `infer` prints of it,
        samples_a_second, refused: what it was chosen from, and reasons, by name.

    Raises:
        RuntimeError: if it fails.
        TimeoutError: after so many seconds.
    """
    code = (
        "import sys, time; began = time.monotonic(); sys.path[0:0] = sys.argv[1:3]; from gpu.first_use import report; "
    )
    code += "report(began, sys.argv[3], sys.argv[4])"
    with tempfile.TemporaryDirectory() as cache:
        command = [*PYTHON, "-c", code, str(HERE.parent), str(HERE.parents[1]), str(model), device]
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=max(1.0, most_s)
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"stopped after {most_s:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"ended with status {done.returncode}: {done.stderr[-300:]}")
    return dict(json.loads(done.stdout))


def report(began: float, model: str, device: str) -> None:
    """Print what a first use does, in the folder for caches that is set."""
    path, said = Path(model), list[str]()
    imports_s, graphs_s = seconds_since(began), {}
    for name in GRAPHS[1:]:
        started = time.monotonic()
        try:
            graph_file(name, path)
        except Exception as error:  # the choice goes on without it
            said.append(f"{name}: {error}")
        graphs_s[name] = seconds_since(started)
    backend, choice_s = timed(lambda: load_backend(path, device=device, allow_unverified=True, say=said.append))
    found = {"ran": str(backend.ran), "batch_size": backend.batch_size, "said": said}
    backend.close()
    again, again_s = timed(lambda: load_backend(path, device=device, allow_unverified=True))
    again.close()
    for choice in (cache_folder() / "engines").glob("*.json"):
        kept = json.loads(choice.read_text())
        found |= {"samples_a_second": kept["samples_per_s"], "refused": kept["refused"]}
    seconds = {"imports_s": imports_s, "graphs_s": graphs_s, "choice_s": choice_s, "again_s": again_s}
    sys.stdout.write(json.dumps({**seconds, **found}))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What work gives, and its seconds."""
    started = time.monotonic()
    return work(), seconds_since(started)


def seconds_since(moment: float) -> float:
    """Rounded."""
    return round(time.monotonic() - moment, 2)
