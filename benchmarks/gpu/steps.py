"""The one command for a machine with a GPU: setup, probe, the parts of bench, and tests, within minutes.

Each step is a process of its own with a limit, and writes its results at once, so that a step that hangs or crashes
costs no other one. Steps that are done are not done again: the same command, given again, continues. A step that hangs
or crashes is tried once more after the others, without what it was at. OUT/gpu.md is what to read in the end;
OUT/log.txt has everything that was printed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from gpu.install import default_site, is_installed, read_bundle
from gpu.tried import AGAIN, NOTHING_RAN, TRYING, avoid_what_was_tried

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRANSFERS = (("start of the machine, transfer of repository and bundle", 2.0), ("transfer of the results", 0.5))
TOTAL = 15.0
"""Minutes in all."""
GRACE_S = 10.0
"""Between asking a step to end and ending it; and what a part of bench has for its end."""
LEAST_S = 20.0
"""A step is not begun with less time left."""
PARTS = {
    "first-use": (1.0, "what `infer` does on its first use"),
    "eager": (2.0, "torch eager against our graphs, batches of 64, 16, 256"),
    "compiled": (2.5, "torch.compile with CUDA graphs against the fastest of ours"),
    "end-to-end": (1.5, "`infer` with 4 and 16 readers; trace"),
    "options": (0.75, "other options of onnxruntime"),
}
"""Parts of bench: minutes, and what they do."""
ENGINES = ("engines", (1.25, "TensorRT against the fastest of ours"))
"""The part that is added where TensorRT is installed, and takes the reserve."""

CACHES = {"XDG_CACHE_HOME": "cache", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Variables for folders of caches, and the folders within that of the scans."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: in OUT/steps.json.
        minutes: the longest that it may take.
        what: what it does, in a few words.
        command: after Python.
        timed: whether the command has an option --until.
        environment: variables that it has if they are not set: folders for caches, as the home folder may be read-only.
    """

    name: str
    minutes: float
    what: str
    command: tuple[str, ...]
    timed: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def plan(options: argparse.Namespace) -> list[Step]:
    """All steps."""
    gpu, out = [str(HERE)], ["--out", str(options.out)]
    device = [*out, "--work", str(options.work), "--device", options.device]
    parts = dict(PARTS)
    if any(importlib.util.find_spec(module) for module in ("tensorrt", "tensorrt_rtx")):
        parts |= [ENGINES]
    tests = ["-m", "pytest", "-m", "gpu", str(ROOT / "tests" / "gpu"), "-v", "-p", "no:cacheprovider"]
    tests.append("--continue-on-collection-errors")  # what one file lacks does not stop the others
    steps = [
        Step("probe", 1.5, "labels of every graph against the CPU's, times", (*gpu, "probe", *device, *options.probe))
    ]
    for part, (minutes, what) in parts.items():
        words = (*gpu, "bench", "--parts", part, *device, *options.bench)
        steps.append(Step(part, minutes, what, words, timed=True))
    steps.append(Step("tests", 0.75, "tests/gpu, tests of the backends on a GPU", tuple(tests)))
    words = (*gpu, "planning", *out, "--device", options.device)
    steps.append(Step("planning", 0.5, "first chunks of a number of samples, by cuDNN's search", words))
    if options.bundle:
        words = (*gpu, "setup", *out, "--bundle", str(options.bundle))
        steps.insert(0, Step("setup", 1.25, "installs the bundle, checks it by importing", words))
    if options.data:
        run = options.work / f"train-{time.strftime('%H%M%S')}"
        how = ("--out", str(run), "--config", str(HERE / "train.toml"), "--device", options.device, "--verbose")
        words = ("-m", "parotid_seg", "train", str(options.data), *how)
        steps.append(Step("train", 1.0, "every stage of training, a few epochs", words))
    caches = {name: str(options.work.resolve() / folder) for name, folder in CACHES.items()}
    if unknown := set(options.steps or ()) - {step.name for step in steps}:
        found, expected = ", ".join(sorted(unknown)), ", ".join(step.name for step in steps)
        raise SystemExit(f"--steps: found {found}, expected some of {expected}")
    return [replace(step, environment=caches) for step in steps if not options.steps or step.name in options.steps]


def dry_list(steps: Sequence[Step]) -> str:
    """Minutes of everything as a Markdown table."""
    before, after = TRANSFERS
    rows = [before, *((f"`{step.name}`: {step.what}", step.minutes) for step in steps), after]
    rows.append(("reserve", TOTAL - sum(minutes for _, minutes in rows)))
    lines = [f"| {what} | {minutes:.2f} |" for what, minutes in rows]
    return "\n".join(["| step | at most, minutes |", "|---|---|", *lines, f"| all | {TOTAL:.2f} |"])


