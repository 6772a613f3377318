"""Mutated model files: read, or refused in one line, before and after their seal is made to fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from parotid_seg.errors import ModelError
from parotid_seg.runtime.model_file import output_names, read_model, sealed
from parotid_seg.runtime.ort import OnnxRuntimeBackend
from parotid_seg.runtime.protobuf import MOST_FIELDS
from tests.export.small_model import write_small_model
from tests.fuzz.mutate import feed


@pytest.fixture
def model(tmp_path) -> Path:
    return write_small_model(tmp_path / "m.onnx")


def test_changed_files(model, inputs):
    seed = model.read_bytes()

    def read(content: bytes) -> None:
        model.write_bytes(content)
        read_model(model)
        output_names(model)

    read(seed)
    tally = feed(read, [seed], inputs(1000))
    assert tally.outcomes["read"] <= tally.outcomes["ModelError"] // 100, "only what is no change is read"


def test_files_that_are_sealed_after_the_change(model, inputs):
    """As an attacker makes them: onnxruntime sees whatever the seal and the contract do not forbid."""
    from parotid_seg.runtime.model_file import METADATA_KEY, graph_hash, metadata
    from parotid_seg.runtime.protobuf import encoded, fields

    seed = model.read_bytes()

    def resealed(content: bytes) -> bytes:
        try:
            text = metadata(content)[METADATA_KEY]
            old = metadata(seed)[METADATA_KEY].partition('"graph_sha256": "')[2][:64]
            entry = encoded(1, METADATA_KEY.encode()) + encoded(2, text.replace(old, graph_hash(content)).encode())
            kept = b"".join(content[each.begin : each.end] for each in fields(content) if each.number != 14)
            return sealed(kept + encoded(14, entry))
        except (KeyError, ValueError):
            return content

    def read(content: bytes) -> None:
        model.write_bytes(resealed(content))
        OnnxRuntimeBackend(model, threads=1).close()

    read(seed)
    feed(read, [seed], inputs(150))


@pytest.mark.parametrize("field", [b"\x08\x00", b"\x0a\x00", b"\x72\x00"], ids=["numbers", "texts", "metadata"])
def test_a_file_of_fields_without_end_is_refused_soon(model, field):
    model.write_bytes(field * (MOST_FIELDS + 1))
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_model(model)
