"""What the model's contours change of the planned mean dose: error by gland, and how often a limit is crossed.

    python benchmarks/quality/dose.py SCANS LABELS DOSES --out FILE.json

The plans are those that were made for the clinical contours (LABELS), so the error is that of an estimate of the plan's
dose with the model's contours. Intervals are of the bootstrap over patients.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from numpy.typing import NDArray
from resources import machine_and_versions

from parotid_seg.files import write_text
from parotid_seg.metrics import bootstrap_mean
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.evaluation import evaluate
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer

LIMITS_GY = (20.0, 26.0)
"""Mean doses that plans keep a gland below: one of the two 20 Gy, or both 25 to 26 Gy."""


@dataclass(frozen=True)
class Gland:
    """A gland with its mean doses in Gy.

    Attributes:
        case, name: whose and which.
        dsc: agreement of the contours.
        reference_gy, mean_gy: with the clinical contour, and with the model's.
    """

    case: str
    name: str
    dsc: float
    reference_gy: float
    mean_gy: float

    @property
    def error_gy(self) -> float:
        """The model's minus the clinical one."""
        return self.mean_gy - self.reference_gy

    def crosses(self, limit_gy: float) -> bool:
        """Whether only one of the mean doses is above a limit."""
        return (self.mean_gy > limit_gy) != (self.reference_gy > limit_gy)


def measured(masks: Path, labels: Path, doses: Path) -> list[Gland]:
    """The glands of all patients that both masks show."""
    result = evaluate(masks, labels, dose=doses)
    for note in result.notes:
        print(f"note: {note}")
    glands = [
        Gland(case, name, each.dsc, each.reference_mean_gy, each.mean_gy)
        for case, scores in result.cases.items()
        for name, each in scores.labels.items()
    ]
    return [gland for gland in glands if np.isfinite(gland.error_gy)]


@dataclass(frozen=True)
class Figures:
    """The figures of some glands, in Gy.

    Attributes:
        glands, patients: numbers.
        reference_gy: mean dose with the clinical contours.
        error_gy, absolute_error_gy: means over patients, each with its 95 % interval.
        median_gy, p95_gy, largest_gy: of the absolute errors.
        crossed: number of glands that are above a limit with one of the two contours only.
    """

    glands: int
    patients: int
    reference_gy: float
    error_gy: tuple[float, float, float]
    absolute_error_gy: tuple[float, float, float]
    median_gy: float
    p95_gy: float
    largest_gy: float
    crossed: dict[str, int]


def figures(glands: Sequence[Gland]) -> Figures:
    """The figures of some glands."""
    errors = np.array([gland.error_gy for gland in glands])
    median, p95, largest = np.percentile(np.abs(errors), [50, 95, 100]).tolist()
    return Figures(
        glands=len(glands),
        patients=len({gland.case for gland in glands}),
        reference_gy=float(np.mean([gland.reference_gy for gland in glands])),
        error_gy=over_patients(glands, errors),
        absolute_error_gy=over_patients(glands, np.abs(errors)),
        median_gy=median,
        p95_gy=p95,
        largest_gy=largest,
        crossed={f"{limit:g}": sum(gland.crosses(limit) for gland in glands) for limit in LIMITS_GY},
    )


def over_patients(glands: Sequence[Gland], values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean over patients of each one's mean, with its 95 % interval."""
    cases = np.array([gland.case for gland in glands])
    return bootstrap_mean([float(values[cases == case].mean()) for case in dict.fromkeys(cases)])


def table(by_name: dict[str, Figures]) -> str:
    """The figures as a Markdown table."""
    columns = [column(each) for each in by_name.values()]
    lines = [f"| | {' | '.join(by_name)} |", "|---" * (len(by_name) + 1) + "|"]
    lines += [f"| {title} | {' | '.join(each[title] for each in columns)} |" for title in columns[0]]
    return "\n".join(lines)


def column(each: Figures) -> dict[str, str]:
    """The cells of some glands by the title of their row."""
    shares = {limit: f"{count} ({count / each.glands:.0%})" for limit, count in each.crossed.items()}
    return {
        "glands (patients)": f"{each.glands} ({each.patients})",
        "mean dose with the clinical contours, Gy": f"{each.reference_gy:.1f}",
        "error, Gy": "{:+.2f} ({:+.2f} to {:+.2f})".format(*each.error_gy),
        "absolute error, Gy": "{:.2f} ({:.2f} to {:.2f})".format(*each.absolute_error_gy),
        "its median, Gy": f"{each.median_gy:.2f}",
        "its 95th percentile, Gy": f"{each.p95_gy:.2f}",
        "its largest, Gy": f"{each.largest_gy:.2f}",
        **{f"on another side of {limit} Gy": cell for limit, cell in shares.items()},
    }


def main() -> None:
    """Segment, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder with CASE_0000.nii.gz")
    parser.add_argument("labels", type=Path, help="folder with CASE.nii.gz, the clinical contours")
    parser.add_argument("doses", type=Path, help="folder with CASE.nii.gz in Gy, or with RTDOSE files")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--masks", type=Path, help="folder of infer for the masks; finished ones are used again")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        masks = arguments.masks or Path(scratch)
        options = InferOptions(pictures=False, report=False)
        summary = infer([arguments.scans], masks, lambda: load_backend(arguments.model, "onnxruntime"), options)
        if summary.failed:
            raise SystemExit(f"{summary.failed} scans could not be segmented")
        run = json.loads((masks / "run.json").read_text())
        glands = measured(masks, arguments.labels, arguments.doses)
    names = list(dict.fromkeys(gland.name for gland in glands))
    by_name = {name: figures([gland for gland in glands if gland.name == name]) for name in names}
    by_name["all"] = figures(glands)
    print(table(by_name))
    content = {
        "model": run["model"]["sha256"],
        "ran": run["ran"],
        "date": run["ended"][:10],
        **machine_and_versions(),
        "figures": {name: asdict(each) for name, each in by_name.items()},
        "glands": [asdict(gland) | {"error_gy": gland.error_gy} for gland in glands],
    }
    write_text(json.dumps(content, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
