"""ONNX files as bytes: contract, seal and graph hash, without the ONNX package.

A model file has a seal: an entry of its metadata with the SHA-256 of everything else in it, contract and graph
included. It detects any change: a damaged weight, another window, another operator set. It is a hash, not a signature:
anyone who changes a file on purpose can also write a new seal. Weights in other files ("external data") would be
outside the seal, and are refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import MissingModelError, ModelError, RecordError
from parotid_seg.files import exists
from parotid_seg.records import read_bytes
from parotid_seg.runtime.engines.protobuf import MOST_FIELDS, encoded, fields, messages, text
from parotid_seg.runtime.segmentation.features import FEATURES, SCAN_FEATURES, STRUCTURE_FEATURES

SEAL_KEY = "parotid_seg.seal"
"""Key of the metadata entry."""
MOST_BYTES = 2**31 - 1
"""Most bytes of a protocol buffer (protobuf.dev/programming-guides/proto-limits)."""
GRAPH, METADATA = 7, 14
"""Numbers of two fields of ONNX's ModelProto (onnx.proto); an entry of the metadata has key and value as 1 and 2."""
GRAPH_OUTPUT = 12
"""Field number of the outputs in ONNX's GraphProto; field 1 of an output is its name."""
EXTERNAL_DATA, DATA_LOCATION = 13, 14
"""Fields of ONNX's TensorProto; a location other than 0 is another file."""
PLACES_OF_TENSORS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""For each ONNX message the fields that lead to tensors, and their types: all places where a file can have weights."""
ZIP = b"PK\x03\x04"
"""First bytes of ZIP archives, and so of checkpoints."""

_CHECKED: dict[str, Contract] = {}
"""Contracts of the files that passed all checks, by the SHA-256 of their bytes: a run reads its model several times."""


class ModelFile(NamedTuple):
    """A model file's bytes, its contract, and the SHA-256 of its bytes in hexadecimal."""

    content: bytes
    contract: Contract
    sha256: str


def read_model(path: Path) -> ModelFile:
    """Read a model file, after a check that it is unchanged since its export.

    Raises:
        MissingModelError: if there is no such file.
        ModelError: if it is not an ONNX model, without a contract, of another contract version, changed, or if
            its weights lie in other files.
    """
    if not exists(path):
        raise MissingModelError("no such file, expected a model file (.onnx)", path=path)
    try:
        content = read_bytes(path, MOST_BYTES)
    except RecordError as error:
        kind = ModelError if path.is_file() else MissingModelError
        raise kind(f"no usable model file: {error.reason}", path=path) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 not in _CHECKED:
        _CHECKED[sha256] = _checked_contract(content, path)
    return ModelFile(content, _CHECKED[sha256], sha256)


def _checked_contract(content: bytes, path: Path) -> Contract:
    """The contract in a model file's bytes; see `read_model`."""
    try:
        texts, graph_sha256, external = metadata(content), graph_hash(content), has_external_data(content)
    except ValueError as error:
        raise ModelError(_no_model(content), path=path) from error
    if external:
        raise ModelError("its weights lie in another file (external data), expected all within the model", path=path)
    if METADATA_KEY not in texts:
        raise ModelError("an ONNX model, but without parotid-seg's contract in its metadata", path=path)
    contract = Contract.from_json(texts[METADATA_KEY], where=str(path))
    _check_features(contract, path)
    if graph_sha256 != contract.graph_sha256:
        raise ModelError(
            f"found a graph of SHA-256 {graph_sha256[:12]}..., expected {contract.graph_sha256[:12]}... as exported; "
            "the file was changed or damaged",
            path=path,
        )
    if texts.get(SEAL_KEY) != seal_of(content):
        raise ModelError(
            "not as it was exported: its seal, a hash over contract and graph, does not match; the file was changed or "
            "damaged",
            path=path,
        )
    return contract


