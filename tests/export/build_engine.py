"""Builds an engine of the packaged model: `build_engine.py OUT.engine`, with the extra [rtx] and without a compiler."""

import sys
from pathlib import Path

from parotid_seg.export.build_engine import build_engine
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.engine_file import ENGINE_BATCH, EngineOptions

build_engine(
    DEFAULT_MODEL,
    Path(sys.argv[1]),
    library="tensorrt-rtx",
    profile=ENGINE_BATCH,
    options=EngineOptions(),
    report=print,
)
