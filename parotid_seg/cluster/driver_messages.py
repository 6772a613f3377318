"""Messages between the command's process and the cluster's client, pickled, through pipes.

The client gets a `Plan`, may send messages for the user (`Notice`), and answers `Ready`. Then it gets a `RunRequest`,
answers with the result of every case, and ends with `Ended`. Instead of any answer there may be an `OutputFailure`.
"""

from __future__ import annotations

from dataclasses import dataclass

from parotid_seg.contract import Contract
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, WorkerConfig


@dataclass(frozen=True)
class ModelForHosts:
    """A model file as it is sent to the hosts, and how to run it there.

    Attributes:
        name: the file's name.
        files: contents by name: the file, and an engine's sidecar.
        backend: an engine's name, not "auto": every host must compute alike.
        device: "cpu" or "cuda".
        output, allow_unverified: see `load_backend`.
        batch_size: samples at once; None is what the engine is fastest with.
        tta: see `Batcher`.
    """

    name: str
    files: dict[str, bytes]
    backend: str
    device: str
    output: str
    allow_unverified: bool
    batch_size: int | None
    tta: bool


@dataclass(frozen=True)
class Plan:
    """A cluster and the resources to use.

    Attributes:
        address: "local", "auto" or HOST:PORT.
        scratch: of a local cluster, the folder for its own files.
        workers: most actors; None for as many as there is room for.
        cpus, gpus: reserved for each actor.
        model: see `ModelForHosts`.
    """

    address: str
    scratch: str
    workers: int | None
    cpus: int
    gpus: float
    model: ModelForHosts


@dataclass(frozen=True)
class Notice:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Ready:
    """The cluster is ready, and one host has loaded the model.

    Attributes:
        contract, model_sha256, ran: of the model, see `Backend`.
        batch_size: samples at once.
        hosts: how many there are now.
        actors: how many there is room for now.
        ray: version.
    """

    contract: Contract
    model_sha256: str
    ran: ExecutionInfo
    batch_size: int
    hosts: int
    actors: int
    ray: str


@dataclass(frozen=True)
class RunRequest:
    """Cases to run.

    Attributes:
        work: configuration of all cases; all hosts see its folder at the same path, unless there is a URL.
        jobs: the cases.
        out: URL for the results; empty if they go to the folder.
        token: file in the folder that a host must see.
    """

    work: WorkerConfig
    jobs: tuple[CaseRequest, ...]
    out: str
    token: str


@dataclass(frozen=True)
class Ended:
    """All cases have their result."""
