"""ONNX files as bytes: the contract in their metadata, and the hash of their graph, without the ONNX package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import ModelError
from parotid_seg.files import read_input

GRAPH, METADATA = 7, 14
"""Numbers of two fields of ONNX's ModelProto (onnx.proto); an entry of the metadata has key and value as 1 and 2."""
GRAPH_OUTPUT = 12
"""Of its GraphProto; its name is 1."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protocol buffers."""


def read_model(path: Path) -> tuple[bytes, Contract]:
    """A model file's bytes and its contract, after a check that nobody has changed the graph since the export.

    Raises:
        ModelError: if it is missing, no ONNX model, without a contract, of another contract version, or changed.
    """
    try:
        content = read_input(path)
    except OSError as error:
        raise ModelError(f"the model file cannot be read ({error.strerror})", path=path) from error
    try:
        entries = [dict(_fields(value)) for number, value in _fields(content) if number == METADATA]
        texts = {entry[1].decode(): entry.get(2, b"").decode() for entry in entries}
        found = graph_hash(content)
    except (IndexError, KeyError, ValueError) as error:
        raise ModelError("not an ONNX model", path=path) from error
    if METADATA_KEY not in texts:
        raise ModelError("an ONNX model, but without parotid-seg's contract in its metadata", path=path)
    contract = Contract.from_json(texts[METADATA_KEY], where=str(path))
    if found != contract.graph_sha256:
        raise ModelError(
            f"found a graph of SHA-256 {found[:12]}..., expected {contract.graph_sha256[:12]}... as exported; "
            "the file was changed or damaged",
            path=path,
        )
    return content, contract


def output_names(path: Path) -> tuple[str, ...]:
    """Names of a model's outputs.

    Raises:
        ModelError: as `read_model`.
    """
    content, _ = read_model(path)
    graph = next(value for number, value in _fields(content) if number == GRAPH)
    outputs = (dict(_fields(value)) for number, value in _fields(graph) if number == GRAPH_OUTPUT)
    return tuple(output[1].decode() for output in outputs)


def graph_hash(content: bytes) -> str:
    """SHA-256 of the graph in an ONNX file's bytes.

    Raises:
        ValueError: if there is none.
    """
    graphs = [value for number, value in _fields(content) if number == GRAPH]
    if len(graphs) != 1:
        raise ValueError("no graph")
    return hashlib.sha256(graphs[0]).hexdigest()


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of the length-delimited fields of a protocol buffer message; others are skipped."""
    view, at = memoryview(message), 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == BYTES:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("cut off")
            yield number, bytes(view[at : at + size])
            at += size
        elif wire == VARINT:
            _, at = _varint(message, at)
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
        else:
            raise ValueError("not a protocol buffer")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not a protocol buffer")
