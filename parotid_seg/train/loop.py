"""The training loop of every stage: epochs of batches, one record per epoch, checkpoints to resume from."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from parotid_seg.errors import InputError, RecordError
from parotid_seg.files import write_text
from parotid_seg.scan.intensity import fixed_windows
from parotid_seg.scan.seen import Seen
from parotid_seg.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from parotid_seg.train.config import SCRATCH, TrainConfig
from parotid_seg.train.data.data_set import DataSet
from parotid_seg.train.data.loading import ResumeState, Trained, announced, check_leaks, load_all, seen_in
from parotid_seg.train.data.patients import Patient
from parotid_seg.train.network import SwinUnet, computes_in_bfloat16
from parotid_seg.train.parallel import Processes
from parotid_seg.train.plots import add_record, draw_curves, drop_later_records
from parotid_seg.train.settings import check_same, duration, to_toml
from parotid_seg.train.time_limit import Pace, TimeIsOverError, TimeLimit, how_to_go_on
from parotid_seg.train.transfer import Transfer, start_from, training_of
from parotid_seg.wording import Progress, Say

SILENCE_S = 60.0
"""Seconds without output after which a line reports the progress of the epoch."""
FIRST_ESTIMATE_S = 10.0
"""The same for the first epoch of a run, so that the time it will take is known soon."""
FEWEST_TO_ESTIMATE, TRIAL_STEPS = 90, 4
"""Least steps of a stage for an estimate before its start, and the steps that are timed for it. A shorter stage has one
after its first step."""
NORM_BATCHES = 10
"""Batches from which a model file's batch norms get their mean and variance."""
MOST_WORKERS = 8
"""Processes that draw slices for a GPU; on the CPU there is one, because the network needs the cores."""


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
        limit: when to stop.
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
        report: Say,
        cache: Path,
        progress: Progress = lambda *_: None,
        limit: TimeLimit | None = None,
    ) -> None:
        self.config, self.data, self.run, self.cache = config, data, run, cache
        self.processes, self.device = processes, processes.device
        self.limit = limit or TimeLimit()
        self.shown = progress if processes.first else lambda *_: None
        self.pace = Pace(report if processes.first else lambda _: None, self.shown)
        self.report = self.pace.say
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
        self.trained = Trained((), ())  # of the resumed run
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

    def end_early(self) -> str:
        """Called if a run ends before its schedule, possibly within an epoch; returns what `best.pt` is, or ""."""
        return self.what_best_is()

    @abstractmethod
    def what_best_is(self) -> str:
        """What `best.pt` is now; "" if there is none."""

    def remarks(self) -> list[str]:
        """What is to be said of the result after the last epoch, one line each."""
        return []

    def next_command(self) -> str:
        """A line with the path of `best.pt` and the command that takes it; "" if there is none."""
        return ""

    def begin(self) -> dict[str, float]:
        """Called before the first epoch; returns figures of the initial weights to record."""
        return {}

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The resulting weights, with the names of `ParotidNet`."""

    def load_initial_weights(self, source: str, unet: SwinUnet, **options: Any) -> Transfer:
        """Fill a network with a source's weights, in all processes; see `transfer.start_from`."""
        self.report(f"reading --init {source}")
        transfer = self.processes.broadcast_from_rank0(
            lambda: start_from(source, unet, channels=self.data.channels, images=self._images(), **options)
        )
        self.processes.broadcast_weights(unet)
        return transfer

    def _images(self) -> Iterator[Tensor]:
        """Batches of images for batch norms."""
        for number, batch in enumerate(self.batches(range(NORM_BATCHES))):
            self.preparing("estimating batch norms from training slices, batch by batch", number, NORM_BATCHES)
            yield batch[0].to(self.device)

    def preparing(self, phase: str, done: int, steps: int, detail: str = "") -> None:
        """A step of the preparation begins.

        Raises:
            TimeIsOverError: if the time is over; not with several processes, which stop together after a phase.
        """
        self.pace.step(phase, done, steps, detail)
        if self.processes.count == 1 and self.limit.cuts():
            self._stop_before_training(phase)

    def _stop_before_training(self, phase: str) -> None:
        raise TimeIsOverError(
            f"stopped after {self.epochs_done} of {self.schedule.epochs} epochs of the stage {self.config.stages[-1]}: "
            f"the time was over before its first step, while {phase}; "
            f"{how_to_go_on(self.run, self.epochs_done, self.what_best_is())}"
        )

    def has_same_input(self, transfer: Transfer) -> bool:
        """Whether the weights of a source see scans as in its own training, as far as that is known."""
        return transfer.fits(self.config.grid, fixed_windows(self.data.channels, self.config.window_hu))

    def report_transfer(self, transfer: Transfer) -> None:
        """Say and write the record of a source's weights."""
        for line in transfer.lines():
            self.report(line)
        if transfer.channels and transfer.channels != self.data.channels:
            trained, own = ", ".join(transfer.channels), ", ".join(self.data.channels)
            self.report(f"note: {transfer.source} was trained on {trained}, not on {own}")
        if not self.has_same_input(transfer):
            self.report(f"note: {transfer.source} has another grid or window, so this is not its model unchanged")
        if self.processes.first:
            transfer.save(self.run / "transfer.json")

    @property
    def finished(self) -> bool:
        """Whether the schedule is complete."""
        return self.epochs_done >= self.schedule.epochs

    def load(self) -> None:
        """Decode the data set's scans and labels; errors as for `load_all` and `check_unchanged`."""
        for line in announced(self.data, self.config):
            self.report(line)
        loaded = load_all(self.data, self.config, self.cache, self.processes, self.report, self.preparing)
        self.train, self.validation, self.locked = loaded

    def check_leaks(self, source: str) -> None:
        """Check that no test patient is or was trained on; `source` is that of the weights, or a resumed `last.pt`."""
        training = None if source == SCRATCH else self.processes.broadcast_from_rank0(lambda: training_of(source))
        self.seen = Seen() if training is None else Seen.recorded(training)
        for note in check_leaks(source, self.seen, self.train, self.validation, self.locked):
            self.report(f"note: {note}")

    def resume(self) -> None:
        """Continue from `last.pt`.

        Raises:
            InputError: if there is none, or it was made with other settings.
        """
        checkpoint = self.processes.broadcast_from_rank0(lambda: load_checkpoint(self.run / "last.pt"))
        saved = checkpoint.config.for_stage(checkpoint.config.stages[-1])  # ignores other defaults of its version
        saved_settings = saved, checkpoint.labels, checkpoint.channels, checkpoint.training.get("train_patients")
        current = self.config, self.data.labels, self.data.channels, len(self.data.train)
        check_same(saved_settings, current, self.run / "last.pt")
        try:
            done = ResumeState.recorded(checkpoint.progress)
            self.epochs_done, self.step, self.trained = done.epochs_done, done.step, done.patients
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
            "patients": Trained.of(self.train, self.validation).record(),
        }

    def fit(self) -> bool:
        """Train until the schedule or the time is over.

        An epoch is cut off when the time is over; `last.pt` is then of the epoch before.

        Returns:
            Whether the schedule is complete; if not, `last.pt` resumes it, if there is one.

        Raises:
            TimeIsOverError: if the time is over before the first step.
        """
        if self.processes.first:
            write_text(to_toml(self.config), self.run / "config.toml")
        if not computes_in_bfloat16(self.device):
            self.report("computes in float32: this CPU has no arithmetic for bfloat16")
        if self.epochs_done == 0:
            if self.processes.first:
                for name in ("metrics.jsonl", "curves.png"):  # of a run that was killed in its first epoch
                    (self.run / name).unlink(missing_ok=True)
            if figures := self.begin():
                self._record({"epoch": 0.0, **figures})
        self._estimate()
        if self.processes.any(self.limit.cuts()):
            self._stop_before_training("preparing it")
        while not self.finished:
            whole = self._epoch()
            if not self.finished and (not whole or self.processes.any(self.limit.over(self.end_early_s))):
                way_on = how_to_go_on(self.run, self.epochs_done, self.end_early())
                if whole:
                    self.save("last.pt", self.progress())
                self.report(f"stopped after {self.epochs_done} of {self.schedule.epochs} epochs; {way_on}")
                return False
        for line in self.remarks():
            self.report(line)
        return True

    def _estimate(self) -> None:
        """Say how long the stage will take, from a few steps that leave no trace, unless it is short."""
        steps = self.schedule.steps - self.step
        if steps < FEWEST_TO_ESTIMATE:
            self.silence_s = 0.0
            return
        self.report(f"timing {TRIAL_STEPS} steps for an estimate")
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
        limit = "" if self.limit.minutes is None else f"; --max-minutes ends it within {duration(self.limit.left_s())}"
        validations = math.ceil((self.schedule.epochs - self.epochs_done) / getattr(self.schedule, "validate_every", 1))
        whole = duration(steps * each + validations * self.validation_s)
        self.report(f"estimate: {whole}, for {steps} steps of {each:.2f} s and the validations{limit}")

    def _epoch(self) -> bool:
        """One epoch; False if it was cut off."""
        started = time.monotonic()
        seed = self.config.seed * 100_003 + self.epochs_done  # a resumed run draws the same
        torch.manual_seed(seed * 1009 + self.processes.rank)  # stochastic depth
        generator = torch.Generator(self.device).manual_seed(seed)
        self.model.train()
        figures: list[dict[str, float]] = []
        steps, reported = self.schedule.steps_per_epoch, started
        title = f"stage {self.config.stages[-1]}, epoch {self.epochs_done + 1} of {self.schedule.epochs}"
        self.shown(title, 0, steps)
        for batch in self.batches(range(self.step, self.step + steps)):
            figures.append(self._train_step(batch, generator))
            self.shown(title, len(figures), steps)
            if (now := time.monotonic()) - reported >= self.silence_s:
                in_stage = steps * (self.schedule.epochs - self.epochs_done) - len(figures)
                each, reported, self.silence_s = (now - started) / len(figures), now, SILENCE_S
                self.report(
                    f"{title}: {len(figures)} of {steps} steps, {each:.1f} s each; left: "
                    f"{duration(each * (steps - len(figures)))} of the epoch, {duration(each * in_stage)} of the stage"
                )
            limited = self.limit.minutes is not None and len(figures) < steps
            if limited and self.processes.any(self.limit.cuts(self.end_early_s)):
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
        self._record(record | self.after_epoch(record))
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
            **self.seen.record(patient.sha256 for patient in (self.train if self.step else ())),
            **seen_in(self.seen, self.validation),
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
