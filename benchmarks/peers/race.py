"""The race: ours against nnU-Net, MONAI, bare engines and a plain loop, all on the same scans in one run.

    python benchmarks/peers/race.py DATA --environments DIR --work DIR --out FILE.json
        [--peers ours nnunet monai-2d ...] [--scans N] [--slow-scans N] [--repeats N] [--own-environment]

DATA is a raw data set of nnU-Net with imagesTs and labelsTs. Environments are made if they are missing. Every
contestant runs once for its peak memory, which also warms the machine up; then all of them take turns, each on one
scan, for its start-up, and on many; at last the masks of those that are trained are scored. FILE.json is written after
every step, with FILE.md and FILE.png beside it, and a race that was cut goes on from there. Who fails is named with
the reason, and tried again when the race goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import environments
import report
from contestants import Contestant, Ground, Job, chosen, contestants
from nnunet import NnUnet
from packaged_checkpoint import packaged_checkpoint
from record import Record, machine
from watch import Watched, family, watch

from parotid_seg.runtime.evaluation import evaluate
from parotid_seg.scan.nifti import case_name
from parotid_seg.system import available_cores, cpu_name

MEMORY_SCANS = 2
"""Peak memory is looked at in a run on so many scans."""
LAST_WORDS = 600
"""Characters of its output that say why a contestant failed."""


@dataclass(frozen=True)
class Rules:
    """How the race is run.

    Attributes:
        slow_scans: how many scans the slow ones get.
        repeats, slow_repeats: times that everyone, and the slow ones, have their turn.
        most_minutes: a command that takes longer has failed.
        accuracy: whether masks are scored.
    """

    slow_scans: int
    repeats: int
    slow_repeats: int
    most_minutes: float = 60.0
    accuracy: bool = True


class Race:
    """Runs contestants on scans.

    Args:
        everyone: who takes part, by name.
        scans: files, the first of them also alone for the start-up.
        labels: folder of reference masks.
        work: folder for masks and what the contestants print.
        rules: for all.
    """

    def __init__(
        self, everyone: dict[str, Contestant], scans: list[Path], labels: Path, work: Path, rules: Rules
    ) -> None:
        self.everyone, self.scans, self.labels, self.work, self.rules = everyone, scans, labels, work, rules
        self.last_count: dict[str, int] = {}

    def steps(self, record: Record) -> Iterator[tuple[str, Callable[[], None]]]:
        """What is still to be done, in turns: the contestant's name, and the work."""
        for name in self.everyone:
            if "peak_mib" not in record.row(name):
                yield name, partial(self.memory, name, record.row(name))
        for repeat in range(max(self.rules.repeats, self.rules.slow_repeats)):
            for name, contestant in self.everyone.items():
                wanted = self.rules.slow_repeats if contestant.slow else self.rules.repeats
                if len(record.row(name)["many_s"]) <= repeat < wanted:
                    yield name, partial(self.times, name, record.row(name))
        for name, contestant in self.everyone.items():
            if self.rules.accuracy and contestant.trained and "accuracy" not in record.row(name):
                yield name, partial(self.accuracy, name, record.row(name))

    def memory(self, name: str, row: dict[str, Any]) -> None:
        """Who it is, and its peak memory on a few scans."""
        contestant = self.everyone[name]
        row |= {"title": contestant.title, "weights": contestant.weights, "environment": contestant.environment}
        row |= {"engine_only": contestant.engine_only, "slow": contestant.slow, **contestant.about()}
        row["scans"] = min(self.rules.slow_scans, len(self.scans)) if contestant.slow else len(self.scans)
        seen = self.run(name, MEMORY_SCANS, memory=True)
        row |= {"peak_mib": seen.peak_mib, "peak_of_scans": MEMORY_SCANS, **last_json(self.log(name))}

    def times(self, name: str, row: dict[str, Any]) -> None:
        """Seconds on one scan and on many, both or none."""
        if self.everyone[name].engine_only:
            self.run(name, row["scans"])
            told = last_json(self.log(name))
            one, many = told["load_s"], told["engine_s"]
        else:
            one, many = self.run(name, 1).seconds, self.run(name, row["scans"]).seconds
        row["one_s"].append(one)
        row["many_s"].append(many)

    def accuracy(self, name: str, row: dict[str, Any]) -> None:
        """Scores of all scans; those that it did not get in the race are segmented now."""
        if self.last_count.get(name) != len(self.scans):
            self.run(name, len(self.scans))
        references = links(self.work / "references", [self.labels / f"{case_name(scan)}.nii.gz" for scan in self.scans])
        scores = evaluate(self.work / name, references)
        means = {figure: vars(scores.means[f"glands {figure}"]) for figure in ("dsc", "hd95_mm")}
        cases = {
            case: sum(gland.dsc for gland in each.labels.values()) / len(each.labels)
            for case, each in scores.cases.items()
        }
        row["accuracy"] = {**means, "dsc_by_case": cases}

    def run(self, name: str, count: int, *, memory: bool = False) -> Watched:
        """Segment the first so many scans.

        Raises:
            RuntimeError: if the command failed or masks are missing; tells its last words.
        """
        contestant, out, log = self.everyone[name], self.work / name, self.log(name)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        self.last_count[name] = count
        scans = self.scans[:count]
        command = contestant.command(Job(scans, links(self.work / "scans", scans), out))
        limit = ["timeout", "--kill-after=10", f"{60 * self.rules.most_minutes:.0f}"]
        started = time.monotonic()
        try:
            seen = watch([*limit, "sh", "-c", 'exec "$@" >"$0" 2>&1', str(log), *command], memory=memory)
        except SystemExit as error:
            if time.monotonic() - started >= 60 * self.rules.most_minutes:
                raise RuntimeError(f"took longer than {self.rules.most_minutes:g} minutes for {count} scans") from error
            said = log.read_text(errors="replace").strip() if log.exists() else ""
            raise RuntimeError(said[-LAST_WORDS:] or "ended with an error and without a word") from error
        masks = {case_name(path) for path in out.glob("*.nii.gz")}
        if not contestant.engine_only and (missing := {case_name(scan) for scan in scans} - masks):
            raise RuntimeError(f"no mask for {len(missing)} of {count} scans, {min(missing)} among them")
        return seen

    def log(self, name: str) -> Path:
        """Where its last output is."""
        return self.work / f"{name}.log"


