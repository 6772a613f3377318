"""The study's tables and picture, from the committed results; `benchmarks/study.py` calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from study import ARMS, BOTH, ENCODER, FIGURES, LABELLED, RATES, SEEDS, TRIALS, Run, chosen_rate, read, slug

from parotid_seg.metrics import bootstrap_mean

Arm = tuple[str, tuple[str, ...]]
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
MARKS = "<!-- tables: made by benchmarks/study.py -->", "<!-- end of tables -->"


def tested(start: str, transfer: tuple[str, ...], labelled: int) -> dict[int, dict[str, dict[str, float | None]]]:
    """Test figures by seed and patient of the runs at the chosen rate."""
    rate = chosen_rate(start)
    if rate is None:
        return {}
    results = {seed: read(Run(start, transfer, labelled, seed, rate).name) for seed in SEEDS[labelled]}
    return {seed: result["test"] for seed, result in results.items() if result and "test" in result}


def over_seeds(found: dict[int, dict[str, dict[str, float | None]]], figure: str) -> dict[str, float]:
    """Each patient's mean over the seeds; patients whose distance is infinite in one of them are left out."""
    patients = next(iter(found.values()), {})
    values = {case: [found[seed][case][figure] for seed in found] for case in patients}
    return {case: float(np.mean(each)) for case, each in values.items() if None not in each}


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
    order = sorted(LABELLED)
    lines = ["### Mean test DSC by labelled patients", ""]
    lines += [row(["start, parts taken from it", *order]), "|---" * (1 + len(order)) + "|"]
    for arm in ARMS:
        cells = []
        for labelled in order:
            found = tested(*arm, labelled)
            seeds = "1 seed" if len(found) == 1 else f"{len(found)} seeds"
            cells.append(f"{interval([*over_seeds(found, 'dsc').values()], 3)}, {seeds}" if found else "not run")
        lines.append(row([label_of(*arm), *cells]))
    lines += ["", "### Differences of mean test DSC, in points", ""]
    lines += [row(["claim", *order]), "|---" * (1 + len(order)) + "|"]
    for claim, better, worse in CLAIMS:
        lines.append(row([claim, *(difference(better, worse, labelled) for labelled in order)]))
    lines += ["", f"### All figures with {LABELLED[0]} labelled patients", ""]
    names = ("DSC %", "MPA %", "mAcc %", "MIoU %", "HD mm", "HD95 mm")
    lines += [row(["start, parts taken from it", *names]), "|---" * (1 + len(names)) + "|"]
    for arm in ARMS:
        found = tested(*arm, LABELLED[0])
        if found:
            columns = [(over_seeds(found, figure).values(), 1 if figure.endswith("mm") else 100) for figure in FIGURES]
            cells = [interval([scale * value for value in values], 2) for values, scale in columns]
            lines.append(row([label_of(*arm), *cells]))
    lines += [row([name, *figures]) for name, figures in REPORTED]
    lines += ["", f"### Learning rates, mean validation DSC with {LABELLED[0]} labelled patients", ""]
    lines += [row(["start", *(f"{rate:g}" for rate in RATES), "chosen"]), "|---" * (2 + len(RATES)) + "|"]
    for start in dict.fromkeys(start for start, _ in ARMS):
        tried = [read(Run(start, BOTH, LABELLED[0], 0, rate).name) for rate in RATES]
        cells = [f"{result['validation_dsc']:.3f}" if result else "not run" for result in tried]
        lines.append(row([start, *cells, chosen_rate(start) or "open"]))
    lines += ["", f"### Other ways of contrast, mean validation DSC with {LABELLED[0]} labelled patients, one seed", ""]
    lines += [row(["contrast", "spread", "views matched", "validation DSC"]), "|---" * 4 + "|"]
    for name in ("organs+contrast", "organs+contrast+dense", *TRIALS):
        rate = chosen_rate(name)
        result = read(Run(name, BOTH, LABELLED[0], 0, rate).name) if rate else None
        learnt = (read(f"start-{slug(name)}") or {"last": {}})["last"]
        cells = [of_both(learnt, "spread"), of_both(learnt, "matched")]
        lines.append(row([name, *cells, f"{result['validation_dsc']:.3f}" if result else "not run"]))
    return "\n".join(lines) + "\n"


def of_both(record: dict, figure: str) -> str:
    """A figure of slices, of places, or of both."""
    found = {"": record.get(figure), " of places": record.get(f"places_{figure}")}
    return ", ".join(f"{value:.2f}{what}" for what, value in found.items() if value is not None)


def difference(better: Arm, worse: Arm, labelled: int) -> str:
    """Of two arms, paired by patient over the seeds that both have."""
    pair = [tested(*arm, labelled) for arm in (better, worse)]
    seeds = pair[0].keys() & pair[1].keys()
    if not seeds:
        return "not run"
    first, second = (over_seeds({seed: found[seed] for seed in seeds}, "dsc") for found in pair)
    return interval([100 * (first[case] - second[case]) for case in first], 1, "+")


def draw(picture: Path) -> None:
    """Label efficiency: mean test DSC over labelled patients, one line an arm, with intervals."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, arm in enumerate(ARMS):
        points = []
        for labelled in sorted(LABELLED):
            found = tested(*arm, labelled)
            if found:
                points.append(
                    (labelled * 1.02 ** (number - len(ARMS) / 2), *bootstrap_mean([*over_seeds(found, "dsc").values()]))
                )
        if points:
            at, mean, low, high = zip(*points, strict=True)
            errors = [[m - x for m, x in zip(mean, low, strict=True)], [x - m for m, x in zip(mean, high, strict=True)]]
            style = "o-" if arm[1] == BOTH else "s--"
            axes.errorbar(at, mean, errors, fmt=style, capsize=2, label=label_of(*arm))
    axes.set(xscale="log", xlabel="labelled patients", ylabel="mean test DSC (40 patients, 95 % interval)")
    axes.set_xticks(sorted(LABELLED), [str(labelled) for labelled in sorted(LABELLED)])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def report(page: Path, picture: Path) -> None:
    """Put the tables between the page's marks, and draw the picture."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n\n{tables()}\n{MARKS[1]}{after}")
    draw(picture)
