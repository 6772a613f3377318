"""A Ray cluster as the site of a run, seen from the command's process."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from parotid_seg.cluster.messages import Ended, Model, Plan, Ready, RunRequest, Told
from parotid_seg.cluster.mirror import mirrored
from parotid_seg.cluster.urls import find_anywhere, url_of
from parotid_seg.errors import InputError, OptionError, OutputError, ParotidSegError
from parotid_seg.runtime.engines.engine_file import read_engine, read_sidecar, sidecar_path
from parotid_seg.runtime.engines.load import BACKENDS
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES
from parotid_seg.runtime.pipeline.journal import RESUMES
from parotid_seg.runtime.pipeline.messages import CaseRequest, CaseResult, OutputFailure, WorkerConfig
from parotid_seg.runtime.pipeline.run import InferOptions, Outcome, Summary, infer_at
from parotid_seg.runtime.pipeline.worker_stdio import cause, command_of, send

ADDRESS = re.compile(r"local|auto|[^/:\s]+:\d{1,5}")
RAY_LOG = re.compile(r"^\[[^]]*\] \S+:\d+: ")
"""What Ray writes in front of a message: time, level, process and place."""
NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Ray would tell its makers of every cluster that is started."""
LEAVES_S = 15.0
"""For the client to end what it started on the hosts."""


@dataclass(frozen=True)
class ClusterOptions:
    """What is taken of a cluster.

    Attributes:
        address: "local": one of this machine's cores, for this run; "auto": the one that this machine is part of;
            HOST:PORT of its head.
        workers: most actors, each with the model; None as many as there is room for.
        cpus: cores of each.
        gpus: GPUs of each, or a share of one.
    """

    address: str
    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not ADDRESS.fullmatch(self.address):
            raise OptionError(f"--cluster: found {self.address!r}, expected local, auto or HOST:PORT")
        if self.cpus < 1:
            raise OptionError(f"--worker-cpus: found {self.cpus}, expected at least 1")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise OptionError(f"--worker-gpus: found {self.gpus:g}, expected 0 to 1, or a whole number")


