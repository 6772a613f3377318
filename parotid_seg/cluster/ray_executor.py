"""A Ray cluster as the executor of a run, seen from the command's process."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import secrets
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from parotid_seg.cluster.cluster_options import ClusterOptions
from parotid_seg.cluster.driver_messages import Ended, ModelForHosts, Notice, Plan, Ready, RunRequest
from parotid_seg.cluster.mirror import mirrored
from parotid_seg.cluster.urls import find_anywhere, url_of
from parotid_seg.errors import InputError, OptionError, OutputError, ParotidSegError
from parotid_seg.runtime.engines.engine_file import read_engine, read_sidecar, sidecar_path
from parotid_seg.runtime.engines.load import output_for
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.model_options import ModelOptions
from parotid_seg.runtime.engines.registry import AUTO, ENGINE_FILE, engine_named
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import RESUMES
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, OutputFailure, WorkerConfig
from parotid_seg.runtime.pipeline.protocol.worker_stdio import cause, command_of, send
from parotid_seg.runtime.pipeline.run import OutcomeProgress, Summary, infer_at
from parotid_seg.wording import Say, counted

RAY_LOG = re.compile(r"^\[[^]]*\] \S+:\d+: ")
"""What Ray writes in front of a message: time, level, process and place."""
NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Switches off Ray's usage reports, which would be sent for every cluster that is started."""
LEAVES_S = 15.0
"""Seconds for the client to end its actors on the hosts."""


def _local_settings() -> dict[str, str]:
    """Settings of a local cluster: nobody else may use it, and a lost head does not come back."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    }


class RayExecutor:
    """An `Executor`: a process that is the cluster's client, and through it the actors on the hosts.

    Args:
        cluster: the cluster's address, and the resources of each worker.
        workers: most actors, each with the model; None for as many as there is room for.
        model: see `ModelForHosts`.
        out: URL of the results; empty if they go to a folder.
        say: called with a line about what the run waits for, and about the cluster once it is ready.

    Raises:
        ParotidSegError: if Ray is missing, the cluster cannot be reached, has no room, or cannot load the model.
    """

    def __init__(self, cluster: ClusterOptions, workers: int | None, model: ModelForHosts, out: str, say: Say) -> None:
        assert cluster.cluster is not None
        if importlib.util.find_spec("ray") is None:
            raise InputError("--cluster: the package ray is missing: pip install 'parotid-seg[ray]'")
        self._out, self._say = out, say
        self._scratch = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie below it
        gpus = cluster.gpus(model.device)
        self._plan = plan = Plan(cluster.cluster, self._scratch, workers, cluster.cpus, gpus, model)
        self._log = Path(self._scratch, "client.log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command_of("parotid_seg.cluster.driver"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **NO_TELEMETRY, **(_local_settings() if plan.address == "local" else {})},
            )
        try:
            self._send(plan)
            ready = self._received()
        except BaseException:
            self.close()
            raise
        assert isinstance(ready, Ready)
        self._ready = ready
        self.contract, self.model_sha256, self.ran = ready.contract, ready.model_sha256, ready.ran
        self.about: Mapping[str, Any] = {
            "cluster": {"address": plan.address, "ray": ready.ray, "hosts": ready.hosts, "workers": ready.actors},
            "worker": {"cpus": plan.cpus, "gpus": plan.gpus},
        }

    def __str__(self) -> str:
        ready, each = self._ready, counted(self._plan.cpus, "CPU")
        gpus = f" and {self._plan.gpus:g} GPU" if self._plan.gpus else ""
        hosts, workers = counted(ready.hosts, "host"), counted(ready.actors, "worker")
        return f"Ray {ready.ray}, {hosts}, {workers} of {each}{gpus}; {ready.ran}, batches of {ready.batch_size} slices"

    def do(self, work: WorkerConfig, jobs: Sequence[CaseRequest]) -> Iterator[CaseResult]:
        """Run the cases on the cluster.

        Raises:
            OutputError: if results cannot be written.
            ParotidSegError: if the cluster is lost.
        """
        token = work.out / f".partial-{uuid.uuid4().hex}-shared"
        token.touch(exist_ok=False)
        self._send(RunRequest(work, tuple(jobs), self._out, token.name))
        while not isinstance(answer := self._received(), Ended):
            assert isinstance(answer, CaseResult)
            yield answer

    def close(self) -> None:
        """End the client, and with it its actors on the hosts."""
        self._process.terminate()
        self._how_it_ended()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # the client's last message, or how it ended, gives the reason
            send(message, self._process.stdin)

    def _received(self) -> Any:
        """The next message that is not a `Notice`.

        Raises:
            OutputError: if the client stopped.
            ParotidSegError: if it is gone.
        """
        assert self._process.stdout is not None
        while True:
            try:
                message = pickle.load(self._process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise ParotidSegError(f"--cluster {self._plan.address}: lost: {self._why()}; {RESUMES}") from error
            if isinstance(message, OutputFailure):
                raise OutputError(message.message)
            if not isinstance(message, Notice):
                return message
            self._say(message.text)

    def _how_it_ended(self) -> str:
        """Wait until the client, which is ending, is gone; Ray's own end may hang."""
        try:
            return cause(self._process.wait(LEAVES_S))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"its process did not end within {LEAVES_S:g} s"

    def _why(self) -> str:
        """How the client ended, and the last line of its log."""
        reason = self._how_it_ended()
        lines = self._log.read_text(errors="replace").splitlines()
        last_line = RAY_LOG.sub("", next((line for line in reversed(lines) if line.strip()), "")).strip()
        return f"{reason} ({last_line.partition('. ')[0][:200]})" if last_line else reason


