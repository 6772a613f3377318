"""The paper's preset: published sizes; and a few steps of both stages, narrow and on small images, also resumed."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer

from parotid_seg.train.checkpoint import load_checkpoint
from parotid_seg.train.network import SwinUnet
from parotid_seg.train.settings import load_config, merge
from parotid_seg.train.stages import train

FEW_STEPS = {
    "init": "scratch",
    "grid": {"size": 64, "spacing_mm": 3.5},
    "network": {"embed_dim": 24},
    "contrast": {"hidden": 64, "epochs": 2, "images_per_epoch": 2, "batch_size": 2},
    "segment": {"epochs": 1, "images_per_epoch": 2, "batch_size": 2, "validate_every": 1},
}


def test_sizes_and_schedule_are_the_published_ones() -> None:
    paper = load_config("paper")
    assert (paper.grid.size, paper.network.embed_dim, paper.network.depths) == (224, 96, (2, 2, 2, 2))
    assert (paper.network.heads, paper.network.window, paper.network.drop_path) == ((3, 6, 12, 24), 7, 0.2)
    contrast = paper.contrast
    assert (contrast.epochs, contrast.warmup_epochs, contrast.batch_size, contrast.drop_path) == (300, 30, 80, 0.1)
    assert (contrast.temperature, contrast.momentum, contrast.hidden, contrast.features) == (1.0, 0.99, 4096, 256)
    assert contrast.learning_rate == pytest.approx(1e-3 * 80 / 256)
    assert (contrast.queue, contrast.weight_decay) == (0, 1e-6)
    segment = paper.segment
    assert (segment.epochs, segment.batch_size, segment.learning_rate) == (150, 24, 2e-4)
    assert (segment.weight_decay, segment.cross_entropy_share) == (0.05, 0.4)
    assert (paper.stages, paper.init) == (("contrast", "segment"), "imagenet")
    published = SwinTransformer(depths=(2, 2, 2, 2), num_classes=0)
    del published.norm
    unet = SwinUnet(paper.network, 224, 3, 3)
    assert {name: value.shape for name, value in unet.encoder.named_parameters()} == {
        name: value.shape for name, value in published.named_parameters()
    }
    with torch.no_grad():
        assert unet(torch.rand(1, 3, 224, 224)).shape == (1, 3, 224, 224)


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_runs_and_resumes(data: Path, tmp_path: Path) -> None:
    names = [path.name.removesuffix(".nii.gz") for path in sorted((data / "labelsTr").iterdir())]
    (data / "splits.json").write_text(json.dumps({"train": names[:2], "validation": names[-1:]}))
    run = tmp_path / "run"
    config = merge(load_config("paper"), FEW_STEPS, where="test")
    assert not train(config, data, run, device="cpu", labelled=1, max_minutes=1e-6)
    assert load_checkpoint(run / "contrast" / "last.pt").training["epochs"] == 1
    assert train(config, data, run, device="cpu", labelled=1, resume=True)
    records = [json.loads(line) for line in (run / "contrast" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    assert load_checkpoint(run / "best.pt").network().unet.encoder.embed_dim == 24
    account = json.loads((run / "transfer.json").read_text())
    assert any(name.startswith("decoder.2.blocks") for name in account["taken"]), "the encoder's stages, mirrored"
    assert dataclasses.asdict(load_checkpoint(run / "best.pt").config)["preset"] == "paper"
