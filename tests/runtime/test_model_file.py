"""Model files: the contract is read without the ONNX package, and a changed file is noticed."""

import hashlib
import json

import pytest

from parotid_seg.contract import METADATA_KEY
from parotid_seg.errors import ModelError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.load import load_backend
from parotid_seg.runtime.model_file import graph_hash, read_model


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    digits = []
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def model(contract: str | None, graph: bytes = b"graph") -> bytes:
    entry = b"" if contract is None else field(14, field(1, METADATA_KEY.encode()) + field(2, contract.encode()))
    return b"\x08\x0a" + field(2, b"producer") + field(7, graph) + entry


def test_the_packaged_model_is_as_it_was_exported():
    content, contract = read_model(DEFAULT_MODEL)
    assert contract.graph_sha256 == graph_hash(content)
    assert contract.labels == ("background", "parotid_left", "parotid_right")


def test_the_hash_is_that_of_the_graph_alone(tmp_path):
    text = read_model(DEFAULT_MODEL)[1].to_json()
    contract = {**json.loads(text), "graph_sha256": hashlib.sha256(b"graph").hexdigest()}
    path = tmp_path / "m.onnx"
    path.write_bytes(model(json.dumps(contract)))
    assert read_model(path)[1].graph_sha256 == contract["graph_sha256"]
    path.write_bytes(model(json.dumps(contract), b"grape"))
    with pytest.raises(ModelError, match="the file was changed or damaged"):
        read_model(path)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.9])
def test_a_flipped_bit_is_noticed(tmp_path, where):
    content = bytearray(DEFAULT_MODEL.read_bytes())
    content[int(where * len(content))] ^= 1
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx: (found a graph|not an ONNX model)"):
        load_backend(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 40, DEFAULT_MODEL.read_bytes()[:100_000], model(None)[:9]])
def test_what_is_no_model(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_model(tmp_path / "m.onnx")


def test_a_foreign_model(tmp_path):
    (tmp_path / "m.onnx").write_bytes(model(None))
    with pytest.raises(ModelError, match="without parotid-seg's contract"):
        read_model(tmp_path / "m.onnx")