def go(race: Race, record: Record) -> None:
    """Do every step; a contestant that fails is left out from then on, and one with new weights begins anew."""
    for name, contestant in race.everyone.items():
        row = record.row(name)
        row.pop("failed", None)
        if row.get("weights", contestant.weights) != contestant.weights:
            del record.found["contestants"][name]
    for name, work in race.steps(record):
        if "failed" in record.row(name):
            continue
        print(datetime.now(UTC).strftime("%H:%M:%S"), name, flush=True)
        try:
            work()
        except (Exception, SystemExit) as error:
            record.row(name)["failed"] = str(error) or repr(error)
            print(f"{name} failed: {error}", flush=True)
        record.write()


def links(folder: Path, files: list[Path]) -> Path:
    """A folder with links to just these files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file.resolve(strict=True))
    return folder


def last_json(log: Path) -> dict[str, Any]:
    """What a contestant printed as JSON in its last line, or nothing."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    try:
        told = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    known = ("load_s", "engine_s", "precision", "windows_a_scan")
    return {name: told[name] for name in known if name in told} if isinstance(told, dict) else {}


def end_children(*_: object) -> None:
    """When the race is ended, end who is running, so that nobody disturbs the next one."""
    for process in family(os.getpid())[1:]:  # parents first, so that none of them starts another
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    raise KeyboardInterrupt


def arguments_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="raw data set of nnU-Net with imagesTs and labelsTs")
    parser.add_argument("--environments", type=Path, required=True, help="see environments.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for what the peers make")
    parser.add_argument("--out", type=Path, required=True, help="FILE.json; FILE.md and FILE.png go beside it")
    parser.add_argument("--peers", nargs="*", default=(), help="names or their beginnings; default: everyone")
    parser.add_argument("--scans", type=int, help="only the first so many of imagesTs; default: all of them")
    parser.add_argument("--slow-scans", type=int, default=4, help="for slow contestants")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow-repeats", type=int, default=1, help="of slow contestants")
    parser.add_argument("--most-minutes", type=float, default=60, help="a command that takes longer has failed")
    parser.add_argument("--own-environment", action="store_true", help="run ours in a fresh one, not in this one")
    parser.add_argument("--no-accuracy", action="store_true", help="leave the references alone")
    return parser.parse_args()


def main() -> None:
    """Race."""
    arguments = arguments_of()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_children)
    places = {name: arguments.environments / name for name in environments.NAMES}
    own = environments.python_of(places["ours"]) if arguments.own_environment else Path(sys.executable)
    checkpoint = arguments.work / "packaged.pt"
    if not checkpoint.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        packaged_checkpoint(checkpoint)
    ground = Ground(arguments.data, checkpoint, arguments.environments, arguments.work, own)
    everyone = contestants(ground)
    everyone = {name: everyone[name] for name in chosen(list(everyone), arguments.peers)}
    pythons = {"race": Path(sys.executable), "ours": own}
    there = {"race"} if arguments.own_environment else {"race", "ours"}
    for name in sorted({each.environment for each in everyone.values()} - there):
        pythons[name] = environments.make(name, places[name])
    if any(each.environment == "nnunet" for each in everyone.values()):
        NnUnet(places["nnunet"], arguments.work / "nnunet", arguments.data).prepare(None, processes=1)
    scans = sorted((arguments.data / "imagesTs").glob("*.nii.gz"))[: arguments.scans]
    settings = {
        "data": arguments.data.resolve().name,
        "scans": [case_name(scan) for scan in scans],
        "slow_scans": arguments.slow_scans,
        "processor": cpu_name(),
        "cores": available_cores(),
        "own_environment": arguments.own_environment,
    }
    record = Record(arguments.out, settings)
    record.found["machine"] = record.found["machine"] or machine()
    record.found["environments"] |= {name: environments.versions(python) for name, python in pythons.items()}
    rules = Rules(
        arguments.slow_scans,
        arguments.repeats,
        arguments.slow_repeats,
        arguments.most_minutes,
        not arguments.no_accuracy,
    )
    try:
        go(Race(everyone, scans, arguments.data / "labelsTs", arguments.work / "race", rules), record)
    except KeyboardInterrupt:
        raise SystemExit("the race was ended; the same command goes on with it") from None
    print(report.table(record.found))


if __name__ == "__main__":
    main()