def _local_settings() -> dict[str, str]:
    """Of a cluster of one's own: nobody else may use it, and a head that is gone will not come back."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    }


class RayExecutor:
    """A `Site`: a process that is the cluster's client, and through it the actors on the hosts.

    Args:
        cluster: see `ClusterOptions`.
        model: see `Model`.
        out: URL of the results; empty if they go to a folder.
        say: told what is waited for, and what there is.

    Raises:
        ParotidSegError: if Ray is missing, the cluster cannot be reached, has no room, or cannot load the model.
    """

    def __init__(self, cluster: ClusterOptions, model: Model, out: str, say: Callable[[str], None]) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError("--cluster: the package ray is missing: pip install 'parotid-seg[ray]'")
        self._cluster, self._out, self._say = cluster, out, say
        self._scratch = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie below it
        self._log = Path(self._scratch, "client.log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command_of("parotid_seg.cluster.driver"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **NO_TELEMETRY, **(_local_settings() if cluster.address == "local" else {})},
            )
        try:
            self._send(Plan(cluster.address, self._scratch, cluster.workers, cluster.cpus, cluster.gpus, model))
            ready = self._received()
        except BaseException:
            self.close()
            raise
        assert isinstance(ready, Ready)
        self._ready = ready
        self.contract, self.model_sha256, self.ran = ready.contract, ready.model_sha256, ready.ran
        self.about: Mapping[str, Any] = {
            "cluster": {"address": cluster.address, "ray": ready.ray, "hosts": ready.hosts, "workers": ready.actors},
            "worker": {"cpus": cluster.cpus, "gpus": cluster.gpus},
        }

    def __str__(self) -> str:
        ready, each = self._ready, f"{self._cluster.cpus} CPU{'s' if self._cluster.cpus > 1 else ''}"
        gpus = f" and {self._cluster.gpus:g} GPU" if self._cluster.gpus else ""
        hosts = "1 host" if ready.hosts == 1 else f"{ready.hosts} hosts"
        workers = "1 worker" if ready.actors == 1 else f"{ready.actors} workers"
        return f"Ray {ready.ray}, {hosts}, {workers} of {each}{gpus}; {ready.ran}, batches of {ready.batch_size} slices"

    def do(self, work: WorkerConfig, jobs: Sequence[CaseRequest]) -> Iterator[CaseResult]:
        """Do the cases on the cluster.

        Raises:
            OutputError: if results cannot be written.
            ParotidSegError: if the cluster is lost.
        """
        token = work.out / f".partial-{uuid.uuid4().hex}-shared"
        token.touch(exist_ok=False)
        self._send(RunRequest(work, tuple(jobs), self._out, token.name))
        while not isinstance(said := self._received(), Ended):
            assert isinstance(said, CaseResult)
            yield said

    def close(self) -> None:
        """End the client, and with it what it started on the hosts."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVES_S)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # what the client said last, or how it ended, tells why
            send(message, self._process.stdin)

    def _received(self) -> Any:
        """The next message that is no `Told`.

        Raises:
            OutputError: if the client stopped.
            ParotidSegError: if it is gone.
        """
        assert self._process.stdout is not None
        while True:
            try:
                message = pickle.load(self._process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise ParotidSegError(f"--cluster {self._cluster.address}: lost: {self._why()}; {RESUMES}") from error
            if isinstance(message, OutputFailure):
                raise OutputError(message.message)
            if not isinstance(message, Told):
                return message
            self._say(message.text)

    def _why(self) -> str:
        """How the client ended, and its last word."""
        told = cause(self._process.wait())
        lines = self._log.read_text(errors="replace").splitlines()
        last = RAY_LOG.sub("", next((line for line in reversed(lines) if line.strip()), "")).strip()
        return f"{told} ({last.partition('. ')[0][:200]})" if last else told


def infer_on_cluster(
    scans: Sequence[Path],
    out: Path,
    model: Model,
    cluster: ClusterOptions,
    options: InferOptions,
    *,
    say: Callable[[str], None],
    progress: Callable[[Outcome], None],
) -> Summary:
    """As `infer`, on a cluster, and with URLs for scans and results.

    Raises:
        ParotidSegError: as `RayExecutor` and `infer_at`.
    """
    url = url_of(out)
    if not url:
        with closing(RayExecutor(cluster, model, "", say)) as site:
            return infer_at(site, scans, out.resolve(), options, find=find_anywhere, say=say, progress=progress)
    if options.report:
        say(f"no report.html: its pictures would have to come back from {url}")
        options = replace(options, report=False)
    with mirrored(url) as mirror, closing(RayExecutor(cluster, model, mirror.url, say)) as site:
        find = partial(find_anywhere, out=mirror.url)
        summary = infer_at(site, scans, mirror.folder, options, find=find, say=say, progress=progress)
        return replace(summary, out=out)


def model_for_hosts(
    file: Path, backend: str, device: str, options: InferOptions, output: str, unverified: bool
) -> Model:
    """A model file as it travels.

    Args:
        file: the .onnx or .engine file.
        backend: an engine's name; "auto" is onnxruntime, of an engine its own library.
        device: "auto" or "cpu" for the CPU, "cuda" for the GPU that a worker gets.
        options: batch size and flips.
        output: see `load_backend`.
        unverified: whether the model may be unverified.

    Raises:
        InputError: for a backend there is none of, a device that a host may not have, or an engine that would have to
            be built.
        ModelError: if the file cannot be read.
    """
    if backend not in BACKENDS:
        raise OptionError(f"--backend: found {backend!r}, expected one of: {', '.join(BACKENDS)}")
    if device not in ("auto", "cpu", "cuda"):
        raise OptionError(f"--device: found {device!r}, expected cpu or cuda: which GPU it is, the cluster decides")
    if file.suffix == ".engine":
        sidecar = read_sidecar(file)
        backend = sidecar.library if backend == "auto" else backend
        files = {file.name: read_engine(file, sidecar), sidecar_path(file).name: sidecar.to_json().encode()}
    elif backend in LIBRARIES:
        raise OptionError(
            f"--backend {backend}: found {file.name}, expected an .engine file with --cluster: build it for the hosts' "
            f"GPU first, with parotid-seg export --engine {backend}"
        )
    else:
        files = {file.name: read_model(file)[0]}
    return Model(
        file.name,
        files,
        "onnxruntime" if backend == "auto" else backend,
        "cuda" if device == "cuda" or file.suffix == ".engine" else "cpu",
        output,
        unverified,
        options.batch_size,
        options.flips,
    )
