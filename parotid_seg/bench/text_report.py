"""A result as text: bench.md, and the same on the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from parotid_seg.bench.layers import rows as top_rows
from parotid_seg.bench.machine_probe import best_transfer_ms
from parotid_seg.bench.mask_parity import EngineParity
from parotid_seg.bench.result import Result, Row, Speed
from parotid_seg.bench.scan_stages import STAGES
from parotid_seg.bench.turns import ENOUGH


def report(result: Result) -> str:
    """Everything as Markdown."""
    parts = [
        [f"# Speed of {result.model['file']}", "", _about(result), ""],
        [*(f"Note: {each}.\n" for each in result.remarks)],
        _speeds(result),
        _ends(result),
        _starts(result),
        _peaks(result),
        *(_layers(row) for row in result.rows if row.layers),
        ["## Left out", "", *(f"- {what}: {why}" for what, why in result.left_out), ""] if result.left_out else [],
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _about(result: Result) -> str:
    machine, gpu = result.machine, result.machine["gpu"]
    names = [f"{machine['processor']}, {machine['cores']} cores", *([gpu["name"]] if gpu else [])]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    return f"{'; '.join(names)}. {result.made}. Python {machine['python']}, {versions}."


def _speeds(result: Result) -> list[str]:
    transfer_ms = min(best_transfer_ms(speed.transfers_ms) for row in result.rows for speed in row.speeds)
    on_gpu = any(speed.gpu_mib is not None for row in result.rows for speed in row.speeds)
    head = ["engine", "batch", "slices/s", "ms a batch", "± %", "undisturbed"]
    head += ["latency p50", "p90", "p95", "p99", "of", "noise p50", "MiB"]
    head += [*(["GPU MiB"] if on_gpu else []), "Gop/s", "of roofline", "masks"]
    lines = [
        [
            row.name,
            speed.batch_size,
            f"{speed.slices_a_second:.0f}",
            f"{speed.median_ms:.1f}",
            f"{100 * speed.spread:.1f}" if math.isfinite(speed.spread) else "-",
            f"{speed.undisturbed:.0%}",
            *(f"{value:.1f}" for value in (speed.real.p50, speed.real.p90, speed.real.p95, speed.real.p99)),
            speed.real.count,
            f"{speed.noise.p50:.1f}",
            f"{speed.peak_mib:.0f}",
            *(["" if speed.gpu_mib is None else f"{speed.gpu_mib:.0f}"] if on_gpu else []),
            *_roofline(speed),
            _masks(speed.parity),
        ]
        for row in result.rows
        for speed in row.speeds
    ]
    return [
        "## Batches",
        "",
        *_table(head, lines),
        "",
        "A batch of slices, from memory to labels in memory. slices/s and ms a batch: throughput, with as many batches "
        "under way as the engine takes; the median of the rounds in which the machine was undisturbed (their share is "
        f"given; a transfer between its cores took {transfer_ms:.2f} ms then, see docs/bench.md), of all "
        "rounds if these were too few. "
        "± is half its 95 % interval, which fewer than six such rounds do not give. "
        "Latency p50 to p99, in ms: of so many batches, one at a time, whatever the machine did; they and the "
        "throughput were measured at different moments, so other work may have slowed one and not the other. "
        f"With fewer than {ENOUGH} batches p99 is a guess. MiB: the process with engine and inputs, at its peak. "
        "Roofline: the least time there can be over the time taken. "
        "Masks: changed voxels of the scan that differs most from the model file on onnxruntime.",
        "",
    ]


def _ends(result: Result) -> list[str]:
    lines = [
        [
            row.name,
            end.batch_size,
            f"{end.scans_a_second:.2f}",
            f"{1000 * end.alone_s:.0f}",
            *(f"{1000 * end.stages_s[stage]:.0f}" for stage in STAGES),
            f"{end.explained:.1%}",
        ]
        for row in result.rows
        if (end := row.end_to_end)
    ]
    if not lines:
        return []
    scans = next(row.end_to_end.scans for row in result.rows if row.end_to_end)
    return [
        "## Scans, from file to mask",
        "",
        *_table(["engine", "batch", "scans/s", "ms alone", *STAGES, "explained"], lines),
        "",
        f"scans/s: `parotid-seg infer` on {scans} scans, model loaded beforehand, stages overlapping. The rest: "
        "milliseconds of a scan with nothing beside it, as a whole, by stage, and how much of the whole the stages "
        "explain.",
        "",
    ]


def _starts(result: Result) -> list[str]:
    lines = [
        [row.name, f"{statistics.median(row.cold_s):.2f}", f"{statistics.median(row.warm_s):.2f}"]
        for row in result.rows
    ]
    return [
        "## Start",
        "",
        *_table(["engine", "cold s", "warm s"], lines),
        "",
        "To the first chunk's labels: of a new process, its files perhaps in the system's cache; and of a second load "
        "in the same process.",
        "",
    ]


def _peaks(result: Result) -> list[str]:
    lines = [
        [device, f"product {kind}", f"{peaks.gflops[kind]:.0f} Gop/s", peaks.by[kind]]
        for device, peaks in result.peaks.items()
        for kind in peaks.gflops
    ]
    lines += [
        [device, "copy in memory", f"{peaks.memory_gb_s:.1f} GB/s", "numpy"]
        for device, peaks in result.peaks.items()
        if peaks.memory_gb_s
    ]
    return ["## What the machine does at best", "", *_table(["device", "", "reached", "by"], lines), ""]


def _layers(row: Row) -> list[str]:
    assert row.layers is not None
    layers = row.layers
    lines = [
        [
            layer.module,
            f"{1000 * layer.seconds:.2f}",
            f"{layer.share:.1%}",
            f"{layer.multiply_adds / 1e6:.0f}",
            f"{layer.gflops:.0f}",
            ", ".join(layer.types),
        ]
        for layer in top_rows(layers)
    ]
    return [
        f"## Layers of {row.name}",
        "",
        *_table(["module", "ms", "share", "million multiply-adds", "Gop/s", "computes in"], lines),
        "",
        f"A chunk of {layers.samples} slices, mean of {layers.repeats} runs with the engine's profiler, which explains "
        f"{layers.covered:.0%} of their {1000 * layers.wall_seconds:.1f} ms.",
        "",
    ]


def _roofline(speed: Speed) -> list[str]:
    point = speed.roofline
    return ["", ""] if point is None else [f"{point.gflops:.0f}", f"{point.share:.0%}"]


def _masks(parity: EngineParity | None) -> str:
    if parity is None:
        return "not compared"
    same = "the same" if not parity.changed else f"{parity.changed} changed ({parity.changed_share:.2%})"
    return same if parity.within else f"**OTHER MASKS**: {same}, DSC {parity.dsc:.4f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table that is aligned as plain text, too; numbers to the right."""
    rows = [[str(cell) for cell in line] for line in lines]
    widths = [max(len(row[column]) for row in ([*head], *rows)) for column in range(len(head))]
    right = [all(row[column][:1] in "0123456789" for row in rows) for column in range(len(head))]
    padded = [
        [cell.rjust(width) if side else cell.ljust(width) for cell, width, side in zip(row, widths, right, strict=True)]
        for row in ([*head], *rows)
    ]
    rule = ["-" * (width - 1) + (":" if side else "-") for width, side in zip(widths, right, strict=True)]
    return [f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])]
