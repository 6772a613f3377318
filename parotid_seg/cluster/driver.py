"""The program of the cluster's client: a process of its own, because Ray ends it when the cluster is lost."""

from __future__ import annotations

import logging
import pickle
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

import ray

from parotid_seg.cluster.driver_messages import Ended, ModelForHosts, Notice, Plan, Ready, RunRequest
from parotid_seg.cluster.host import ActorConfig, Host, load_on_host
from parotid_seg.errors import InputError, ParotidSegError
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, OutputFailure, failed
from parotid_seg.runtime.pipeline.protocol.worker_stdio import ends, send
from parotid_seg.system import available_cores
from parotid_seg.version import VERSION

REACHED_S = 5.0
"""Seconds for a connection to the cluster's head."""
PATIENCE_S = 10.0
"""Seconds without an answer after which the user is informed what the run waits for."""
TRIES = 4
"""Tries of a task whose actor dies, because the task itself may kill it."""
STORE_BYTES = 2**28
"""Bytes of a local cluster's object store, which holds the model and a few hundred bytes per case."""
AHEAD = 2
"""Tasks queued at an actor, the running one included."""
MOST_TASKS = 20_000
"""Most tasks: Ray Data takes more than a millisecond to create one, before the first begins."""
TASKS_PER_ACTOR = 4
"""Least tasks of an actor, if there are so many cases, so that all actors end at about the same time."""


def main() -> None:
    """Serve one run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # runs `ray.shutdown` in any case
    requests, answers = ends(parent_gone=signal.SIGTERM)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    plan: Plan = pickle.load(requests)
    try:
        _connect(plan)
        ready = _survey(plan, answers)
        send(ready, answers)
        request: RunRequest = pickle.load(requests)
        for answer in _answers(plan, ready, request):
            send(answer, answers)
        send(Ended(), answers)
    except ParotidSegError as error:
        send(OutputFailure(str(error)), answers)
    except (EOFError, BrokenPipeError):
        pass  # the command has ended
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ray.shutdown()


def _connect(plan: Plan) -> None:
    """Start a local cluster, or join one.

    Raises:
        InputError: if it cannot be reached from here.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if plan.address == "local":
        ray.init(
            address="local",
            num_cpus=available_cores(),
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=plan.scratch,
            **quiet,
        )
        return
    if plan.address != "auto":
        host, _, port = plan.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), REACHED_S).close()
        except OSError as error:
            raise InputError(
                f"--cluster {plan.address}: cannot be reached ({error}), expected the address of a Ray head"
            ) from error
    try:
        ray.init(address=plan.address, **quiet)
    except Exception as error:  # Ray raises many different types here
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"--cluster {plan.address}: no cluster that this machine is part of ({reason}); join it with: "
            "ray start --address HOST:PORT; if it has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error


def _survey(plan: Plan, answers: IO[bytes]) -> Ready:
    """Check that there is room and that every host has this package version; load the model on one host."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room = sum(_actors_on(node["Resources"], plan) for node in nodes)
    if not room:
        largest = max(int(node["Resources"].get("CPU", 0)) for node in nodes)
        gpus = max(node["Resources"].get("GPU", 0.0) for node in nodes)
        raise InputError(
            f"--cluster {plan.address}: no host has {plan.cpus} CPUs and {plan.gpus:g} GPUs for a worker, the largest "
            f"has {largest} and {gpus:g}; see --worker-cpus and --worker-gpus"
        )
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    versions = [
        ray.remote(_version).options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote() for there in on
    ]
    for node, version in zip(nodes, versions, strict=True):
        host = node["NodeManagerAddress"]
        host_version = _got(version, f"an answer of host {host}", answers)
        if host_version != VERSION:
            raise InputError(
                f"host {host}: found parotid-seg {host_version}, expected {VERSION}, as the command itself"
            )
    loading = ray.remote(_described).options(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=TRIES)
    ready: Ready | OutputFailure = _got(
        loading.remote(plan.model, plan.cpus), f"a worker's room, {plan.cpus} free CPUs", answers
    )
    if isinstance(ready, OutputFailure):
        raise InputError(ready.message)
    return replace(ready, hosts=len(nodes), actors=min(room, plan.workers or room))


def _actors_on(resources: dict[str, float], plan: Plan) -> int:
    by_cpu = resources.get("CPU", 0.0) // plan.cpus
    return int(min(by_cpu, resources.get("GPU", 0.0) // plan.gpus) if plan.gpus else by_cpu)


def _got(reference: Any, expected: str, answers: IO[bytes]) -> Any:
    """A task's result; if it takes long, the user is informed what the run waits for."""
    if not ray.wait([reference], timeout=PATIENCE_S)[0]:
        send(Notice(f"waiting for {expected}"), answers)
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise InputError(f"no answer from the cluster, expected {expected} ({last})") from error


def _version() -> str:
    """On a host."""
    return VERSION


def _described(model: ModelForHosts, cpus: int) -> Ready | OutputFailure:
    """On a host: load the model once, and describe it."""
    try:
        backend = load_on_host(model, cpus)
    except ParotidSegError as error:
        return OutputFailure(str(error))
    size = model.batch_size or backend.batch_size
    backend.close()
    return Ready(backend.contract, backend.model_sha256, backend.ran, size, 0, 0, ray.__version__)


def _answers(plan: Plan, ready: Ready, request: RunRequest) -> Iterator[CaseResult | OutputFailure]:
    """The result of every case. Cases that were lost with their actors are tried once more, each in its own task."""
    order = ActorConfig(plan.model, replace(request, jobs=()), plan.cpus, ready.ran)
    reference = ray.put(pickle.dumps(order))
    remaining = {job.case.name: job for job in request.jobs}
    for size in (scans_per_task(len(remaining), plan.cpus, ready.actors), 1):
        if not remaining:
            return
        for answer in _streamed(list(remaining.values()), size, reference, plan, ready):
            if isinstance(answer, CaseResult):
                del remaining[answer.entry.case]
            yield answer
            if isinstance(answer, OutputFailure):
                return
    for job in remaining.values():
        reason = f"failed: its worker died {TRIES} times, and {TRIES} times again"
        yield CaseResult("failed", failed(job.case, reason))


def scans_per_task(scans: int, cpus: int, actors: int) -> int:
    """Scans per task: enough for an actor's processes to overlap, and few enough to spread them evenly and to lose few
    with an actor. For very many scans, so many that there are at most `MOST_TASKS` tasks."""
    enough = AHEAD * cpus
    spread = -(-scans // (TASKS_PER_ACTOR * actors))
    return max(1, min(enough, spread), -(-scans // MOST_TASKS))


def _streamed(
    jobs: list[CaseRequest], size: int, order: Any, plan: Plan, ready: Ready
) -> Iterator[CaseResult | OutputFailure]:
    """The actors' results, with so many cases per task; no results for tasks that failed too often."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = [{"jobs": pickle.dumps(jobs[begin : begin + size])} for begin in range(0, len(jobs), size)]
    actors = min(ready.actors, len(rows))
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=min(plan.workers or len(rows), len(rows)),
        initial_size=actors,
        max_tasks_in_flight_per_actor=AHEAD,
    )
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
        Host,
        fn_constructor_args=(order, VERSION),
        compute=pool,
        num_cpus=plan.cpus,
        num_gpus=plan.gpus or None,
        max_restarts=-1,
        max_task_retries=TRIES - 1,
    )
    for row in results.iter_rows():
        yield pickle.loads(row["answer"])
