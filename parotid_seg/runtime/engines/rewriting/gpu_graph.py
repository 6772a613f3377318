"""Graphs of a model for GPUs, made from its file on first use and kept in the user's cache folder: in FP16, and fused.

An FP16 graph is kept only if its masks of the example scan are those of the file, both computed on the CPU. The masks
of every graph are compared on the GPU before it is chosen (`autotune.choose`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, ModelError
from parotid_seg.files import hash_file, scratch_folder, write_bytes
from parotid_seg.runtime.engines.autotune import cache_folder, is_private, make_private
from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark
from parotid_seg.runtime.engines.model_file import ModelFile, graph_hash, read_model, with_new_contract
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.tolerance import GATES
from parotid_seg.scan.volume import Mask
from parotid_seg.system import versions_of

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger(__name__)

FOLDER = "graphs"
RULES = 2
"""Rises with every change of the graphs that are made."""
PACKAGES = ("parotid-seg", "onnx", "onnxruntime", "onnxruntime-gpu")
"""Packages that make a graph and check it."""


@dataclass(frozen=True)
class GpuGraph:
    """A graph for a GPU that is made from a model file.

    Attributes:
        model: the file, in FP32 or in the same precision.
        precision: "fp32" or "fp16".
        fused: whether nodes are joined to operators of onnxruntime's CUDA provider (see `fusion`) and labels are packed
            (see `packing`).
    """

    model: Path
    precision: str
    fused: bool = False

    @property
    def path(self) -> Path:
        """Where it is kept: a file in the user's cache folder, whose name depends on all that makes it."""
        kind = f"{self.precision}.fused" if self.fused else self.precision
        facts = {"model": hash_file(self.model), "kind": kind, "rules": RULES, "versions": versions_of(PACKAGES)}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return cache_folder() / FOLDER / f"{digest[:32]}.{kind}.onnx"

    def made(self) -> Path:
        """Its file, with the model's contract; made if there is none.

        Raises:
            InputError: if it cannot be made here, or not be checked.
            ModelError: if its masks differ beyond the tolerance, or the model file is no usable model.
            OutputError: if it cannot be kept.
        """
        path = self.path
        if _is_usable(path):
            return path
        if importlib.util.find_spec("onnx") is None:
            raise InputError("onnx, which makes the graph, is not installed: pip install onnx")
        log.info("making a graph of %s for a GPU, once: %s", self.model, path.name)
        file = read_model(self.model)
        if not self.fused:
            made = _half(self.model, file)
        elif file.contract.precision == self.precision:
            made = _fused(file)
        else:
            made = _fused(read_model(GpuGraph(self.model, self.precision).made()))
        make_private(path.parent)
        write_bytes(made, path)
        make_private(path.parent, path)
        return path


def _is_usable(path: Path) -> bool:
    """Whether there is a graph that was made before, as it was made, and nobody else could have written it."""
    try:
        if not (is_private(path.parent) and is_private(path)):
            log.info("%s: not used: others may write to it; made anew", path)
            return False
        read_model(path)
    except OSError:
        return False
    except ModelError as error:
        log.info("not used, but made anew: %s", error)
        return False
    return True


def _half(model: Path, file: ModelFile) -> bytes:
    """The bytes of an FP16 model file with as little in FP32 as gives the same masks.

    Resampling always stays in FP32: its few products gain nothing, and each of its matrices would be cast.
    """
    import onnx

    from parotid_seg.runtime.engines.rewriting.precision import FALLBACKS, in_any, lower, with_whole_weights

    whole, trial = with_whole_weights(onnx.load_from_string(file.content)), EngineBenchmark(file.contract)
    expected = trial.example_mask(OnnxRuntimeBackend(model))
    if not expected.any():
        raise InputError("nothing is found in the example scan to check the FP16 graph on")
    failure = ""
    for fallbacks in (FALLBACKS[:count] for count in range(1, len(FALLBACKS) + 1)):
        try:
            lowered = lower(whole, "fp16", partial(in_any, fallbacks))
        except ModelError as error:
            failure = error.reason
            continue
        half_contract = dataclasses.replace(file.contract, precision="fp16", weights="fp16")
        apart = trial.difference(expected, _example_mask(lowered, half_contract, trial))
        if GATES["fp16"].admits(apart):
            checked = {"against": model.name, "with": "onnxruntime on the CPU", **dataclasses.asdict(apart)}
            return _file(lowered, half_contract, {**checked, "kept_in_fp32": [each.name for each in fallbacks]})
        failure = f"other masks of the example scan on the CPU: {apart}"
    raise ModelError(failure)


def _fused(file: ModelFile) -> bytes:
    """The bytes of a model file with the operators of `fusion` and packed labels. They are not compared here: the CPU
    lacks some of the operators."""
    import onnx

    from parotid_seg.runtime.engines.rewriting.fusion import fused
    from parotid_seg.runtime.engines.rewriting.packed_labels import packed
    from parotid_seg.runtime.engines.rewriting.precision import with_whole_weights

    contract = file.contract
    graph = packed(fused(with_whole_weights(onnx.load_from_string(file.content))), len(contract.labels))
    return _file(graph, dataclasses.replace(contract, weights=contract.precision), {})


def _example_mask(graph: ModelProto, contract: Contract, trial: EngineBenchmark) -> Mask:
    """The mask of the example scan by a graph on the CPU."""
    with scratch_folder() as folder:
        file = folder / "graph.onnx"
        write_bytes(_file(graph, contract, {}), file)
        return trial.example_mask(OnnxRuntimeBackend(file))


def _file(graph: ModelProto, contract: Contract, verification: dict[str, Any]) -> bytes:
    """A model file's bytes: a graph without metadata, with a contract."""
    del graph.metadata_props[:]
    content = graph.SerializeToString(deterministic=True)
    made = dataclasses.replace(contract, verification=verification, graph_sha256=graph_hash(content))
    return with_new_contract(content, made)