def _check_features(contract: Contract, path: Path) -> None:
    """Refuse a contract that names features that are not computed."""
    limits = contract.operating_range
    for place, names, known in (
        ("calibration", [feature.name for each in contract.calibrations for feature in each.features], FEATURES),
        ("operating range of scans", [each.name for each in limits.scan] if limits else [], SCAN_FEATURES),
        ("operating range", [each.name for each in limits.structures] if limits else [], STRUCTURE_FEATURES),
    ):
        for name in names:
            if name not in known:
                raise ModelError(
                    f"its {place}: found the feature {name!r}, expected one of: {', '.join(known)}", path=path
                )


def sealed(content: bytes) -> bytes:
    """A model file's bytes with a new seal, which replaces an existing one.

    Args:
        content: of an ONNX file, its contract included.

    Raises:
        ValueError: if it is not an ONNX file.
    """
    entry = encoded(1, SEAL_KEY.encode()) + encoded(2, seal_of(content).encode())
    return _without(content, SEAL_KEY) + encoded(METADATA, entry)


def with_new_contract(content: bytes, contract: Contract) -> bytes:
    """A model file's bytes with another contract and a new seal; the graph's bytes stay as they are.

    Args:
        content: of a model file.
        contract: with the hash of the same graph.

    Raises:
        ValueError: if it is not an ONNX file, or the contract is that of another graph.
    """
    if graph_hash(content) != contract.graph_sha256:
        raise ValueError("a contract of another graph")
    entry = encoded(1, METADATA_KEY.encode()) + encoded(2, contract.to_json().encode())
    return sealed(_without(content, METADATA_KEY) + encoded(METADATA, entry))


def seal_of(content: bytes) -> str:
    """SHA-256 of an ONNX file's bytes without the seal itself.

    Raises:
        ValueError: if it is not an ONNX file.
    """
    return hashlib.sha256(_without(content, SEAL_KEY)).hexdigest()


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of an ONNX file's bytes.

    Raises:
        ValueError: if it is not an ONNX file, or a name occurs twice.
    """
    entries = [(text(entry, 1), text(entry, 2)) for entry in messages(content, METADATA)]
    texts = dict(entries)
    if len(texts) < len(entries):
        raise ValueError("metadata of the same name")
    return texts


def output_names(path: Path) -> tuple[str, ...]:
    """Names of a model's outputs.

    Raises:
        ModelError: as `read_model`.
    """
    content = read_model(path).content
    try:
        return tuple(text(output, 1) for output in messages(_graph(content), GRAPH_OUTPUT))
    except ValueError as error:
        raise ModelError("not an ONNX model", path=path) from error


def _no_model(content: bytes) -> str:
    """Why bytes are not a model file."""
    if content.startswith(ZIP):
        return "a training run's checkpoint or another ZIP archive; parotid-seg export makes a model of a checkpoint"
    return "not an ONNX model, expected a file made by parotid-seg export"


def graph_hash(content: bytes) -> str:
    """SHA-256 of the graph in an ONNX file's bytes.

    Raises:
        ValueError: if there is no graph.
    """
    return hashlib.sha256(_graph(content)).hexdigest()


def has_external_data(content: bytes) -> bool:
    """Whether any tensor of an ONNX file, including subgraphs and functions, lies in another file.

    Raises:
        ValueError: if it is not an ONNX file.
    """
    waiting, fields_read = [("model", memoryview(content))], 0
    while waiting:
        kind, message = waiting.pop()
        places = PLACES_OF_TENSORS[kind]
        for each in fields(message):
            fields_read += 1
            if fields_read > MOST_FIELDS:
                raise ValueError("more fields than any model has")
            if kind == "tensor":
                if each.number == EXTERNAL_DATA or (each.number == DATA_LOCATION and each.value != 0):
                    return True
            elif each.number in places and isinstance(each.value, memoryview):
                waiting.append((places[each.number], each.value))
    return False


def _graph(content: bytes) -> memoryview:
    graphs = messages(content, GRAPH)
    if len(graphs) != 1:
        raise ValueError("no graph")
    return graphs[0]


def _without(content: bytes, key: str) -> bytes:
    """An ONNX file's bytes without the metadata entries of a key."""
    parts, at = [], 0
    for each in fields(content):
        if each.number == METADATA and isinstance(each.value, memoryview) and text(each.value, 1) == key:
            parts.append(content[at : each.begin])
            at = each.end
    return b"".join((*parts, content[at:]))
