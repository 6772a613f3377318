"""Options of `export` that contradict each other are refused before anything is done."""

from pathlib import Path
from typing import Any

import pytest

from parotid_seg.errors import OptionError
from parotid_seg.export.export import serving_of
from parotid_seg.export.options import ExportOptions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"triton_device": "cpu"}, "expected --triton with it"),
        ({"triton_device": "tpu", "triton": Path("r")}, "--triton-device: found 'tpu', expected one of: cuda, cpu"),
        ({"triton_device": "cpu", "triton": Path("r"), "engine": "tensorrt"}, "an engine, which needs cuda"),
    ],
)
def test_triton_device(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ExportOptions(**options)


@pytest.mark.parametrize(("asked", "device"), [(None, "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_the_server_runs_it_where_it_was_asked_for(asked: str | None, device: str) -> None:
    serving = serving_of(Path("folder", "mine.onnx"), ExportOptions(triton=Path("r"), triton_device=asked))
    assert (serving.name, serving.device) == ("mine", device)
