# mypy: disallow-untyped-calls=False
# torch.cuda.Event and others have no types.
"""The trained network in torch as a contender of bench.py, and what torch measures of the machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parotid_seg.bench.roofline import Peaks
from parotid_seg.runtime.engines.base import INPUTS
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Mask

SLOTS = 2
"""Chunks that torch is given ahead, each with page-locked memory of its own, so that Python runs while the GPU does."""

COPIED_BYTES = 1 << 30


class Half(nn.Module):
    """A `ParotidNet` in FP16 but for resampling. Autocast would cast weights and activations again at every layer."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.to_grid, self.from_grid = net.to_grid, net.from_grid
        self.unet = net.unet.half()

    def forward(self, slices: Tensor, window: Tensor, rows: Tensor, columns: Tensor, *others: Tensor) -> Tensor:
        """As `ParotidNet`'s."""
        neighbours, *back = others
        images = self.to_grid(slices, window, rows, columns, neighbours)
        scores: Tensor = self.from_grid(self.unet(images.half()), *back)
        return scores.argmax(dim=1).to(torch.uint8)


class _Queued:
    """A chunk on its way through torch."""

    def __init__(self, labels: Tensor, done: torch.cuda.Event | None) -> None:
        self._labels, self._done = labels, done

    def result(self) -> Mask:
        """Wait for the event behind the last copy; the array is the caller's own."""
        if self._done is not None:
            self._done.synchronize()
        return np.array(self._labels.numpy())


class TorchContender:
    """The network in torch.

    Args:
        net: the network, of which it becomes the owner.
        device: where to run it.
        tf32: whether FP32 products may be rounded to TF32. A setting of the process, so it is made for every chunk.
        compile_mode: mode of torch.compile; "" is eager.
    """

    ours = False
    copied = None

    def __init__(self, net: Any, device: torch.device, *, tf32: bool, compile_mode: str = "") -> None:
        self._net = net.to(device, memory_format=torch.channels_last).eval()
        self._device, self._tf32, self._compiled = device, tf32, bool(compile_mode)
        self._run = torch.compile(self._net, mode=compile_mode, dynamic=False) if compile_mode else self._net
        self._pinned: dict[tuple[Any, ...], Tensor] = {}
        self._turn = 0
        self.queue_depth = SLOTS if device.type == "cuda" else 1
        self.about = {"backend": f"torch {torch.__version__}", "tf32": tf32, "compile_mode": compile_mode or None}

    def start(self, inputs: Inputs) -> _Queued:
        """Queue the copies and the work."""
        self._turn = (self._turn + 1) % SLOTS
        with self._settings():
            labels = self._forward(self._on_device(inputs))
            if self._device.type != "cuda":
                return _Queued(labels, None)
            out = self._place("labels", tuple(labels.shape), labels.dtype)
            out.copy_(labels, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            return _Queued(out, done)

    def compute_ms(self, inputs: Sequence[Inputs], repeats: int) -> list[float]:
        """By device events around the network, with all inputs on the device; on a CPU by the clock."""
        with self._settings():
            ready = [[each.clone() for each in self._on_device(chunk)] for chunk in inputs]
            if self._device.type != "cuda":
                return [_clocked(lambda chunk=chunk: self._forward(chunk)) for _ in range(repeats) for chunk in ready]
            torch.cuda.synchronize()
            pairs = []
            for chunk in ready * repeats:
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                self._forward(chunk)
                after.record()
                pairs.append((before, after))
            torch.cuda.synchronize()
            return [before.elapsed_time(after) for before, after in pairs]

    def _forward(self, tensors: list[Tensor]) -> Tensor:
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()
        labels: Tensor = self._run(*tensors)
        return labels

    def _on_device(self, inputs: Inputs) -> list[Tensor]:
        arrays = [torch.from_numpy(np.require(inputs[name], requirements=["C", "W"])) for name in INPUTS]
        if self._device.type != "cuda":
            return arrays
        places = [self._place(name, tuple(a.shape), a.dtype) for name, a in zip(INPUTS, arrays, strict=True)]
        for place, array in zip(places, arrays, strict=True):
            place.copy_(array)
        return [place.to(self._device, non_blocking=True) for place in places]

    def _place(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Page-locked memory of this turn's slot; its last chunk is out, as no more than `queue_depth` are started."""
        key = (self._turn, name, shape)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(shape, dtype=dtype, pin_memory=True)
        return self._pinned[key]

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        torch.set_float32_matmul_precision("high" if self._tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self._tf32
        # inference mode is the fastest for eager work; compiled graphs keep tensors between calls and want the other
        with torch.no_grad() if self._compiled else torch.inference_mode():
            yield


def _clocked(work: Any) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def timed_ms(work: Any, device: torch.device, repeats: int) -> float:
    """Median milliseconds of work in torch after a warm-up, by device events or on a CPU by the clock."""
    work()
    if device.type != "cuda":
        return float(np.median([_clocked(work) for _ in range(repeats)]))
    found = []
    for _ in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        work()
        after.record()
        after.synchronize()
        found.append(before.elapsed_time(after))
    return float(np.median(found))


def contender(checkpoint: Path, device: str, precision: str, **how: Any) -> TorchContender:
    """The network of a checkpoint in torch; `how` as for `TorchContender`."""
    from parotid_seg.train.checkpoint import load_checkpoint

    net = load_checkpoint(checkpoint).network()
    return TorchContender(Half(net) if precision == "fp16" else net, torch.device(device), **how)


def measured_peaks(on: str) -> Peaks:
    """What the machine does at best in torch: a large product by type, and a large copy on the device."""
    device = torch.device(on)
    on_gpu = device.type == "cuda"
    side, repeats = (8192, 20) if on_gpu else (512, 3)
    kinds = {"fp32": (torch.float32, False), "tf32": (torch.float32, True), "fp16": (torch.half, True)}
    gflops = {}
    for name, (dtype, tf32) in kinds.items():
        if tf32 and dtype is torch.float32 and not on_gpu:
            continue
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        result = torch.empty_like(one)
        ms = timed_ms(lambda one=one, other=other, result=result: torch.mm(one, other, out=result), device, repeats)
        gflops[name] = 2 * side**3 / ms / 1e6
        del one, other, result
    source = torch.zeros(COPIED_BYTES if on_gpu else COPIED_BYTES >> 6, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * len(source) / timed_ms(lambda: target.copy_(source), device, repeats) / 1e6
    return Peaks(gflops, dict.fromkeys(gflops, f"torch {torch.__version__}"), copied)


def measured_bus(device: str, repeats: int = 20) -> dict[str, float]:
    """GB/s of a large copy from page-locked memory to a GPU, and back."""
    near = torch.zeros(COPIED_BYTES >> 2, dtype=torch.uint8, device=device)
    host = torch.zeros(len(near), dtype=torch.uint8, pin_memory=True)
    gpu = torch.device(device)
    there = timed_ms(lambda: near.copy_(host, non_blocking=True), gpu, repeats)
    back = timed_ms(lambda: host.copy_(near, non_blocking=True), gpu, repeats)
    return {"host_to_device_gb_s": len(near) / there / 1e6, "device_to_host_gb_s": len(near) / back / 1e6}
