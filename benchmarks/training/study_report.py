"""The study's tables and picture in docs/study.md, from the committed results of `benchmarks/training/study.py`.

python benchmarks/training/study_report.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from study import (
    ARMS,
    BOTH,
    BUDGETS,
    ENCODER,
    FIGURES,
    LABELLED,
    MAIN_ARMS,
    RATES,
    SEEDS,
    SLICES_AN_EPOCH,
    TRIAL_EPOCHS,
    TRIALS,
    Run,
    chosen_rate,
    read,
    slug,
)

from parotid_seg.metrics import bootstrap_mean

Arm = tuple[str, tuple[str, ...]]
Figures = dict[str, dict[str, float | None]]
CLAIMS: tuple[tuple[str, Arm, Arm], ...] = (
    ("organs against scratch", ("organs", BOTH), ("scratch", BOTH)),
    ("contrast against scratch", ("contrast", BOTH), ("scratch", BOTH)),
    ("contrast from organs against scratch", ("organs+contrast", BOTH), ("scratch", BOTH)),
    ("contrast from organs against organs", ("organs+contrast", BOTH), ("organs", BOTH)),
    ("the same, encoder only", ("organs+contrast", ENCODER), ("organs", ENCODER)),
    ("decoder as well against encoder only, organs", ("organs", BOTH), ("organs", ENCODER)),
    (
        "decoder as well against encoder only, contrast from organs",
        ("organs+contrast", BOTH),
        ("organs+contrast", ENCODER),
    ),
    ("decoder as well (mirrored) against encoder only, contrast", ("contrast", BOTH), ("contrast", ENCODER)),
    ("decoder contrast after it against none", ("organs+contrast+dense", BOTH), ("organs+contrast", BOTH)),
)
REPORTED = (
    ("*reported on private MRI: supervised start (arXiv 2206.03336)*", ("88.63", "99.31", "", "83.99", "3.04", "")),
    ("*reported on private MRI: contrast from it (arXiv 2208.12413)*", ("89.60", "99.36", "", "85.11", "2.98", "")),
    ("*reported on private MRI: Swin MoCo (doi 10.1002/mp.17128)*", ("89.78", "", "90.08", "85.18", "3.60", "")),
)
PRE_TRAINING = {
    "scratch": "none",
    "organs": "60,000 slices",
    "contrast": "60,000 pairs of views",
    "organs+contrast": "60,000 slices, then 60,000 pairs of views",
    "organs+contrast+dense": "the same, then 24,000 pairs of views",
}
"""What each start has been trained on before fine-tuning; the starts are not of equal compute."""
DOCS = Path(__file__).parents[2] / "docs"
MARKS = "<!-- tables: made by benchmarks/training/study_report.py -->", "<!-- end of tables -->"


def tested(start: str, transfer: tuple[str, ...], epochs: int, labelled: int) -> dict[int, Figures]:
    """Test figures by seed and patient of the runs at the chosen rate."""
    rate = chosen_rate(start, epochs)
    if rate is None:
        return {}
    runs = {seed: Run(start, transfer, epochs, labelled, seed, rate) for seed in SEEDS[epochs][labelled]}
    results = {seed: read(run.name) for seed, run in runs.items()}
    return {seed: result["test"] for seed, result in results.items() if result and "test" in result}


def over_seeds(found: dict[int, Figures], figure: str) -> dict[str, float]:
    """Each patient's mean over the seeds; patients whose distance is infinite in one of them are left out."""
    patients = next(iter(found.values()), {})
    values = {case: [found[seed][case][figure] for seed in found] for case in patients}
    finite = {case: [value for value in each if value is not None] for case, each in values.items()}
    return {case: float(np.mean(each)) for case, each in finite.items() if len(each) == len(found)}


def over_trainings(found: dict[int, Figures]) -> list[float]:
    """Mean test DSC of each training, by rising seed."""
    return [float(np.mean([patient["dsc"] or 0.0 for patient in found[seed].values()])) for seed in sorted(found)]


