"""Figures, table and picture of a race from its record."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from contestants import OURS
from environments import PACKAGES
from matplotlib.figure import Figure

from parotid_seg.files import atomic_write, write_text

COLOURS = {"ours": "tab:blue", "monai": "tab:green", "nnunet": "tab:red", "bare": "silver", "plain": "tab:orange"}
HEAD = (
    "who",
    "scans",
    "s a scan",
    "scans a second",
    "times ours",
    "start-up, s",
    "s a scan after it",
    "times ours after it",
    "peak MiB",
    "parameters, M",
    "GMAC a window",
    "windows a scan",
    "DSC (95 %)",
    "weights",
)


def add_figures(found: dict[str, Any]) -> None:
    """Work out what follows from the times of every contestant, and how many times slower than ours each is."""
    rows = found["contestants"]
    for row in rows.values():
        if row.get("many_s"):
            row.update(figures(row))
    ours = rows.get(OURS, {})
    for row in rows.values():
        for figure, times in (("s_a_scan", "times_ours"), ("s_a_scan_after", "times_ours_after")):
            both = row.get(figure), ours.get(figure)
            row.pop(times, None)
            if all(both):
                row[times] = both[0] / both[1]


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """Seconds a scan and start-up.

    Args:
        row: `one_s`, seconds on one scan by repeat, and `many_s`, on `scans` of them; of an engine alone its loading
            and its computing.

    Returns:
        `seconds` of the whole command on `scans` scans, `s_a_scan` of that, `scans_a_second`, `start_up_s` and
        `s_a_scan_after` it. The last two are None if there was one scan only, or if more of
        them took no longer.
    """
    scans, many, one = row["scans"], statistics.median(row["many_s"]), statistics.median(row["one_s"])
    if row["engine_only"]:
        start, after = one, many / scans
    elif scans > 1 and many > one:
        after = (many - one) / (scans - 1)
        start = max(0.0, one - after)
    else:
        start = after = None
    return {
        "seconds": many,
        "s_a_scan": many / scans,
        "scans_a_second": scans / many,
        "start_up_s": start,
        "s_a_scan_after": after,
    }


def number(value: float | None, form: str) -> str:
    """A number, or nothing for what is not known."""
    return "" if value is None else f"{value:{form}}"


def cells(row: dict[str, Any]) -> list[str]:
    """A contestant's line of the table, without the name."""
    window = "x".join(map(str, row.get("window", ())))
    work = row.get("multiply_adds_a_window")
    dsc = row.get("accuracy", {}).get("dsc")
    return [
        str(row.get("scans", "")),
        number(row.get("s_a_scan"), ".3g"),
        number(row.get("scans_a_second"), ".3g"),
        number(row.get("times_ours"), ".1f"),
        number(row.get("start_up_s"), ".1f"),
        number(row.get("s_a_scan_after"), ".3g"),
        number(row.get("times_ours_after"), ".1f"),
        number(row.get("peak_mib"), ",.0f"),
        number(row["parameters"] / 1e6 if row.get("parameters") else None, ".1f"),
        f"{work / 1e9:.2f} ({window})" if work else window,
        number(row.get("windows_a_scan"), ".0f"),
        f"{dsc['mean']:.3f} ({dsc['low']:.3f} to {dsc['high']:.3f}), {dsc['cases']} scans" if dsc else "",
        row.get("weights", ""),
    ]


def table(found: dict[str, Any]) -> str:
    """The race as Markdown."""
    settings, machine = found["settings"], found["machine"]
    rows = found["contestants"]
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for row in sorted(rows.values(), key=lambda row: row.get("s_a_scan", float("inf"))):
        if row.get("many_s"):
            title = row["title"] + (" *" if row["engine_only"] else "")
            lines.append(f"| {title} | {' | '.join(cells(row))} |")
    failed = [f"- {row.get('title', name)}: {one_line(row['failed'])}" for name, row in rows.items() if "failed" in row]
    repeats = sorted({len(row["many_s"]) for row in rows.values() if row.get("many_s")})
    return "\n".join(
        [
            f"{settings['data']}, {len(settings['scans'])} scans of imagesTs; {machine['processor']}, "
            f"{machine['cores']} cores, {machine['memory_gib']} GiB; {machine['date']}. Medians of "
            f"{' to '.join(map(str, repeats)) or 'no'} run(s), taking turns.",
            "",
            *lines,
            "",
            notes(settings["slow_scans"]),
            *(["", "Failed:", "", *failed] if failed else []),
            "",
            *(f"- {name}: {versions(name, found)}" for name in found["environments"]),
            "",
        ]
    )


def notes(slow_scans: int) -> str:
    """What the columns mean."""
    return (
        "\\* The engine alone, on chunks in memory: no reading, no writing. *s a scan* is the whole command over its "
        "scans, start-up and all; *start-up* is what a run on one scan takes beyond a scan's share of a run on many. "
        f"Slow contestants got {slow_scans} scans. Peak memory is that of all processes together (proportional set "
        "size) in a run of its own on a few scans."
    )


def versions(name: str, found: dict[str, Any]) -> str:
    """The packages of an environment that matter."""
    there = found["environments"][name]
    named = ("python", *PACKAGES.get(name, PACKAGES["ours"]))
    return ", ".join(f"{package} {there[package]}" for package in named if package in there)


def one_line(text: str) -> str:
    """The last line of what a program said."""
    return (text.strip().splitlines() or ["no reason told"])[-1]


def draw(found: dict[str, Any], picture: Path) -> None:
    """Scans a second as bars, on a logarithmic axis."""
    rows = {name: row for name, row in found["contestants"].items() if row.get("scans_a_second")}
    ordered = sorted(rows, key=lambda name: rows[name]["scans_a_second"])
    values = [rows[name]["scans_a_second"] for name in ordered]
    hatched = any(rows[name]["engine_only"] for name in ordered)
    figure = Figure((9, 1.4 + 0.42 * len(ordered)), layout="constrained")
    panel = figure.subplots()
    bars = panel.barh(
        [rows[name]["title"] for name in ordered],
        values,
        color=[COLOURS[name.partition("-")[0]] for name in ordered],
        hatch=["///" if rows[name]["engine_only"] else "" for name in ordered],
        edgecolor="white",
    )
    panel.bar_label(bars, [said(rows[name]) for name in ordered], padding=4)
    panel.set(
        xscale="log",
        xlim=(min(values) / 2, max(values) * 12),
        xlabel="scans a second, whole command" + (" (hatched: engine alone)" if hatched else ""),
    )
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)


def said(row: dict[str, Any]) -> str:
    """What stands beside a bar."""
    times = row.get("times_ours")
    beside = f", {times:.2g} times our time" if times else ""
    return f"{row['scans_a_second']:.2g}{beside}"


def write(found: dict[str, Any], path: Path) -> None:
    """FILE.md, and FILE.png once somebody has been timed, beside FILE.json."""
    write_text(table(found), path.with_suffix(".md"))
    if any(row.get("scans_a_second") for row in found["contestants"].values()):
        with atomic_write(path.with_suffix(".png")) as partial:
            draw(found, partial)
