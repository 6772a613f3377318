"""The training loop of every stage: epochs of batches, one record per epoch, checkpoints to resume from."""

from __future__ import annotations

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
from parotid_seg.files import write_text
from parotid_seg.records import convert
from parotid_seg.scan.seen import Seen
from parotid_seg.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from parotid_seg.train.config import SCRATCH, TrainConfig
from parotid_seg.train.data.dataset import DataSet
from parotid_seg.train.data.leaks import check_leaks, locked_scans
from parotid_seg.train.data.patients import Patient, check_labels, doubts_line, load_patients
from parotid_seg.train.model_weights import is_model, unfold_norms
from parotid_seg.train.network import SwinUnet, computes_in_bfloat16
from parotid_seg.train.parallel import Processes
from parotid_seg.train.plots import add_record, draw_curves, drop_later_records
from parotid_seg.train.settings import differences, duration, how_to_go_on, to_toml
from parotid_seg.train.transfer import Transfer, start_from, training_of

Report = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with the current step's title, the steps done, and the number of steps."""
SILENCE_S = 60.0
"""Seconds without output after which a line reports the progress of the epoch."""
UNCUT_S = 20.0
"""Seconds of an epoch before which it is not cut off."""
FEWEST_TO_ESTIMATE, TRIAL_STEPS = 90, 4
"""Least steps of a stage for an estimate before its start, and the steps that are timed for it."""
FIRST_ESTIMATE_S = 10.0
"""The same for the first epoch of a run, so that the time it will take is known soon."""
NORM_BATCHES = 10
"""Batches from which a model file's batch norms get their mean and variance."""
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
        self.validation_s, self.end_early_s = 0.0, 0.0  # seconds that they take
        self.silence_s = FIRST_ESTIMATE_S
        self.train: list[Patient] = []
        self.validation: list[Patient] = []
        self.locked: dict[str, str] = {}
        self.seen = Seen()
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
    def end_early(self) -> str:
        """Called if a run ends before its schedule, possibly within an epoch; returns what `best.pt` is, or ""."""

    def begin(self) -> dict[str, float]:
        """Called before the first epoch; returns figures of the initial weights to record."""
        return {}

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The resulting weights, with the names of `ParotidNet`."""

    def take(self, source: str, unet: SwinUnet, **options: Any) -> Transfer:
        """Fill a network with a source's weights, in all processes; see `transfer.start_from`."""

        def fill() -> Transfer:
            transfer = start_from(source, unet, **options)
            if is_model(source):
                unfold_norms(unet, (batch[0].to(self.device) for batch in self.batches(range(NORM_BATCHES))))
            return transfer

        transfer = self.processes.broadcast_from_rank0(fill)
        self.processes.broadcast_weights(unet)
        return transfer

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
        if self.data.test:
            self.report(f"locked for a test, never used here: {len(self.data.test)}: {', '.join(self.data.test)}")
        own_cases = cases[self.processes.rank :: self.processes.count]
        # First each process decodes its share. The second pass finds the rest in the cache, unless caches are separate.
        for part in (own_cases, cases):
            patients = load_patients(self.data, part, self.cache, self.config.window_hu, self._reading(len(part)))
            self.processes.barrier()
        warning = doubts_line(patients)
        if warning and self.processes.first:
            self.report(warning)
        self.train, self.validation = patients[: len(self.data.train)], patients[len(self.data.train) :]
        self.locked, notes = self.processes.broadcast_from_rank0(
            lambda: locked_scans(self.data, self.cache, self.config.window_hu)
        )
        mirrored = self.config.augment.mirror_probability > 0
        for note in (*notes, *check_labels(self.data, self.train, self.validation, mirrored)):
            self.report(f"note: {note}")

    def check_leaks(self, source: str) -> None:
        """Check that no test patient is or was trained on; `source` is that of the weights, or a resumed `last.pt`."""
        training = None if source == SCRATCH else self.processes.broadcast_from_rank0(lambda: training_of(source))
        self.seen = Seen() if training is None else Seen.recorded(training)
        for note in check_leaks(source, self.seen, self.train, self.validation, self.locked):
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
                f"--resume: {last} was made with other settings: {differences(saved_settings, current)}; "
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
            for note in drop_later_records(self.run / "metrics.jsonl", self.epochs_done):
                self.report(f"note: {note}")

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

        An epoch of more than `UNCUT_S` is cut off when the time is over; `last.pt` is then of the epoch before.

        Returns:
            Whether the schedule is complete; if not, `last.pt` resumes it, if there is one.
        """
        started = time.monotonic()
        deadline = math.inf if max_minutes is None else started + 60 * max_minutes
        if self.processes.first:
            write_text(to_toml(self.config), self.run / "config.toml")
        if not computes_in_bfloat16(self.device):
            self.report("computes in float32: this CPU has no arithmetic for bfloat16")
        if self.epochs_done == 0:
            if self.processes.first:
                (self.run / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was killed in its first epoch
            if figures := self.begin():
                self._record({"epoch": 0.0, **figures})
        self._estimate(max_minutes)
        while not self.finished:
            whole = self._epoch(deadline)
            if not self.finished and (not whole or self.processes.any(self._late(deadline))):
                way_on = how_to_go_on(self.run, self.epochs_done, self.end_early())
                if whole:
                    self.save("last.pt", self.progress())
                self.report(f"stopped after {self.epochs_done} of {self.schedule.epochs} epochs; {way_on}")
                return False
        return True

    def _late(self, deadline: float) -> bool:
        return time.monotonic() + self.end_early_s >= deadline

    def _estimate(self, max_minutes: float | None) -> None:
        """Report how long the stage will take, from a few steps that leave no trace, unless it is short."""
        steps = self.schedule.steps - self.step
        if steps < FEWEST_TO_ESTIMATE:
            return
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.train()
        generator = torch.Generator(self.device).manual_seed(0)
        times = []
        for batch in self.batches(range(self.step, self.step + TRIAL_STEPS)):
            started = time.monotonic()
            self.loss(batch, generator)[0].backward()  # type: ignore[no-untyped-call]
            times.append(time.monotonic() - started)
        self.optimizer.zero_grad()
        self.model.load_state_dict(state)
        each = float(np.median(times))
        limit = "" if max_minutes is None else f"; --max-minutes ends it within {duration(max(0.0, 60 * max_minutes))}"
        validations = math.ceil((self.schedule.epochs - self.epochs_done) / getattr(self.schedule, "validate_every", 1))
        whole = duration(steps * each + validations * self.validation_s)
        self.report(f"estimate: {whole}, for {steps} steps of {each:.2f} s and the validations{limit}")

    def _epoch(self, deadline: float) -> bool:
        """One epoch; False if it was cut off."""
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
            cut = deadline < math.inf and time.monotonic() - started > UNCUT_S and self._late(deadline)
            if deadline < math.inf and self.processes.any(cut) and len(figures) < steps:
                return False
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
        self._record(record)
        return True

    def _record(self, record: dict[str, float]) -> None:
        """Write, draw and report the figures of an epoch; 0 stands for the initial weights. Write `last.pt`."""
        if self.processes.first:
            add_record(record, self.run / "metrics.jsonl")
            draw_curves(self.run / "metrics.jsonl", self.run / "curves.png", self.curves)
        if self.epochs_done:
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
            **self.seen.record(patient.sha256 for patient in self.train),
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
