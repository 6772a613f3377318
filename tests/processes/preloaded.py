"""What the server of `tests.processes.forked` has imported: all that trainings and exports take long to import."""

import contextlib
import io
import logging
import sys
from importlib import import_module

sys.modules["triton"] = None  # type: ignore[assignment]  # it reports leaks if `gc.freeze` was called; needs a GPU

import torch

from parotid_seg.cli import app

logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it misses triton
torch.set_num_threads(1)
for name in (
    "contourpy", "matplotlib.backends.backend_agg", "matplotlib.figure", "onnx", "onnxruntime", "onnxscript",
    "rich.progress", "timm", "torch._dynamo", "torch.distributed.run", "torch.utils.serialization",
    "parotid_seg.export.verified_export", "parotid_seg.runtime.pipeline.run", "parotid_seg.train.exit_status",
    "parotid_seg.train.stages",
):  # fmt: skip
    import_module(name)
with contextlib.redirect_stdout(io.StringIO()):
    app(["version"], standalone_mode=False)  # typer imports more with its first command
