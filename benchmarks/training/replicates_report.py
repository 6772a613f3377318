"""Table and picture of `benchmarks/training/replicates.py` in docs/study.md, from its committed results.

python benchmarks/training/replicates_report.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from replicates import ARMS, DRAWS, LABELLED, PRETRAININGS, Run, pretraining_name, read
from study import BOTH, ENCODER
from study_report import DOCS, label_of, put_between, row, training_interval

Arm = tuple[str, tuple[str, ...]]
Scores = NDArray[np.float64]
CLAIMS: tuple[tuple[str, Arm, Arm], ...] = (
    ("contrast from organs, against organs", ("organs+contrast", BOTH), ("organs", BOTH)),
    ("contrast from organs, against as much more organs", ("organs+contrast", BOTH), ("organs+organs", BOTH)),
    ("organs, against scratch", ("organs", BOTH), ("scratch", BOTH)),
    ("contrast from organs, against scratch", ("organs+contrast", BOTH), ("scratch", BOTH)),
    ("masked autoencoding from organs, against organs", ("organs+masked", BOTH), ("organs", BOTH)),
    ("contrast from organs, against masked autoencoding", ("organs+contrast", BOTH), ("organs+masked", BOTH)),
    ("ten times the contrast, against contrast", ("organs+long contrast", BOTH), ("organs+contrast", BOTH)),
    ("more organs, against organs", ("organs+organs", BOTH), ("organs", BOTH)),
    ("contrast from organs, against organs, encoder only", ("organs+contrast", ENCODER), ("organs", ENCODER)),
    ("encoder and decoder, against encoder only, organs", ("organs", BOTH), ("organs", ENCODER)),
    (
        "encoder and decoder, against encoder only, contrast from organs",
        ("organs+contrast", BOTH),
        ("organs+contrast", ENCODER),
    ),
)
UNIT = "pre-training"
BOOTSTRAPS = 10_000
MARKS = "<!-- table: made by benchmarks/training/replicates_report.py -->", "<!-- end of table -->"


def tested(arm: Arm) -> dict[int, Scores]:
    """Test DSC (draws, patients) of each pre-training that was tested with all draws."""
    found: dict[int, Scores] = {}
    for pretraining in range(PRETRAININGS):
        results = [read(Run(*arm, pretraining, draw).name) or {} for draw in range(DRAWS)]
        if all("test" in each for each in results):
            tests = [each["test"] for each in results]
            found[pretraining] = np.array([[each[case]["dsc"] or 0.0 for case in sorted(tests[0])] for each in tests])
    return found


def crossed_interval(differences: Scores) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over pre-trainings, draws and patients, all of them drawn again.

    Args:
        differences: (pre-trainings, draws, patients).
    """
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, count, (BOOTSTRAPS, count)) for count in differences.shape]
    means = [differences[np.ix_(*(indices[number] for indices in drawn))].mean() for number in range(BOOTSTRAPS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def difference(better: Arm, worse: Arm) -> str:
    """Of two arms in points of mean test DSC, paired by pre-training, draw and patient."""
    first, second = tested(better), tested(worse)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return "not run | "
    points = 100 * np.stack([first[number] - second[number] for number in shared])
    over_pretrainings = training_interval(list(points.mean(axis=(1, 2))), 1, "+", UNIT)
    return f"{over_pretrainings} | {{:+z.1f}} to {{:+z.1f}}".format(*crossed_interval(points))


def table() -> str:
    """Every arm, and every claim."""
    lines = [row(["start, parts taken from it", "core-minutes before fine-tuning", "mean test DSC"])]
    lines += ["|---" * 3 + "|"]
    for arm in ARMS:
        found = tested(arm)
        means = [float(each.mean()) for each in found.values()]
        dsc = training_interval(means, 3, unit=UNIT) if found else "not run"
        lines.append(row([label_of(*arm), minutes(arm[0]), dsc]))
    lines += [
        "",
        row(["claim", "difference in points, by pre-training", "interval over all that was repeated"]),
        "|---" * 3 + "|",
    ]
    lines += [f"| {claim} | {difference(better, worse)} |" for claim, better, worse in CLAIMS]
    return "\n".join(lines) + "\n"


def minutes(start: str) -> str:
    """Median of the core-minutes of a start's pre-trainings, its own start included."""
    if start == "scratch":
        return "0"
    totals = []
    for number in range(PRETRAININGS):
        parts = [read(f"start-{pretraining_name(name, number)}") for name in dict.fromkeys(("organs", start))]
        if all(parts):
            totals.append(sum(part["last"]["core_minutes"] for part in parts if part))
    return f"{np.median(totals):.0f}" if totals else "not run"


def draw(picture: Path) -> None:
    """Each fine-tuning is a point: its mean test DSC, by arm and draw."""
    figure = Figure((9, 4.5), layout="constrained")
    axes = figure.subplots()
    arms = {arm: found for arm in ARMS if (found := tested(arm))}
    for place, found in enumerate(arms.values()):
        for number in range(DRAWS):
            dsc = [float(each[number].mean()) for each in found.values()]
            shift = 0.12 * (number - (DRAWS - 1) / 2)
            label = f"patients of draw {number + 1}" if not place else None
            axes.scatter([place + shift] * len(dsc), dsc, color=f"C{number}", alpha=0.7, label=label)
        axes.hlines(float(np.mean(list(found.values()))), place - 0.25, place + 0.25, color="black")
    axes.set_xticks(range(len(arms)), [label_of(*arm).replace(", ", "\n") for arm in arms], fontsize=8)
    axes.set(
        xlim=(-0.5, len(arms) - 0.5),
        ylabel="mean test DSC of 40 patients",
        title=f"{LABELLED} labelled patients; a point is a fine-tuning",
    )
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    figure.savefig(picture, dpi=100)


def report(page: Path, picture: Path) -> None:
    """Put the table between the page's marks, and draw the picture."""
    put_between(MARKS, table(), page)
    draw(picture)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    report(DOCS / "study.md", DOCS / "pictures" / "replicates.png")
