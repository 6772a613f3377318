"""The one command for a machine with a GPU: setup, probe, bench and tests, one after the other, within minutes.

Each step is a process of its own with a limit, and writes its results at once, so that a step that hangs or crashes
costs no other one. Steps that are done are not done again: the same command, given again, continues. OUT/gpu.md is
what to read in the end; OUT/log.txt has everything that was printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRANSFERS = (("start of the machine, transfer of repository and bundle", 2.0), ("transfer of the results", 0.5))
TOTAL = 15.0
"""Minutes in all."""
GRACE_S = 10.0
"""Between asking a step to end and ending it."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: in OUT/steps.json.
        minutes: the longest that it may take.
        what: what it does, in a few words.
        command: after Python.
    """

    name: str
    minutes: float
    what: str
    command: tuple[str, ...]


def plan(options: argparse.Namespace) -> list[Step]:
    """All steps."""
    gpu, out = [str(HERE)], ["--out", str(options.out)]
    device = [*out, "--work", str(options.work), "--device", options.device]
    tests = ["-m", "pytest", "-m", "gpu", str(ROOT / "tests" / "gpu"), "-q", "-p", "no:cacheprovider"]
    bench = [*gpu, "bench", *device, *options.bench]
    steps = [
        Step("probe", 1.5, "labels of every graph against the CPU's, times", (*gpu, "probe", *device, *options.probe)),
        Step("bench", 7.0, "first use, torch against our graphs by batch, end to end", tuple(bench)),
        Step("tests", 1.0, "tests/gpu, tests of the backends on a GPU", tuple(tests)),
    ]
    if options.bundle:
        words = (*gpu, "setup", *out, "--bundle", str(options.bundle))
        steps.insert(0, Step("setup", 1.5, "installs the bundle, checks it by importing", words))
    return steps


def dry_list(steps: Sequence[Step]) -> str:
    """Minutes of everything as a Markdown table."""
    before, after = TRANSFERS
    rows = [before, *((f"`{step.name}`: {step.what}", step.minutes) for step in steps), after]
    rows.append(("reserve", TOTAL - sum(minutes for _, minutes in rows)))
    lines = [f"| {what} | {minutes:.1f} |" for what, minutes in rows]
    return "\n".join(["| step | at most, minutes |", "|---|---|", *lines, f"| all | {TOTAL:.1f} |"])


def run(step: Step, most_s: float, log: TextIO) -> int | str:
    """Run a step to its end or its limit; its exit status, or what ended it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command, words = [sys.executable, "-u", *step.command], list(step.command)
    if step.name == "bench" and "--minutes" not in words:
        command += ["--minutes", f"{max(0.1, (most_s - 2 * GRACE_S) / 60):.2f}"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    alarm = _Alarm(process.pid, most_s)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        log.write(line)
        log.flush()
    status = process.wait()
    return f"stopped after {most_s:.0f} s" if alarm.end() else status


class _Alarm:
    """Ends a step's process group when its time is over, at first by asking."""

    def __init__(self, group: int, seconds: float) -> None:
        code = (
            "import os, signal, sys, time\n"
            "group, seconds, grace = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])\n"
            "time.sleep(seconds); os.killpg(group, signal.SIGTERM)\n"
            "time.sleep(grace); os.killpg(group, signal.SIGKILL)\n"
        )
        self._process = subprocess.Popen([sys.executable, "-S", "-c", code, str(group), str(seconds), str(GRACE_S)])
        self._until = time.monotonic() + seconds

    def end(self) -> bool:
        """Stop; whether it had begun to end the step."""
        self._process.terminate()
        self._process.wait()
        return time.monotonic() >= self._until


def read_steps(out: Path) -> dict[str, Any]:
    """Results of the steps of an earlier call."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((out / "steps.json").read_text(encoding="utf-8")))
    return {}


def main(words: Sequence[str] | None = None) -> None:
    """Run all steps that are not done; status 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="gpu all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--bundle", type=Path, help="made by `bundle`; default: everything is installed")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="folder for scans, models and engines")
    parser.add_argument("--minutes", type=float, default=9.5, help="for this call")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu; cpu is for trying it")
    parser.add_argument("--slower", type=float, default=1.0, help="times the limit of every step, for a slow machine")
    parser.add_argument("--dry", action="store_true", help="print the minutes of each step, and do nothing")
    parser.add_argument("--bench", type=str.split, default=[], help="more options of bench, in one string")
    parser.add_argument("--probe", type=str.split, default=[], help="more options of probe, in one string")
    options = parser.parse_args(words)
    steps = plan(options)
    if options.dry:
        print(dry_list(steps))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    began, done = time.monotonic(), read_steps(options.out)
    with (options.out / "log.txt").open("a", encoding="utf-8") as log:
        for step in steps:
            left_s = 60 * options.minutes - (time.monotonic() - began)
            if done.get(step.name, {}).get("status") == 0 or left_s <= 0:
                continue
            print(f"== {step.name}", flush=True)
            started = time.monotonic()
            status = run(step, min(60 * step.minutes * options.slower, left_s), log)
            done[step.name] = {"status": status, "seconds": round(time.monotonic() - started, 1)}
            (options.out / "steps.json").write_text(json.dumps(done, indent=1) + "\n")
    print(json.dumps(done))
    if any(done.get(step.name, {}).get("status") != 0 for step in steps):
        raise SystemExit(1)
