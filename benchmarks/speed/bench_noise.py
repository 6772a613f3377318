"""How far `parotid-seg bench` can be trusted on this machine: equal runs, and engines slowed down on purpose.

    python benchmarks/speed/bench_noise.py --out FILE.json [--repeats 5] [--minutes 1] [--keep FOLDER]

The packaged model on onnxruntime is measured several times, then once with each slow-down, all by the same options.
Equal runs: how far their medians lie apart, of rounds with the machine undisturbed and of all chunks, and how often
`bench compare` finds something between two of them. Slowed ones: how often it finds them, each against every equal run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from slowed import Slowed

from parotid_seg.bench.bench_options import BenchOptions
from parotid_seg.bench.compare_results import SpeedComparison, compare_files
from parotid_seg.bench.measure import Bench
from parotid_seg.bench.result import Result
from parotid_seg.bench.selection import scans_for
from parotid_seg.bench.system_state import about_machine
from parotid_seg.files import write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.model_file import read_model

SIZES = (1, 16)
SLOWED = {
    "a sleep of 5 %": partial(Slowed, 0.05),
    "a sleep of 10 %": partial(Slowed, 0.10),
    "one thread": partial(Slowed, 0.0, 1),
}


def measured(make: Callable[[], Backend], minutes: float, path: Path) -> Result:
    """One run, kept as its bench.json."""
    contract = read_model(DEFAULT_MODEL).contract
    candidate = Candidate("onnxruntime", "onnxruntime", "fp32", DEFAULT_MODEL, make)
    options = BenchOptions(batch_sizes=SIZES, minutes=minutes)
    result = Bench(DEFAULT_MODEL, contract, [candidate], scans_for(None, contract), options).run()
    write_text(result.to_json(), path)
    return result


def medians(result: Result) -> dict[int, tuple[float, float, float]]:
    """By batch size: median in ms of undisturbed rounds and of all chunks, and the share of undisturbed rounds."""
    return {speed.batch_size: (speed.median_ms, speed.real.p50, speed.undisturbed) for speed in result.rows[0].speeds}


def verdicts(comparison: SpeedComparison) -> dict[str, str]:
    """By batch size."""
    return {
        str(change.batch_size): change.verdict + (f" ({change.ratio - 1:+.1%})" if change.ratio else "")
        for change in comparison.changes
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=1.0, help="of each run's turns")
    parser.add_argument("--keep", type=Path, help="folder for the bench.json of each run")
    arguments = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (here, os.environ.get("PYTHONPATH")))
    )  # where a contestant's process finds `slowed`
    with tempfile.TemporaryDirectory() as made:
        scratch = arguments.keep or Path(made)
        scratch.mkdir(exist_ok=True)
        equal = [scratch / f"{number}.json" for number in range(arguments.repeats)]
        found = [medians(measured(partial(Slowed, 0.0), arguments.minutes, path)) for path in equal]
        print(json.dumps(found), flush=True)
        pairs = list(itertools.permutations(equal, 2))
        told = {f"{one.stem} to {other.stem}": verdicts(compare_files(one, other)) for one, other in pairs}
        slowed = {}
        for name, make in SLOWED.items():
            path = scratch / f"{name.replace(' ', '-')}.json"
            measured(make, arguments.minutes, path)
            slowed[name] = [verdicts(compare_files(one, path)) for one in equal]
            print(name, json.dumps(slowed[name]), flush=True)
    alarms = sum(verdict.startswith(("slower", "faster")) for each in told.values() for verdict in each.values())
    silent = sum(verdict == "cannot tell" for each in told.values() for verdict in each.values())
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": about_machine(),
        "minutes": arguments.minutes,
        "medians_ms_undisturbed_and_all_and_share": found,
        "largest_over_smallest": {
            size: [max(each[size][kind] for each in found) / min(each[size][kind] for each in found) for kind in (0, 1)]
            for size in SIZES
        },
        "alarms_between_equal_runs": {"found": alarms, "cannot_tell": silent, "of": len(pairs) * len(SIZES)},
        "equal": told,
        "slowed": slowed,
    }
    write_text(json.dumps(content, indent=1) + "\n", arguments.out)
    print({key: content[key] for key in ("largest_over_smallest", "alarms_between_equal_runs")})


if __name__ == "__main__":
    main()
