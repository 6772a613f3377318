"""Engines and model files that compute nothing, for tests of which engine is taken."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from parotid_seg.contract import Contract
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.base import Backend, Done, ExecutionInfo
from parotid_seg.runtime.engines.model_file import graph_hash, read_model
from parotid_seg.scan.chunks import Inputs
from tests.runtime.engines.test_model_file import model as model_bytes

CONTRACT = read_model(DEFAULT_MODEL).contract


class Loaded(Backend):
    """Any engine, with how it was made."""

    def __init__(self, kind: str, file: Path, contract: Contract = CONTRACT, **how: Any) -> None:
        self.kind, self.file, self.contract, self.how = kind, file, contract, how
        self.ran = ExecutionInfo(kind, "cuda:0", contract.precision)

    def start(self, inputs: Inputs) -> Done:
        """One sample is computed where an engine is loaded on a GPU."""
        assert len(inputs["neighbours"]) == 1
        return Done(np.zeros((1, 1, 1), np.uint8))


def first_of(found: list[Candidate], *_: object) -> Backend:
    """A trial that the first wins."""
    return found[0].load()


def write_model(path: Path, graph: bytes = b"", **told: Any) -> Path:
    """A file with a contract, a hash and a seal that fit, but nothing to compute."""
    contract = dataclasses.replace(CONTRACT, graph_sha256=graph_hash(model_bytes(None, graph)), **told)
    path.write_bytes(model_bytes(contract.to_json(), graph))
    return path
