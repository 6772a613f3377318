"""A model folder for nnUNetv2_predict with nnU-Net's own network and random weights; runs in nnU-Net's environment.

    python nnunet_untrained.py 2d --dataset Dataset101_OpenKBP

For races of speed only. The last layer's bias favours the background, so that the masks are nearly empty, as real ones
are, and not noise, which would take longer to write.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.utils.flop_counter import FlopCounterMode

TOWARDS_BACKGROUND = 10.0


def describe(trainer: nnUNetTrainer) -> dict[str, object]:
    """Parameters, and multiply-adds of a patch."""
    patch = tuple(trainer.configuration_manager.patch_size)
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trainer.network(torch.zeros(1, trainer.num_input_channels, *patch))
    parameters = sum(each.numel() for each in trainer.network.parameters())
    return {"parameters": parameters, "window": list(patch), "multiply_adds_a_window": counter.get_total_flops() // 2}


def main() -> None:
    """Make it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", choices=("2d", "3d_fullres"))
    parser.add_argument("--dataset", required=True)
    arguments = parser.parse_args()
    source = Path(str(nnUNet_preprocessed), arguments.dataset)
    plans, dataset = (json.loads((source / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    torch.manual_seed(0)
    given = {**plans, "continue_training": False}
    trainer = nnUNetTrainer(given, arguments.configuration, 0, dataset, device=torch.device("cpu"))
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    with torch.no_grad():
        trainer.network.decoder.seg_layers[-1].bias[0] += TOWARDS_BACKGROUND
    folder = Path(trainer.output_folder)
    (folder.parent / "plans.json").write_text(json.dumps(plans))
    (folder.parent / "dataset.json").write_text(json.dumps(dataset))
    (folder.parent / "network.json").write_text(json.dumps(describe(trainer)) + "\n")
    trainer.save_checkpoint(str(folder / "partial.pth"))
    os.replace(folder / "partial.pth", folder / "checkpoint_final.pth")  # noqa: PTH105


if __name__ == "__main__":
    main()