def infer_on_cluster(
    scans: Sequence[Path],
    out: Path,
    model: ModelOptions,
    cluster: ClusterOptions,
    options: InferOptions,
    *,
    say: Say,
    progress: OutcomeProgress,
) -> Summary:
    """As `infer`, on a cluster, and with URLs for scans and results.

    Raises:
        ParotidSegError: as `model_for_hosts`, `RayExecutor` and `infer_at`.
    """
    url, on_hosts = url_of(out), model_for_hosts(model, options, say)
    if url and options.report:
        say(f"no report.html: its pictures would have to be downloaded from {url}")
        options = replace(options, report=False)
    with mirrored(url) if url else nullcontext() as mirror:
        results = mirror.url if mirror else ""
        with closing(RayExecutor(cluster, options.workers, on_hosts, results, say)) as executor:
            summary = infer_at(
                executor,
                scans,
                mirror.folder if mirror else out.resolve(),
                options,
                find=partial(find_anywhere, out=results),
                model_name=model.name,
                say=say,
                progress=progress,
            )
    return replace(summary, out=out) if url else summary


def model_for_hosts(model: ModelOptions, options: InferOptions, say: Say = lambda _: None) -> ModelForHosts:
    """A model file as it is sent to the hosts.

    Args:
        model: the file and how to run it. The backend "auto" is onnxruntime, or for an engine its own library; the
            device "auto" is the CPU, and "cuda" is the GPU that a worker gets.
        options: batch size and test-time augmentation.
        say: called with one line if the model gives no probabilities to average.

    Raises:
        InputError: for an unknown backend, a device that a host may not have, or an engine that would have to be built.
        ModelError: if the file cannot be read.
    """
    file, backend, device = model.file, model.backend, model.device
    engine = engine_named(backend)
    if device not in ("auto", "cpu", "cuda"):
        raise OptionError(f"--device: found {device!r}, expected cpu or cuda: which GPU it is, the cluster decides")
    output = output_for(file, options.tta, say)
    if file.suffix == ENGINE_FILE:
        sidecar = read_sidecar(file)
        backend = sidecar.library if backend == AUTO else backend
        files = {file.name: read_engine(file, sidecar), sidecar_path(file).name: sidecar.to_json().encode()}
    elif engine and engine.runs == ENGINE_FILE:
        raise OptionError(
            f"--backend {backend}: found {file.name}, expected an .engine file with --cluster: build it for the hosts' "
            f"GPU first, with parotid-seg export --engine {backend}"
        )
    else:
        files = {file.name: read_model(file).content}
    return ModelForHosts(
        file.name,
        files,
        "onnxruntime" if backend == AUTO else backend,
        "cuda" if device == "cuda" or file.suffix == ENGINE_FILE else "cpu",
        output,
        model.allow_unverified,
        options.batch_size,
        options.tta,
    )