def training_interval(values: Sequence[float], digits: int, sign: str = "", unit: str = "training") -> str:
    """Mean of trainings, or other units, with the half width of its 95 % t interval over them, and each in brackets.

    One has no interval.
    """
    each = ", ".join(f"{value:{sign}z.{digits}f}" for value in values)
    if len(values) < 2:
        return f"{each} (1 {unit})"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{np.mean(values):{sign}z.{digits}f} ± {half:.{digits}f} ({each})"


def interval(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean with its 95 % bootstrap interval over patients."""
    return "{0:{3}.{4}f} ({1:{3}.{4}f} to {2:{3}.{4}f})".format(*bootstrap_mean(values), sign, digits)


def label_of(start: str, transfer: tuple[str, ...]) -> str:
    """An arm in words."""
    return start if start == "scratch" else f"{start}, {' + '.join(transfer)}"


def row(cells: Sequence[object]) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def tables() -> str:
    """Everything measured, as Markdown."""
    lines = []
    for epochs in BUDGETS:
        lines += [*by_patients(epochs), "", *claims(epochs), "", *all_figures(epochs), "", *rates(epochs), ""]
    return "\n".join([*lines, *trials()]) + "\n"


def planned(epochs: int) -> tuple[Arm, ...]:
    """What is to be tested with a budget."""
    return ARMS if epochs == TRIAL_EPOCHS else ARMS[: MAIN_ARMS[epochs]]


def by_patients(epochs: int) -> list[str]:
    """Mean test DSC of every arm."""
    order = [labelled for labelled in sorted(LABELLED) if SEEDS[epochs][labelled]]
    lines = [f"### Mean test DSC by labelled patients, {slices(epochs)}", ""]
    lines += [row(["start, parts taken from it", "pre-training", *order]), "|---" * (2 + len(order)) + "|"]
    for arm in planned(epochs):
        found = [tested(*arm, epochs, labelled) for labelled in order]
        cells = [training_interval(over_trainings(each), 3) if each else "not run" for each in found]
        lines.append(row([label_of(*arm), PRE_TRAINING[arm[0]], *cells]))
    return lines


def claims(epochs: int) -> list[str]:
    """Paired differences."""
    order = [labelled for labelled in sorted(LABELLED) if SEEDS[epochs][labelled]]
    lines = [f"### Differences of mean test DSC in points, {slices(epochs)}", ""]
    lines += [row(["claim", *order]), "|---" * (1 + len(order)) + "|"]
    for claim, better, worse in CLAIMS:
        if {better, worse} <= set(planned(epochs)):
            lines.append(row([claim, *(difference(better, worse, epochs, labelled) for labelled in order)]))
    return lines


def all_figures(epochs: int) -> list[str]:
    """The paper's figures and two more, beside what it reports."""
    names = ("DSC %", "MPA %", "mAcc %", "MIoU %", "HD mm", "HD95 mm")
    lines = [f"### All figures with {LABELLED[0]} labelled patients, {slices(epochs)}", ""]
    lines += [row(["start, parts taken from it", *names]), "|---" * (1 + len(names)) + "|"]
    for arm in ARMS:
        found = tested(*arm, epochs, LABELLED[0])
        if found:
            columns = [(over_seeds(found, figure).values(), 1 if figure.endswith("mm") else 100) for figure in FIGURES]
            cells = [interval([scale * value for value in values], 2) for values, scale in columns]
            lines.append(row([label_of(*arm), *cells]))
    return lines + [row([name, *figures]) for name, figures in REPORTED]


def rates(epochs: int) -> list[str]:
    """What the rates were chosen by."""
    lines = [f"### Learning rates, mean validation DSC with {LABELLED[0]} labelled patients, {slices(epochs)}", ""]
    tried = RATES
    lines += [row(["start", *(f"{rate:g}" for rate in tried), "chosen"]), "|---" * (2 + len(tried)) + "|"]
    for start, _ in ARMS[: MAIN_ARMS[epochs]]:
        results = [read(Run(start, BOTH, epochs, LABELLED[0], 0, rate).name) for rate in tried]
        cells = [f"{result['validation_dsc']:.3f}" if result else "not run" for result in results]
        lines.append(row([start, *cells, chosen_rate(start, epochs) or "open"]))
    return lines


def trials() -> list[str]:
    """Other ways of contrast."""
    lines = [f"### Other ways of contrast, {LABELLED[0]} labelled patients, {slices(TRIAL_EPOCHS)}, one seed", ""]
    lines += [row(["contrast", "spread", "views matched", "mean validation DSC"]), "|---" * 4 + "|"]
    for name in ("organs+contrast", "organs+contrast+dense", *TRIALS):
        rate = chosen_rate(name, TRIAL_EPOCHS)
        result = read(Run(name, BOTH, TRIAL_EPOCHS, LABELLED[0], 0, rate).name) if rate else None
        learnt = (read(f"start-{slug(name)}") or {"last": {}})["last"]
        cells = [of_both(learnt, "spread"), of_both(learnt, "matched")]
        lines.append(row([name, *cells, f"{result['validation_dsc']:.3f}" if result else "not run"]))
    return lines


def slices(epochs: int) -> str:
    """A budget in words."""
    return f"{epochs * SLICES_AN_EPOCH:,} slices of fine-tuning"


def of_both(record: dict[str, float], figure: str) -> str:
    """A figure of slices, of places, or of both."""
    found = {"": record.get(figure), " of places": record.get(f"places_{figure}")}
    return ", ".join(f"{value:.2f}{what}" for what, value in found.items() if value is not None)


def difference(better: Arm, worse: Arm, epochs: int, labelled: int) -> str:
    """Of two arms in points of mean test DSC, paired by seed: interval over trainings, then over patients."""
    pair = [tested(*arm, epochs, labelled) for arm in (better, worse)]
    seeds = pair[0].keys() & pair[1].keys()
    if not seeds:
        return "not run"
    both = [{seed: found[seed] for seed in seeds} for found in pair]
    trainings = [100 * (first - second) for first, second in zip(*map(over_trainings, both), strict=True)]
    first, second = (over_seeds(found, "dsc") for found in both)
    patients = interval([100 * (first[case] - second[case]) for case in first], 1, "+")
    return f"{training_interval(trainings, 1, '+')}; patients alone {patients.partition(' ')[2]}"


def draw(picture: Path) -> None:
    """Mean test DSC over labelled patients, a panel a budget; each training is a point, a line joins an arm's means."""
    figure = Figure((7 * len(BUDGETS), 5), layout="constrained")
    panels = figure.subplots(1, len(BUDGETS), sharex=True, sharey=True)
    for axes, epochs in zip(panels, BUDGETS, strict=True):
        for number, arm in enumerate(ARMS):
            found = {labelled: over_trainings(tested(*arm, epochs, labelled)) for labelled in sorted(LABELLED)}
            shift = 1.03 ** (number - len(ARMS) / 2)
            at = [labelled * shift for labelled, dsc in found.items() if dsc]
            style, marker = ("-", "o") if arm[1] == BOTH else ("--", "s")
            line = axes.plot(at, [float(np.mean(dsc)) for dsc in found.values() if dsc], style, alpha=0.6)
            points = [(labelled * shift, each) for labelled, dsc in found.items() for each in dsc]
            if points:
                axes.scatter(*zip(*points, strict=True), marker=marker, color=line[0].get_color(), label=label_of(*arm))
                axes.legend(fontsize=8)
        axes.set(xscale="log", xlabel="labelled patients", title=slices(epochs))
        axes.set_xticks(sorted(LABELLED), [str(labelled) for labelled in sorted(LABELLED)])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="mean test DSC of 40 patients; each point a training")
    figure.savefig(picture, dpi=100)


def put_between(marks: tuple[str, str], text: str, page: Path) -> None:
    """Replace what stands between two marks of a page."""
    before, _, rest = page.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    page.write_text(f"{before}{marks[0]}\n\n{text}\n{marks[1]}{after}")


def report(page: Path, picture: Path) -> None:
    """Put the tables between the page's marks, and draw the picture."""
    put_between(MARKS, tables(), page)
    draw(picture)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    report(DOCS / "study.md", DOCS / "pictures" / "study.png")
