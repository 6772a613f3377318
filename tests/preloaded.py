"""What the server of `tests.forked` has imported: all that trainings, exports and benchmarks take long to import."""

from importlib import import_module

import matplotlib as mpl
import torch

mpl.use("Agg")
torch.set_num_threads(1)
for name in (
    "matplotlib.pyplot", "onnx", "onnxruntime", "onnxscript", "timm", "torch._dynamo", "torch.distributed.run",
    "parotid_seg.cli", "parotid_seg.export.export", "parotid_seg.runtime.pipeline.run", "parotid_seg.train.stages",
):  # fmt: skip
    import_module(name)
