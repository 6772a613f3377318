"""Segment scans as a MONAI user does, with random weights; runs in MONAI's environment.

    python monai_infer.py make NETWORK FOLDER                 writes the network, and network.json about it
    python monai_infer.py infer NETWORK FOLDER OUT SCAN...    masks by MONAI's transforms and sliding window

Transforms, data loader and sliding window as in MONAI's tutorials of segmentation. The grid is that of the packaged
model, 2.25 mm in plane and 3 mm between slices, and so is the window of intensities; scans are cropped to the patient.
The loader prepares the next scan in a process of its own while the network is at work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.networks.nets import SwinUNETR
from monai.transforms import (
    AsDiscreted,
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

SPACING_MM = (2.25, 2.25, 3.0)
WINDOW_HU = (-200, 300)
OVERLAP = 0.25
WINDOWS_AT_ONCE = 4
CLASSES = 3
TOWARDS_BACKGROUND = 10.0
"""Added to the background's score, so that masks are nearly empty as real ones are, and not noise."""

Predictor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A SwinUNETR and its window.

    Attributes:
        dimensions: 2 (slice by slice) or 3.
        feature_size: the smallest multiple of 12 whose parameters come near those of the packaged model.
        window: of the sliding window, voxels a side.
        onnx: whether onnxruntime runs it, as the sliding window's predictor.
    """

    dimensions: int
    feature_size: int
    window: int = 96
    onnx: bool = False

    def build(self) -> SwinUNETR:
        """With random weights, the same each time."""
        torch.manual_seed(0)
        net = SwinUNETR(1, CLASSES, feature_size=self.feature_size, spatial_dims=self.dimensions)
        with torch.no_grad():
            net.out.conv.conv.bias[0] += TOWARDS_BACKGROUND
        return net.eval()

    def example(self, windows: int = 1) -> Tensor:
        """An input."""
        return torch.zeros(windows, 1, *[self.window] * self.dimensions)

    def inferer(self) -> SlidingWindowInferer:
        """MONAI's sliding window, through slices for a 2-D network."""
        roi = (self.window,) * self.dimensions
        if self.dimensions == 3:
            return SlidingWindowInferer(roi, sw_batch_size=WINDOWS_AT_ONCE, overlap=OVERLAP)
        return SliceInferer(spatial_dim=2, roi_size=roi, sw_batch_size=WINDOWS_AT_ONCE, overlap=OVERLAP)


NETWORKS = {"3d": Network(3, 12), "2d": Network(2, 24), "2d-onnx": Network(2, 24, onnx=True)}


def make(network: Network, folder: Path) -> None:
    """Write its weights or its ONNX file, and parameters and multiply-adds of a window."""
    folder.mkdir(parents=True, exist_ok=True)
    net = network.build()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(network.example())
    if network.onnx:
        example, windows = network.example(WINDOWS_AT_ONCE), torch.export.Dim("windows")
        names: dict[str, Any] = {
            "input_names": ["image"],
            "output_names": ["scores"],
            "dynamic_shapes": {"x_in": {0: windows}},
        }
        torch.onnx.export(net, (example,), folder / "network.onnx", dynamo=True, **names)
    else:
        torch.save(net.state_dict(), folder / "network.pt")
    about = {
        "parameters": sum(each.numel() for each in net.parameters()),
        "window": list(network.example().shape[2:]),
        "multiply_adds_a_window": counter.get_total_flops() // 2,
    }
    (folder / "network.json").write_text(json.dumps(about) + "\n")


def load(network: Network, folder: Path) -> Predictor:
    """What the sliding window calls with a batch of windows."""
    if not network.onnx:
        net = network.build()
        net.load_state_dict(torch.load(folder / "network.pt", weights_only=True))
        predictor: Predictor = net
        return predictor
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    return lambda windows: torch.from_numpy(session.run(None, {"image": np.asarray(windows)})[0])


def reading() -> Compose:
    """From files to the network's grid."""
    low, high = WINDOW_HU
    return Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=SPACING_MM, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd("image", source_key="image", allow_smaller=True),
        ]
    )


def writing(read: Compose, out: Path) -> Compose:
    """From scores on the network's grid to masks in the scans' geometry."""
    saving = {"output_dir": out, "output_postfix": "", "separate_folder": False, "output_dtype": np.uint8}
    return Compose(
        [
            Invertd("scores", transform=read, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("scores", argmax=True),
            SaveImaged("scores", **saving, print_log=False),
        ]
    )


@torch.no_grad()
def infer(network: Network, folder: Path, out: Path, scans: list[str]) -> None:
    """Segment; it prints how many windows the network looked at."""
    looked = []
    predictor, inferer, read = load(network, folder), network.inferer(), reading()
    write = writing(read, out)

    def counted(windows: Tensor) -> Tensor:
        looked.append(len(windows))
        return predictor(windows)

    for batch in DataLoader(Dataset([{"image": scan} for scan in scans], read), batch_size=1, num_workers=1):
        batch["scores"] = inferer(batch["image"], counted)
        for each in decollate_batch(batch):
            write(each)
    print(json.dumps({"windows_a_scan": sum(looked) / len(scans)}))


def main() -> None:
    """Make or infer."""
    part, name, folder, *rest = sys.argv[1:]
    if part == "make":
        make(NETWORKS[name], Path(folder))
    else:
        infer(NETWORKS[name], Path(folder), Path(rest[0]), rest[1:])


if __name__ == "__main__":
    main()
