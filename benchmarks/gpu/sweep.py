"""The comparison of bench.py by batch size: every contender on the same chunks, taking turns."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpu.contenders import Contender, DeviceMemory, through
from gpu.record import Record, percentiles, share_of_bus, traffic, within
from gpu.table import MOST_CHANGED
from parotid_seg.bench.roofline import Peaks, roofline
from parotid_seg.bench.selection import rotation
from parotid_seg.contract import Contract
from parotid_seg.runtime.engines.onnxruntime.profile import Count, count
from parotid_seg.scan.chunks import CroppedScan, Inputs
from parotid_seg.scan.volume import Mask

REFERENCE = "torch fp32"
WARM_UP = 3
COUNTED = 16
"""Most samples of the chunk whose operations are counted, on the CPU; larger chunks follow in proportion."""
SHARE_OF_SWEEP = 0.8
"""Of all the time: after that much no batch size is begun any more."""
SHARE_OF_COMPILING, SHARE_OF_A_SIZE = 0.5, 0.12
"""Of all the time: the longest for the warm-up of one contender, and for the rounds of a batch size."""


def warmed_up(contender: Contender, inputs: Sequence[Inputs], most_s: float) -> tuple[list[Mask], float]:
    """The labels after some passes, when graphs are replayed; and the seconds of the first, which may compile."""
    with within(most_s):
        started = time.monotonic()
        labels = through(contender, inputs)
        first_s = time.monotonic() - started
        for _ in range(WARM_UP - 1):
            labels = through(contender, inputs)
    return labels, first_s


def warm_all(
    inputs: Sequence[Inputs], ready: dict[str, Contender], record: Record, memory: DeviceMemory
) -> tuple[dict[str, list[Mask]], dict[str, dict[str, Any]]]:
    """Labels, and the first figures, of each contender after its warm-up; one that is too slow to start is dropped."""
    samples, most_s = len(inputs[0]["neighbours"]), min(record.budget_s * SHARE_OF_COMPILING, record.left_s)
    labels: dict[str, list[Mask]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, contender in list(ready.items()):
        began, work = time.monotonic(), partial(warmed_up, contender, inputs, most_s)
        with memory.of(name):
            warm = record.attempt(f"{name}, batches of {samples}", work)
        if warm is not None:
            labels[name] = warm[0]
            held = memory.held_mib.get(name)
            rows[name] = {"first_pass_s": round(warm[1], 3), "ours": contender.ours, "memory_mib": held}
        elif time.monotonic() - began >= most_s:
            record.skip(f"{name}, other batches", "stopped once; another shape would take as long")
            del ready[name]
    if not rows:
        raise RuntimeError("no contender ran")
    return labels, rows


def sweep_size(
    inputs: Sequence[Inputs],
    ready: dict[str, Contender],
    precisions: Mapping[str, str],
    record: Record,
    repeats: int,
    memory: DeviceMemory,
) -> dict[str, Any]:
    """All contenders in turns on the same chunks of one batch size."""
    samples = len(inputs[0]["neighbours"])
    labels, rows = warm_all(inputs, ready, record, memory)
    timed = in_turns({name: ready[name] for name in rows}, inputs, repeats, record)
    rows = {name: rows[name] for name in timed}
    for name, (passes, alone) in timed.items():
        row, contender = rows[name], ready[name]
        row |= {"ms": percentiles(passes), "alone_ms": percentiles(alone)}
        row["samples_a_second"] = 1000 * samples / row["ms"]["p50"]
        compute = record.attempt(
            f"{name}, batches of {samples}, computing alone", partial(contender.compute_ms, inputs, len(passes))
        )
        row["compute_ms"] = percentiles(compute) if compute else None
        row["ran"] = contender.about
        row["precision"] = contender.about.get("precision", precisions[name])
        row |= changed(labels.get(REFERENCE), labels[name])
        row |= traffic(inputs[-1], labels[name][-1], contender.copied)
    shape = " x ".join(map(str, inputs[0]["slices"].shape))
    chunk: dict[str, Any] = {"different": len(inputs), "samples": samples, "shape": shape}
    return {"chunk": chunk, "contenders": rows}


def in_turns(
    ready: Mapping[str, Contender], inputs: Sequence[Inputs], repeats: int, record: Record
) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds a chunk of each: of passes over all inputs with chunks ahead, and of chunks one at a time.

    One that fails takes no further part, and keeps the times that it has; without any it is left out.
    """
    samples, most_s, began = len(inputs[0]["neighbours"]), record.budget_s * SHARE_OF_A_SIZE, time.monotonic()
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ready}
    left = dict(ready)
    for number in range(repeats):
        if number and time.monotonic() - began > min(most_s, record.left_s):
            break
        for name, contender in list(left.items()):
            work = partial(one_round, contender, inputs, *found[name])
            if not record.guarded(f"{name}, batches of {samples}, in turns", work):
                del left[name]
    if not any(passes for passes, _ in found.values()):
        raise RuntimeError("no contender ran")
    return {name: (passes, alone) for name, (passes, alone) in found.items() if alone}


