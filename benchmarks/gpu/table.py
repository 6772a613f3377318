"""Figures of bench.py as Markdown."""

from __future__ import annotations

from typing import Any

from parotid_seg.runtime.tolerance import QUANTISED

PHASES = ("plain", "captured", "replayed")
"""Of a shape: chunks that are computed plainly, at which a CUDA graph is captured, and for which it is replayed."""
MOST_CHANGED = QUANTISED.most_changed_share
"""Of the voxels of structures: what changes more than eight bits may computes something else, as far as some chunks can
tell, and does not count as ours. `infer` compares whole masks, and more strictly."""


def table(content: dict[str, Any]) -> str:
    """Everything that there is, to be read."""
    lines = ["# Speed on a GPU", ""]
    about = content.get("machine")
    if about:
        gpu, driver = about["gpu"], about["driver"] or {}
        name = f"{gpu['name']}, driver {driver.get('driver_version', 'unknown')}" if gpu else "no GPU: a trial on a CPU"
        both = {**about["versions"], **about["more_versions"]}
        versions = ", ".join(f"{package} {version}" for package, version in both.items())
        lines += [f"{name}; {about['processor']}, {about['cores']} cores; {about['date']}.", "", f"{versions}.", ""]
    if content.get("probe"):
        lines += _probe_lines(content["probe"])
    if "first-use" in content:
        lines += _first_use_lines(content["first-use"])
    if "peaks" in content:
        found = content["peaks"]
        named = {f"{kind} product, Gop/s": value for kind, value in found["gflops"].items()}
        named |= {"copy on the device, GB/s": found["memory_gb_s"], **content.get("bus", {})}
        peaks = [f"| {name} | {value:.4g} |" for name, value in named.items() if value is not None]
        lines += ["## Measured peaks", "", "| | |", "|---|---|", *peaks, ""]
    for size, found in content.get("sweep", {}).items():
        lines += _sweep_lines(size, found)
    if content.get("end_to_end", {}).get("rows"):
        lines += _end_to_end_lines(content["end_to_end"])
    if "trace" in content:
        lines += ["## Trace", "", f"`{content['trace']['file']}`: {content['trace']['of']}.", ""]
    skipped = dict.fromkeys(f"- {each['what']}: {each['why']}" for each in content["skipped"])
    lines += ["## Skipped", "", *(skipped or ["Nothing."]), ""]
    return "\n".join(lines)


def _probe_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Labels against the CPU's",
        "",
        "Changed voxels against the model file on the CPU, of voxels of structures; the first chunk of a shape is "
        "computed plainly, at the second a CUDA graph is captured, which is replayed for all later ones. Times of a "
        "chunk alone, in ms.",
        "",
        "| graph, batch | plain | captured | replayed | copy in | compute | copy out |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        for size, row in each.get("sizes", {}).items():
            phases = [f"{row[name]['changed']} of {row[name]['of']}" for name in PHASES]
            cells = [*phases, *(f"{ms:.3f}" for ms in row["ms"].values())]
            lines.append(f"| {each['model']}, {size} | {' | '.join(cells)} |")
    lines.append("")
    for each in found:
        counts = [row[name] for row in each.get("sizes", {}).values() for name in PHASES]
        is_other = any(count["changed"] > MOST_CHANGED * count["of"] for count in counts)
        remark = f"; **other labels than the CPU's**: more than {MOST_CHANGED:.0%} changed" if is_other else ""
        lines.append(f"- {each['model']}: {each.get('ran', each.get('error'))}{remark}.")
    return [*lines, ""]


