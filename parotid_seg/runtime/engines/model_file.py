"""ONNX files as bytes: contract, seal and graph hash, without the ONNX package.

A model file is sealed: an entry of its metadata is the SHA-256 of everything else in it, contract and graph included.
So any change is found: a damaged weight, another window, another operator set. It is a hash and no signature: whoever
changes a file on purpose can seal it anew. Weights that lie in other files ("external data") would be outside the
seal, and are refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from parotid_seg.contract import METADATA_KEY, UNSEALED_VERSION, Contract
from parotid_seg.errors import MissingModelError, ModelError, RecordError
from parotid_seg.records import read_bytes
from parotid_seg.runtime.engines.protobuf import MOST_FIELDS, encoded, fields, messages, text

SEAL_KEY = "parotid_seg.seal"
"""Of the metadata entry."""
MOST_BYTES = 2**31 - 1
"""Of a protocol buffer (protobuf.dev/programming-guides/proto-limits)."""
GRAPH, METADATA = 7, 14
"""Numbers of two fields of ONNX's ModelProto (onnx.proto); an entry of the metadata has key and value as 1 and 2."""
GRAPH_OUTPUT = 12
"""Of its GraphProto; its name is 1."""
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
"""By ONNX message the fields that lead to its tensors, and what they are: all places where a file can have weights."""
ZIP = b"PK\x03\x04"
"""How ZIP archives begin, and with them checkpoints."""


def read_model(path: Path) -> tuple[bytes, Contract]:
    """A model file's bytes and its contract, after a check that the file is as it was exported.

    Files of schema version 4 have no seal; of them only the graph is checked.

    Raises:
        MissingModelError: if there is no such file.
        ModelError: if it is no ONNX model, without a contract, of another contract version, changed, or if
            its weights lie in other files.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except RecordError as error:
        kind = ModelError if path.is_file() else MissingModelError
        raise kind(f"no usable model file: {error.reason}", path=path) from error
    try:
        texts, graph_sha256, external = metadata(content), graph_hash(content), has_external_data(content)
    except ValueError as error:
        raise ModelError(_no_model(content), path=path) from error
    if external:
        raise ModelError("its weights lie in another file (external data), expected all within the model", path=path)
    if METADATA_KEY not in texts:
        raise ModelError("an ONNX model, but without parotid-seg's contract in its metadata", path=path)
    contract = Contract.from_json(texts[METADATA_KEY], where=str(path))
    if graph_sha256 != contract.graph_sha256:
        raise ModelError(
            f"found a graph of SHA-256 {graph_sha256[:12]}..., expected {contract.graph_sha256[:12]}... as exported; "
            "the file was changed or damaged",
            path=path,
        )
    if (SEAL_KEY in texts or contract.schema_version != UNSEALED_VERSION) and texts.get(SEAL_KEY) != seal_of(content):
        raise ModelError(
            "not as it was exported: its seal, a hash over contract and graph, does not match; the file was changed or "
            "damaged",
            path=path,
        )
    return content, contract


def sealed(content: bytes) -> bytes:
    """A model file's bytes with their seal, in place of the one they may have.

    Args:
        content: of an ONNX file, its contract included.

    Raises:
        ValueError: if it is none.
    """
    entry = encoded(1, SEAL_KEY.encode()) + encoded(2, seal_of(content).encode())
    return _without_seal(content) + encoded(METADATA, entry)


def seal_of(content: bytes) -> str:
    """SHA-256 of an ONNX file's bytes without the seal itself.

    Raises:
        ValueError: if it is no ONNX file.
    """
    return hashlib.sha256(_without_seal(content)).hexdigest()


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of an ONNX file's bytes.

    Raises:
        ValueError: if it is no ONNX file, or names something twice.
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
    content, _ = read_model(path)
    try:
        return tuple(text(output, 1) for output in messages(_graph(content), GRAPH_OUTPUT))
    except ValueError as error:
        raise ModelError("not an ONNX model", path=path) from error


def _no_model(content: bytes) -> str:
    """Why bytes are no model file."""
    if content.startswith(ZIP):
        return "a training run's checkpoint or another ZIP archive; parotid-seg export makes a model of a checkpoint"
    return "not an ONNX model"


def graph_hash(content: bytes) -> str:
    """SHA-256 of the graph in an ONNX file's bytes.

    Raises:
        ValueError: if there is none.
    """
    return hashlib.sha256(_graph(content)).hexdigest()


def has_external_data(content: bytes) -> bool:
    """Whether a tensor anywhere in an ONNX file's bytes, in subgraphs and functions, too, lies in another file.

    Raises:
        ValueError: if it is no ONNX file.
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


def _without_seal(content: bytes) -> bytes:
    parts, at = [], 0
    for each in fields(content):
        if each.number == METADATA and isinstance(each.value, memoryview) and text(each.value, 1) == SEAL_KEY:
            parts.append(content[at : each.begin])
            at = each.end
    return b"".join((*parts, content[at:]))
