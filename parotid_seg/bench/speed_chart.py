"""bench.png: latency against throughput, and where a scan's time goes."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from parotid_seg.bench.result import Result
from parotid_seg.bench.scan_stages import STAGES
from parotid_seg.files import atomic_write

COLOURS = {
    "read": "#4477aa",
    "cut and join": "#66ccee",
    "to device": "#228833",
    "compute": "#ee6677",
    "from device": "#aa3377",
    "write": "#ccbb44",
}
"""Of Paul Tol's bright scheme, which is safe for colour-blind readers."""
WIDEST_LABEL = 0.06
"""Share of the longest bar that a stage must have to be labelled."""


def draw(result: Result, path: Path) -> None:
    """Draw both panels. Raises OutputError if the file cannot be written."""
    figure = Figure((13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, row in enumerate(result.rows):
        times = [speed.real.p50 for speed in row.speeds]
        rates = [speed.slices_a_second for speed in row.speeds]
        left.plot(times, rates, "os^Dv"[number % 5] + "-", label=row.name)
        for speed, x, y in zip(row.speeds, times, rates, strict=True):
            left.annotate(str(speed.batch_size), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    left.set(
        xscale="log",
        xlabel="latency of a batch, one at a time, ms (median); labels: batch size",
        ylabel="slices per second, undisturbed",
    )
    left.xaxis.set_major_formatter("{x:g}")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3, which="both")
    left.legend()
    ends = [(row.name, row.end_to_end) for row in result.rows if row.end_to_end][::-1]
    longest = max((1000 * end.alone_s for _, end in ends), default=1.0)
    for number, (_, end) in enumerate(ends):
        start = 0.0
        for stage in STAGES:
            width = 1000 * end.stages_s[stage]
            right.barh(number, width, left=start, color=COLOURS[stage], label=stage if number == 0 else None)
            if width > WIDEST_LABEL * longest:
                right.text(start + width / 2, number, f"{width:.0f}", ha="center", va="center", fontsize=8)
            start += width
        right.text(start, number, f"  {end.scans_a_second:.2f} scans/s", va="center", fontsize=8)
    right.set_yticks(range(len(ends)), [name for name, _ in ends])
    right.set_xlim(0, 1.3 * longest)
    right.set_xlabel("a scan by itself, ms; beside the bar: whole runs, stages overlapping")
    if ends:
        right.legend(ncols=len(STAGES), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8, frameon=False)
    figure.suptitle(f"{result.model['file']} on {result.machine['processor']}, {result.machine['cores']} cores")
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