def run(step: Step, most_s: float, log: TextIO) -> int | str:
    """Run a step to its end or its limit; its exit status, or what ended it."""
    environment = {
        **step.environment,
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-u", *step.command]
    if step.timed:
        command += ["--until", f"{time.time() + max(GRACE_S, most_s - GRACE_S):.1f}"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    alarm = _Alarm(process.pid, most_s)
    copying = threading.Thread(target=_copy, args=(process.stdout, log))
    copying.start()
    status = process.wait()
    stopped = alarm.end()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind would hold the GPU and its output
    copying.join()
    if stopped:
        return f"stopped after {most_s:.0f} s"
    return status if status >= 0 else f"ended by signal {-status}"


def _copy(source: TextIO, log: TextIO) -> None:
    for line in source:
        print(line, end="", flush=True)
        log.write(line)
        log.flush()


class _Alarm:
    """Ends a step's process group when its time is over, at first by asking, or when this process has ended."""

    def __init__(self, group: int, seconds: float) -> None:
        code = (
            "import os, signal, sys, time\n"
            "group, until, grace = int(sys.argv[1]), time.monotonic() + float(sys.argv[2]), float(sys.argv[3])\n"
            "parent = int(sys.argv[4])\n"
            "while time.monotonic() < until and os.getppid() == parent: time.sleep(0.1)\n"
            "if os.getppid() == parent: os.killpg(group, signal.SIGTERM); time.sleep(grace)\n"
            "os.killpg(group, signal.SIGKILL)\n"
        )
        words = [sys.executable, "-S", "-c", code, *map(str, (group, seconds, GRACE_S, os.getpid()))]
        self._process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
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


def cpu_seconds() -> float:
    """What ended processes of this one have computed, on all cores together."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_turn(steps: Sequence[Step], done: dict[str, Any]) -> list[Step]:
    """Steps that are left: `setup`, a probe in which nothing ran, those that were never tried, those that failed."""
    status = {name: found.get("status") for name, found in done.items()}
    left = [step for step in steps if status.get(step.name) != 0]
    return sorted(
        left, key=lambda step: (step.name != "setup", status.get(step.name) != NOTHING_RAN, step.name in done)
    )


def run_all(
    steps: Sequence[Step], out: Path, minutes: float, slower: float, log: TextIO, again: Collection[str] = ()
) -> dict[str, Any]:
    """Run the steps that are left, and those that hang or crash once more after the others; results by step.

    After a probe in which no graph ran it stops, so that there is time left to try again, with another bundle.

    Args:
        steps: all of them.
        out: where results of earlier calls are, and are written.
        minutes: for this call.
        slower: times the limit of each step.
        log: where to write what they print.
        again: steps that are done again.
    """
    began, done = time.monotonic(), {name: found for name, found in read_steps(out).items() if name not in again}

    def once(step: Step) -> bool:
        """Run a step; whether it need not be tried once more."""
        left_s = 60 * minutes - (time.monotonic() - began)
        if left_s < LEAST_S:
            print(f"== {step.name}: no time left for it", flush=True)
            return True
        print(f"== {step.name}", flush=True)
        (out / TRYING).unlink(missing_ok=True)
        started, computed, most_s = time.monotonic(), cpu_seconds(), 60 * step.minutes * slower
        status = run(step, min(most_s, left_s), log)
        if isinstance(status, str) and most_s <= left_s:  # else it was perhaps only short of time
            avoid_what_was_tried(out)
        spent = {"seconds": time.monotonic() - started, "cpu_seconds": cpu_seconds() - computed}
        done[step.name] = {"status": status, **{name: round(each, 1) for name, each in spent.items()}}
        partial = out / ".steps.json"
        partial.write_text(json.dumps(done, indent=1) + "\n")
        partial.replace(out / "steps.json")
        return isinstance(status, int) and status != AGAIN

    once_more = []
    for step in in_turn(steps, done):
        if not once(step):
            once_more.append(step)
        if done.get(step.name, {}).get("status") == NOTHING_RAN:
            print(f"== stopped: no graph ran, see {out / 'probe.jsonl'}; the same command tries again", flush=True)
            return done
    for step in once_more:
        once(step)
    return done


def lock(log: TextIO, out: Path) -> None:
    """Hold a run's log until it is closed or this process ends.

    Raises:
        SystemExit: if another run holds it: both would write the same results and share the GPU.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"{out}: another `gpu all` is writing there; wait for it, or give another --out") from None


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
    parser.add_argument("--data", type=Path, help="data set of parotid-seg train, for the step train; default: without")
    parser.add_argument("--steps", nargs="+", help="only these, in the usual order; default: all")
    parser.add_argument("--dry", action="store_true", help="print the minutes of each step, and do nothing")
    parser.add_argument("--bench", type=str.split, default=[], help="more options of bench, in one string")
    parser.add_argument("--probe", type=str.split, default=[], help="more options of probe, in one string")
    options = parser.parse_args(words)
    steps = plan(options)
    if options.dry:
        print(dry_list(steps))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "log.txt").open("a", encoding="utf-8") as log:
        lock(log, options.out)
        # the results may have been carried here from a machine on which it was done
        is_missing = options.bundle and not is_installed(read_bundle(options.bundle), default_site())
        again = {"setup"} if is_missing else set()
        done = run_all(steps, options.out, options.minutes, options.slower, log, again)
    with contextlib.suppress(OSError):
        print((options.out / "gpu.md").read_text(encoding="utf-8"))
    print(json.dumps(done))
    if any(done.get(step.name, {}).get("status") != 0 for step in steps):
        raise SystemExit(1)