def _first_use_lines(found: dict[str, Any]) -> list[str]:
    made = found.get("graphs_s", {})
    named = ", ".join(f"{name} {seconds:.1f}" for name, seconds in made.items())
    seconds = {
        "start of Python, imports": found.get("imports_s"),
        f"making the graphs ({named})": sum(made.values()) if made else None,
        "comparing and timing them": found.get("choice_s"),
        "every later run: loading the chosen one": found.get("again_s"),
    }
    lines = ["## First use", ""]
    if "ran" in found:
        lines += [f"`auto` takes {found['ran']}, batches of {found['batch_size']}.", ""]
    if "stopped" in found:
        lines += [f"Not complete: {found['stopped']}.", ""]
    lines += ["| | s |", "|---|---|"]
    lines += [f"| {what} | {spent:.1f} |" for what, spent in seconds.items() if spent is not None]
    lines.append("")
    speeds = found.get("samples_a_second", {})
    if speeds or found.get("refused"):
        refused = found.get("refused", {})
        lines += ["| tried | samples a second | not taken, because |", "|---|---|---|"]
        for name in dict.fromkeys((*speeds, *refused)):
            lines.append(f"| {name} | {_number(speeds, name, '.0f')} | {refused.get(name, '')} |")
        lines.append("")
    return lines + [f"> {line}" for line in found.get("said", [])] + [""]


def _sweep_lines(size: str, found: dict[str, Any]) -> list[str]:
    chunk = found["chunk"]
    lines = [
        f"## Batches of {size}",
        "",
        f"{chunk['different']} different chunks of {chunk['samples']} samples, {chunk['shape']} voxels in.",
        "",
        "| | ms a chunk (5 to 95 %) | one alone, ms | computing, ms | samples a second | changed voxels, of structures "
        "| Gop/s | of products' peak | of roofline | bytes over the bus, a labelled voxel | memory, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["contenders"].items():
        roof = row.get("roofline") or {}
        lines.append(
            f"| {name} | {row['ms']['p50']:.3f} ({row['ms']['p5']:.3f} to {row['ms']['p95']:.3f}) "
            f"| {_median(row, 'alone_ms')} | {_median(row, 'compute_ms')} | {row['samples_a_second']:.0f} "
            f"| {_changed(row)} | {_number(roof, 'gflops', '.0f')} | {_number(roof, 'share_of_products', '.1%')} "
            f"| {_number(roof, 'share', '.1%')} | {_number(row, 'bytes_a_voxel', '.2f')} "
            f"| {_number(row, 'memory_mib', '.0f')} |"
        )
    if found.get("ours_over_torch"):
        best = found["best"]
        times = f"{found['ours_over_torch']:.2f} times as many samples a second as {best['torch']}"
        lines += ["", f"{best['ours']} makes {times}, the fastest of torch here."]
    return [*lines, ""]


def _end_to_end_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        "## End to end",
        "",
        f"`parotid-seg infer --search full` on {found['scans']} scans with {found['with']}, batches of "
        f"{found['batch_size']}. Its engine alone makes {found['engine_scans_a_second']:.2f} scans a second from "
        "memory. Without start-up: the time of one scan is taken off.",
        "",
        "| workers | s | scans a second | without start-up | of the engine alone | host, MiB | GPU, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        steady, share = _number(row, "steady_scans_a_second", ".2f"), _number(row, "of_the_engine", ".1%")
        memory = f"{_number(row, 'host_mib', '.0f')} | {_number(row, 'gpu_mib', '.0f')}"
        lines.append(
            f"| {row['workers']} | {row['s']:.1f} | {row['scans_a_second']:.2f} | {steady} | {share} | {memory} |"
        )
    return [*lines, ""]


def _median(row: dict[str, Any], name: str) -> str:
    return f"{row[name]['p50']:.3f}" if row.get(name) else ""


def _changed(row: dict[str, Any]) -> str:
    if row.get("changed_voxels") is None:
        return ""
    share = row["changed_of_structures"]
    return f"{row['changed_voxels']}" + ("" if share is None else f", {share:.3%}")


def _number(found: dict[str, Any], name: str, form: str) -> str:
    return format(found[name], form) if found.get(name) is not None else ""
