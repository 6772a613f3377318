"""Mutated model files: read, or refused in one line, before and after their seal is made to fit."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from parotid_seg.contract import METADATA_KEY
from parotid_seg.errors import ModelError
from parotid_seg.runtime.engines.model_file import GRAPH, METADATA, output_names, read_model, sealed
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.protobuf import MOST_FIELDS, encoded, fields, messages
from tests.export.small_model import CONTRACT, write_small_model
from tests.fuzz.mutate import feed

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_small_model(tmp_path / "m.onnx")


def test_changed_files(model: Path, inputs: Callable[[int], int]) -> None:
    seed = model.read_bytes()

    def read(content: bytes) -> None:
        model.write_bytes(content)
        read_model(model)
        output_names(model)

    read(seed)
    tally = feed(read, [seed], inputs(1000))
    assert tally.outcomes["read"] <= tally.outcomes["ModelError"] // 100, "only what is no change is read"


def test_graphs_that_are_sealed_after_the_change(model: Path, inputs: Callable[[int], int]) -> None:
    """As an attacker makes them: onnxruntime sees whatever the seal and the contract do not forbid."""
    content = model.read_bytes()
    (graph,) = messages(content, GRAPH)
    rest = b"".join(content[each.begin : each.end] for each in fields(content) if each.number not in (GRAPH, METADATA))

    def read(changed: bytes) -> None:
        hashed = hashlib.sha256(changed).hexdigest()
        text = dataclasses.replace(CONTRACT, graph_sha256=hashed).to_json()
        entry = encoded(METADATA, encoded(1, METADATA_KEY.encode()) + encoded(2, text.encode()))
        model.write_bytes(sealed(rest + encoded(GRAPH, changed) + entry))
        OnnxRuntimeBackend(model, threads=1).close()

    read(bytes(graph))
    feed(read, [bytes(graph)], inputs(200))


@pytest.mark.parametrize("field", [b"\x08\x00", b"\x0a\x00", b"\x72\x00"], ids=["numbers", "texts", "metadata"])
def test_a_file_of_fields_without_end_is_refused_soon(model: Path, field: bytes) -> None:
    model.write_bytes(field * (MOST_FIELDS + 1))
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_model(model)
