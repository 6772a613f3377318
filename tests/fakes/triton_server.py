"""A stand-in for Triton Inference Server: its gRPC protocol, in tritonclient's own messages, over a model repository.

It runs the repository's ONNX files in onnxruntime. What it says of errors is what Triton says in the same case.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would log every end of a server

import grpc
import numpy as np
import onnxruntime
from tritonclient.grpc import service_pb2, service_pb2_grpc

from parotid_seg.export.triton.model_config import from_text
from parotid_seg.runtime.engines.onnxruntime.cpu import session_options

TYPES = {"FP16": np.float16, "FP32": np.float32}
DIED = 9


@cache
def session_of(file: Path) -> onnxruntime.InferenceSession:
    """A model file, loaded once for all servers."""
    return onnxruntime.InferenceSession(file, session_options(), providers=["CPUExecutionProvider"])


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server, from `with` to the end of its block.

    Args:
        repository: folder of entries as `parotid-seg export --triton` writes them.
        delay_s: what every chunk takes longer.
        dies_after: chunks that are answered before the whole process ends, as if killed.
        stops: whether it shuts down at the first chunk.
        largest: most bytes of a request; None is Triton's own limit.
        version: of the server.
        edit: changes an answer.
    """

    def __init__(
        self,
        repository: Path,
        *,
        delay_s: float = 0.0,
        dies_after: int | None = None,
        stops: bool = False,
        largest: int | None = None,
        version: str = "2.51.0",
        edit: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self.delay_s, self.version, self.edit = delay_s, version, edit
        self.dies_after, self.stops = dies_after, stops
        self.configs = {
            path.parent.name: from_text(path.read_text(), where="") for path in repository.glob("*/*.pbtxt")
        }
        self.sessions = {
            name: session_of(repository / name / "1" / config.default_model_filename)
            for name, config in self.configs.items()
        }
        self.versions = {name: ["1"] for name in self.configs}
        self.unready: set[str] = set()
        self.answered = self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._server = grpc.server(
            ThreadPoolExecutor(8),
            options=[("grpc.max_receive_message_length", largest or 2**31 - 1), ("grpc.max_send_message_length", -1)],
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> StandIn:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; what is being computed gets no answer."""
        self._server.stop(None).wait()

    def wait(self) -> None:
        """Serve until the process ends."""
        self._server.wait_for_termination()

    def ServerMetadata(self, request: object, context: object) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)

    def ModelReady(self, request: Any, context: object) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self.configs and request.name not in self.unready)

    def RepositoryIndex(self, request: object, context: object) -> Any:  # noqa: N802
        response = service_pb2.RepositoryIndexResponse()
        for name in self.configs:
            response.models.add(name=name, version="1", state="LOADING" if name in self.unready else "READY")
        return response

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = self._config(request.name, context)
        return service_pb2.ModelMetadataResponse(
            name=config.name, versions=self.versions[request.name], platform=config.platform
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelConfigResponse(config=self._config(request.name, context))

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = self._config(request.model_name, context)
        if request.model_version not in ("", *self.versions[request.model_name]):
            context.abort(grpc.StatusCode.UNAVAILABLE, f"version {request.model_version} is not at ready state")
        arrays = {}
        for each, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            arrays[each.name] = np.frombuffer(raw, TYPES[each.datatype]).reshape(tuple(each.shape))
            self._check(config, each, context)
        with self._lock:
            if self.answered == self.dies_after:
                os._exit(DIED)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        if self.stops:
            threading.Thread(target=self.stop).start()
            time.sleep(0.5)
        time.sleep(self.delay_s)
        labels = self.sessions[request.model_name].run(["labels"], arrays)[0]
        with self._lock:
            self.answered += 1
            self.at_once -= 1
        response = service_pb2.ModelInferResponse(model_name=config.name, model_version="1", id=request.id)
        response.outputs.add(name="labels", datatype="UINT8", shape=labels.shape)
        response.raw_output_contents.append(labels.tobytes())
        self.edit(response)
        return response

    def _config(self, name: str, context: Any) -> Any:
        if name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        return self.configs[name]

    @staticmethod
    def _check(config: Any, tensor: Any, context: Any) -> None:
        dims = next(tuple(each.dims) for each in config.input if each.name == tensor.name)
        dims = (-1, *dims) if config.max_batch_size else dims
        shape = tuple(tensor.shape)
        if len(shape) != len(dims) or any(dim not in (-1, size) for dim, size in zip(dims, shape, strict=True)):
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"unexpected shape for input '{tensor.name}' for model '{config.name}'. "
                f"Expected {list(dims)}, got {list(shape)}",
            )


if __name__ == "__main__":
    with StandIn(Path(sys.argv[1]), dies_after=int(sys.argv[2])) as server:
        print(server.address, flush=True)  # noqa: T201
        server.wait()
