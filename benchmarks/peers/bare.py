"""The packaged model in an engine's own Python API: nothing but the engine, on chunks that lie ready in memory.

    python benchmarks/peers/bare.py ENGINE MODEL SCAN...       ENGINE: onnxruntime or openvino

Settings are the engine's defaults. Reading, resampling matrices, clean-up and writing are not counted; it prints the
seconds as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
from runtime import in_memory

from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.scan.chunks import Inputs

Run = Callable[[Inputs], object]


def onnxruntime_engine(model: Path) -> tuple[Run, str]:
    """An engine loaded, and the type it computes in."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["labels"], dict(inputs)), "f32"


def openvino_engine(model: Path) -> tuple[Run, str]:
    """An engine loaded, and the type it computes in."""
    import openvino

    compiled = openvino.Core().compile_model(str(model), "CPU")
    kind = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return lambda inputs: compiled(dict(inputs))["labels"], kind


ENGINES = {"onnxruntime": onnxruntime_engine, "openvino": openvino_engine}


def main() -> None:
    """Load, run once over all chunks, print."""
    engine, model, *scans = sys.argv[1:]
    chunks = in_memory(load_backend(Path(model), "onnxruntime"), [Path(scan) for scan in scans])
    started = time.perf_counter()
    run, precision = ENGINES[engine](Path(model))
    loaded = time.perf_counter()
    for chunk in chunks:
        run(chunk)
    seconds = {"load_s": loaded - started, "engine_s": time.perf_counter() - loaded}
    looks = sum(len(chunk["neighbours"]) for chunk in chunks)
    print(json.dumps({**seconds, "precision": precision, "windows_a_scan": looks / len(scans)}))


if __name__ == "__main__":
    main()