def one_round(contender: Contender, inputs: Sequence[Inputs], passes: list[float], alone: list[float]) -> bool:
    """Add the times of a round; True."""
    started = time.perf_counter()
    through(contender, inputs)
    passes.append(1000 * (time.perf_counter() - started) / len(inputs))
    for chunk in inputs:
        started = time.perf_counter()
        contender.start(chunk).result()
        alone.append(1000 * (time.perf_counter() - started))
    return True


def changed(reference: Sequence[Mask] | None, labels: Sequence[Mask]) -> dict[str, Any]:
    """Voxels that have another label than the reference gave them, and their share of the reference's structures."""
    if reference is None:
        return {"changed_voxels": None, "changed_of_structures": None}
    pairs = list(zip(reference, labels, strict=True))
    count = sum(int(np.count_nonzero(one != other)) for one, other in pairs)
    structures = sum(int(np.count_nonzero(one)) for one, _ in pairs)
    return {"changed_voxels": count, "changed_of_structures": count / structures if structures else None}


def has_labels(row: Mapping[str, Any]) -> bool:
    """Whether the labels are the reference's, up to rounding; where there is no reference, they count as such."""
    share = row.get("changed_of_structures")
    return bool(share is None or share <= MOST_CHANGED)


def compared(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest of torch and of ours, and how many times as fast ours is; without those with other labels."""
    best: dict[str, str] = {}
    for name, row in rows.items():
        if not has_labels(row):
            continue
        side = "ours" if row["ours"] else "torch"
        if side not in best or row["samples_a_second"] > rows[best[side]]["samples_a_second"]:
            best[side] = name
    if len(best) < 2:
        return {"best": best, "ours_over_torch": None}
    ratio = rows[best["ours"]]["samples_a_second"] / rows[best["torch"]]["samples_a_second"]
    return {"best": best, "ours_over_torch": ratio}


def sweep(
    part: str,
    sizes: Sequence[int],
    scans: Sequence[CroppedScan],
    model: Path,
    contract: Contract,
    ready: dict[str, Contender],
    precisions: Mapping[str, str],
    record: Record,
    repeats: int,
    memory: DeviceMemory,
) -> None:
    """A part of the contenders by batch size, each size written when it is done, beside what it has of other parts."""
    done = record.content.get("sweep", {})
    for size in sizes:
        inputs = rotation(scans, contract, size).chunks
        if not inputs:
            record.skip(f"batches of {size}", "no scan has so many slices")
            continue
        work = partial(sweep_size, inputs, ready, precisions, record, repeats, memory)
        result = record.attempt(f"batches of {size}, {part}", work, until=SHARE_OF_SWEEP)
        if result is None:
            continue
        few = rotation(scans, contract, min(size, COUNTED)).chunks[0]
        counted = record.guarded(f"operations of batches of {size}", partial(count, model.read_bytes(), few))
        if counted:
            add_roofline(result, scaled(counted, size / len(few["neighbours"])), record.content)
        before = done.get(str(size), {"contenders": {}, "parts": []})
        rows = {**before["contenders"], **result["contenders"]}
        done[str(size)] = {**result, "contenders": rows, **compared(rows), "parts": [*before["parts"], part]}
        record.add("sweep", done)


def left_of(part: str, sizes: Sequence[int], content: Mapping[str, Any]) -> list[int]:
    """The batch sizes for which a part of the contenders was not measured yet."""
    done = content.get("sweep", {})
    return [size for size in sizes if part not in done.get(str(size), {}).get("parts", [])]


def scaled(counted: Count, times: float) -> Count:
    """The work of a chunk of so many times as many samples; its weights stay the same."""
    activations = counted.unfused_bytes - counted.weight_bytes
    return Count(
        round(counted.multiply_adds * times),
        counted.weight_bytes,
        round(counted.boundary_bytes * times),
        round(counted.weight_bytes + activations * times),
    )


def add_roofline(result: dict[str, Any], counted: Count, content: Mapping[str, Any]) -> None:
    """Compare every contender with the peaks of the machine, as far as they were measured."""
    for row in result["contenders"].values():
        if "peaks" in content:
            computing_ms = (row["compute_ms"] or row["ms"])["p50"]
            found = roofline(counted, "fp32", computing_ms / 1000, row["precision"], Peaks(**content["peaks"]))
            row["roofline"] = found and asdict(found)
        if "bus" in content:
            row["share_of_bus"] = share_of_bus(row["ms"]["p50"], row, content["bus"])


def fastest(sizes: Mapping[str, Any], names: Collection[str]) -> tuple[str, int, float]:
    """Name, batch size and samples a second of the fastest of some contenders."""
    found = [
        (row["samples_a_second"], name, int(size))
        for size, result in sizes.items()
        for name, row in result["contenders"].items()
        if name in names and has_labels(row)
    ]
    if not found:
        raise RuntimeError("none of our backends ran with the labels of torch in FP32")
    rate, name, size = max(found)
    return name, size, rate
