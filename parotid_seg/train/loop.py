"""The training loop of every stage: epochs of batches, one record per epoch, checkpoints to resume from."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from parotid_seg.errors import InputError, RecordError
from parotid_seg.files import open_to_append, write_text
from parotid_seg.records import convert, read_lines, record_line
from parotid_seg.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.dataset import DataSet
from parotid_seg.train.network import computes_in_bfloat16
from parotid_seg.train.parallel import Processes
from parotid_seg.train.patients import Patient, check_labels, doubts_line, load_patients
from parotid_seg.train.plots import draw_curves
from parotid_seg.train.settings import to_toml
from parotid_seg.train.transfer import Transfer

Report = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with the current step's title, the steps done, and the number of steps."""
SILENCE_S = 60.0
"""Seconds without output after which a line reports the progress of the epoch."""
FIRST_ESTIMATE_S = 10.0
"""The same for the first epoch of a run, so that the time it will take is known soon."""

MOST_WORKERS = 8
"""Processes that draw slices for a GPU; on the CPU there is one, because the network needs the cores."""


@dataclass(frozen=True)
class _Done:
    """Progress of a run."""

    epochs_done: int
    step: int


class Trainer(ABC):
    """One stage of a run: trains, or resumes, with all files in its folder.

    Args:
        config: the resolved configuration; its last stage is this one.
        data: the data set.
        run: folder for checkpoints, metrics and pictures.
        processes: the training processes, including this one.
        report: called with one line for each event.
        cache: folder for decoded scans.
        progress: called after each step and each patient read.
    """

    curves: ClassVar[tuple[tuple[str, str], ...]]
    """Figures of a record to draw: their prefix, and the axis label."""
    model: nn.Module
    """The trained module, which is saved for resuming."""
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        config: TrainConfig,
        data: DataSet,
        run: Path,
        processes: Processes,
        report: Report,
        cache: Path,
        progress: Progress = lambda *_: None,
    ) -> None:
        self.config, self.data, self.run, self.cache = config, data, run, cache
        self.processes, self.device = processes, processes.device
        self.report = report if processes.first else lambda _: None
        self.shown = progress if processes.first else lambda *_: None
        self.schedule = config.schedule
        self.places = processes.share(self.schedule.batch_size)
        spare = max(1, (os.cpu_count() or 1) // processes.here - 1)
        self.workers = 1 if self.device.type == "cpu" else min(MOST_WORKERS, spare)
        self.epochs_done, self.step = 0, 0
        self.silence_s = FIRST_ESTIMATE_S
        self.train: list[Patient] = []
        self.validation: list[Patient] = []
        torch.manual_seed(config.seed)
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Create `model`, `optimizer` and everything else that the stage needs."""

    @abstractmethod
    def start(self, source: str) -> None:
        """Take the initial weights from a source, and write the record of their transfer to `transfer.json`.

        Args:
            source: "scratch", or as in `transfer.start_from`.

        Raises:
            InputError: if they cannot be read or fit no part.
        """

    @abstractmethod
    def batches(self, numbers: range) -> Iterable[Any]:
        """This process's part of these batches."""

    @abstractmethod
    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """A batch's loss, and additional figures to record."""

    @abstractmethod
    def after_step(self) -> None:
        """Called after the optimizer's step; updates moving averages."""

    @abstractmethod
    def after_epoch(self, record: dict[str, float]) -> dict[str, float]:
        """Checks, validation, pictures and `best.pt`; returns additional figures to record."""

    @abstractmethod
    def end_early(self) -> None:
        """Called if a run ends before its schedule."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The resulting weights, with the names of `ParotidNet`."""

    def tell(self, transfer: Transfer) -> None:
        """Report and write the record of a source's weights."""
        for line in transfer.lines():
            self.report(line)
        if self.processes.first:
            transfer.save(self.run / "transfer.json")

    @property
    def finished(self) -> bool:
        """Whether the schedule is complete."""
        return self.epochs_done >= self.schedule.epochs

    def load(self) -> None:
        """Decode the data set's scans and labels.

        Raises:
            ScanError, InputError: if one cannot be used, or a label map is empty.
        """
        cases = (*self.data.train, *self.data.validation)
        held_out = f", validates on {len(self.data.validation)}: {', '.join(self.data.validation)}"
        length = f"{self.schedule.epochs} epochs of {self.schedule.images_per_epoch:,} slices"
        trained = f"stage {self.config.stages[-1]}: {length}; trains on {len(self.data.train)} patients"
        self.report(trained + (held_out if self.data.validation else ""))
        own_cases = cases[self.processes.rank :: self.processes.count]
        # First each process decodes its share. The second pass finds the rest in the cache, unless caches are separate.
        for part in (own_cases, cases):
            patients = load_patients(self.data, part, self.cache, self.config.window_hu, self._reading(len(part)))
            self.processes.barrier()
        warning = doubts_line(patients)
        if warning and self.processes.first:
            self.report(warning)
        self.train, self.validation = patients[: len(self.data.train)], patients[len(self.data.train) :]
        mirrored = self.config.augment.mirror_probability > 0
        for note in check_labels(self.data, self.train, self.validation, mirrored):
            self.report(f"note: {note}")

    def _reading(self, count: int) -> Callable[[str], None]:
        numbers = iter(range(count))
        return lambda case: self.shown(f"reading {case}", next(numbers), count)

    def resume(self) -> None:
        """Continue from `last.pt`.

        Raises:
            InputError: if there is none, or it was made with other settings.
        """
        checkpoint = self.processes.broadcast_from_rank0(lambda: load_checkpoint(self.run / "last.pt"))
        saved = checkpoint.config.for_stage(checkpoint.config.stages[-1])  # ignores other defaults of its version
        saved_settings = saved, checkpoint.labels, checkpoint.channels, checkpoint.training.get("train_patients")
        current = self.config, self.data.labels, self.data.channels, len(self.data.train)
        if saved_settings != current:
            last = self.run / "last.pt"
            raise InputError(
                f"--resume: {last} was made with other settings: {_differences(saved_settings, current)}; "
                f"give the same again (they are in {self.run / 'config.toml'}), or, for more epochs or other settings, "
                f"start a new run from it (--init {last} with another --out)"
            )
        try:
            progress = convert({name: checkpoint.progress.get(name) for name in ("epochs_done", "step")}, _Done)
            self.epochs_done, self.step = progress.epochs_done, progress.step
            self.optimizer.load_state_dict(checkpoint.progress["optimizer"])
            self.restore(checkpoint)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, RecordError) as error:
            reason = f"its state to resume from does not fit ({str(error).splitlines()[0] if str(error) else error!r})"
            raise InputError(f"--resume: {reason}", path=self.run / "last.pt") from error
        if self.processes.first:
            self._drop_later_records()

    def _drop_later_records(self) -> None:
        """Remove records after the checkpoint: a run that was killed between both repeats that epoch."""
        path = self.run / "metrics.jsonl"
        if path.exists():
            for each in read_lines(path, dict[str, float]):
                if isinstance(each, RecordError):
                    self.report(f"note: {each}; not drawn")
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_text("".join(lines[: self.epochs_done]), path)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the model and the additional state of `progress` from a checkpoint."""
        self.model.load_state_dict(checkpoint.progress["model"])

    def progress(self) -> dict[str, Any]:
        """State to resume from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs_done": self.epochs_done,
            "step": self.step,
        }

    def fit(self, max_minutes: float | None = None) -> bool:
        """Train until the schedule or the time is over.

        Returns:
            Whether the schedule is complete; if not, `last.pt` resumes it.
        """
        started = time.monotonic()
        if self.processes.first:
            write_text(to_toml(self.config), self.run / "config.toml")
        if not computes_in_bfloat16(self.device):
            self.report("computes in float32: this CPU has no arithmetic for bfloat16")
        while not self.finished:
            self._epoch()
            late = max_minutes is not None and (time.monotonic() - started) / 60 >= max_minutes
            if self.processes.any(late) and not self.finished:
                self.end_early()
                self.report(f"stopped after {self.epochs_done} of {self.schedule.epochs} epochs; --resume continues")
                return False
        return True

    def _epoch(self) -> None:
        started = time.monotonic()
        seed = self.config.seed * 100_003 + self.epochs_done  # a resumed run draws the same
        torch.manual_seed(seed * 1009 + self.processes.rank)  # stochastic depth
        generator = torch.Generator(self.device).manual_seed(seed)
        self.model.train()
        figures: list[dict[str, float]] = []
        steps, reported = self.schedule.steps_an_epoch, started
        title = f"stage {self.config.stages[-1]}, epoch {self.epochs_done + 1} of {self.schedule.epochs}"
        self.shown(title, 0, steps)
        for batch in self.batches(range(self.step, self.step + steps)):
            figures.append(self._train_step(batch, generator))
            self.shown(title, len(figures), steps)
            if (now := time.monotonic()) - reported >= self.silence_s:
                in_stage = self.schedule.steps_an_epoch * (self.schedule.epochs - self.epochs_done) - len(figures)
                each, reported, self.silence_s = (now - started) / len(figures), now, SILENCE_S
                self.report(
                    f"{title}: {len(figures)} of {steps} steps, {each:.1f} s each; left: "
                    f"{duration(each * (steps - len(figures)))} of the epoch, {duration(each * in_stage)} of the stage"
                )
        self.epochs_done += 1
        means = {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}
        record = {
            "epoch": self.epochs_done,
            **self.processes.mean(means),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_seconds": round(time.monotonic() - started, 1),
        }
        if not math.isfinite(record["loss"]):
            raise InputError(
                f"training diverged in epoch {self.epochs_done}: the loss is not finite; lower the learning rate"
            )
        record |= self.after_epoch(record)
        if self.processes.first:
            with open_to_append(self.run / "metrics.jsonl") as file:
                file.write(record_line(record))
            draw_curves(self.run / "metrics.jsonl", self.run / "curves.png", self.curves)
        self.save("last.pt", self.progress())
        self.report("  ".join(f"{name} {value:.4g}" for name, value in record.items()))

    def _train_step(self, batch: Any, generator: torch.Generator) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate_at(self.step)
        loss, figures = self.loss(batch, generator)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.gradient_norm)
        self.optimizer.step()
        self.step += 1
        self.after_step()
        return {"loss": loss.item(), **figures}

    def save(self, name: str, progress: dict[str, Any], **scores: float) -> None:
        """Write a checkpoint of the present state, in the writing process only."""
        training = {
            "data": self.data.name,
            "stage": self.config.stages[-1],
            "train_patients": len(self.data.train),
            "validation_patients": len(self.data.validation),
            "preset": self.config.preset,
            "epochs": self.epochs_done,
            "images": self.step * self.schedule.batch_size,
            **scores,
        }
        checkpoint = Checkpoint(
            config=self.config,
            labels=self.data.labels,
            channels=self.data.channels,
            training=training,
            weights=self.weights(),
            progress=progress,
        )
        if self.processes.first:
            save_checkpoint(checkpoint, self.run / name)


