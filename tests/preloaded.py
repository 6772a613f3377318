"""What the server of `tests.forked` has imported: all that trainings, exports and benchmarks take long to import."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot
import onnx
import onnxruntime
import onnxscript
import timm
import torch
import torch._dynamo
import torch.distributed.run

import parotid_seg.cli
import parotid_seg.export.export
import parotid_seg.runtime.infer
import parotid_seg.train.stages

torch.set_num_threads(1)