def duration(seconds: float) -> str:
    """A duration as text, in a suitable unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _differences(saved: tuple[Any, ...], current: tuple[Any, ...]) -> str:
    """The settings that differ, with both values."""
    names = ("settings", "labels", "channels", "train patients")
    saved_values, current_values = (dict(zip(names, each, strict=True)) for each in (saved, current))
    for values in (saved_values, current_values):
        config = values.pop("settings")
        values |= {
            f"{group.name}.{name}" if dataclasses.is_dataclass(getattr(config, group.name)) else group.name: value
            for group in dataclasses.fields(config)
            for name, value in _values_of(getattr(config, group.name))
        }
    differing = [name for name in saved_values if saved_values[name] != current_values.get(name)]
    return ", ".join(f"{name} (it has {saved_values[name]}, now {current_values.get(name)})" for name in differing)


def _values_of(value: Any) -> list[tuple[str, Any]]:
    return [*dataclasses.asdict(value).items()] if dataclasses.is_dataclass(value) else [("", value)]  # type: ignore[arg-type]


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, keep: float) -> None:
    """Move the weights of a slow copy towards a network's; `keep` is the share of its own weights that it keeps."""
    now = fast.state_dict()
    for name, value in slow.state_dict().items():
        if value.is_floating_point():
            value.lerp_(now[name], 1 - keep)
        else:
            value.copy_(now[name])


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only, as is usual for transformers."""
    learnt = [parameter for parameter in net.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learnt if parameter.ndim > 1]
    vectors = [parameter for parameter in learnt if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
