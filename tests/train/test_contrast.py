"""The contrastive stages: matched places, resuming, a collapse named, and what the next stage gets."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from parotid_seg.errors import InputError
from parotid_seg.train.checkpoint import load_checkpoint
from parotid_seg.train.config import INITIAL, TrainConfig
from parotid_seg.train.contrast import ContrastTrainer, match
from parotid_seg.train.data.augment import Draws
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.parallel import join
from parotid_seg.train.settings import load_config, merge
from parotid_seg.train.stages import train
from tests.train.pictures import none_drawn

SHORT = {"epochs": 2, "images_per_epoch": 24, "batch_size": 8, "hidden": 32, "features": 16, "points": 8}


@pytest.fixture(scope="session")
def contrast_config(small_config: Path) -> TrainConfig:
    return merge(load_config("compact", small_config), {"contrast": SHORT, "dense": SHORT}, where="test")


def positions(shift_y: float, shift_x: float, mirror: bool = False, size: int = 20) -> torch.Tensor:
    axis = torch.arange(size).float()
    rows, columns = torch.meshgrid(axis + shift_y, (axis.flip(0) if mirror else axis) + shift_x, indexing="ij")
    return torch.stack([rows, columns])[None]


@pytest.mark.parametrize("mirror", [False, True])
def test_matched_places_show_the_same_point(mirror: bool) -> None:
    first, second = positions(0, 0), positions(6, -3, mirror)
    everywhere = torch.ones(1, 20, 20, dtype=torch.bool)
    wanted = everywhere.clone()
    wanted[:, :, :5] = False
    draws = Draws(torch.Generator().manual_seed(0))
    at_first, at_second, places_mm = match(first, wanted, second, everywhere, 10, draws)
    assert at_first.shape == at_second.shape == (1, 10, 2)
    for (row, column), (other_row, other_column), place in zip(at_first[0], at_second[0], places_mm[0], strict=True):
        torch.testing.assert_close(first[0, :, row, column], place)
        torch.testing.assert_close(second[0, :, other_row, other_column], place)
        assert column >= 5
    assert len({tuple(each) for each in at_first[0].tolist()}) == 10


def test_places_the_second_view_does_not_show_are_not_matched() -> None:
    first = second = positions(0, 0)
    shown = torch.zeros(1, 20, 20, dtype=torch.bool)
    shown[:, 8:] = True
    draws = Draws(torch.Generator().manual_seed(0))
    at_first, _, _ = match(first, torch.ones_like(shown), second, shown, 10, draws)
    assert (at_first[0, :, 0] >= 8).all()


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["contrast", "dense"])
@pytest.mark.slow
def test_resumed_is_as_if_never_stopped(balls: Path, contrast_config: TrainConfig, stage: str, tmp_path: Path) -> None:
    config = dataclasses.replace(contrast_config, stages=(stage,))
    cache = tmp_path / "cache"
    with none_drawn():
        train(config, balls, tmp_path / "whole", device="cpu", cache=cache)
        assert not train(config, balls, tmp_path / "cut", device="cpu", cache=cache, max_minutes=1e-6)
    assert train(config, balls, tmp_path / "cut", device="cpu", cache=cache, resume=True)
    whole, cut = records(tmp_path / "whole"), records(tmp_path / "cut")
    assert [each["epoch"] for each in cut] == [1, 2]
    for name in ("loss", "momentum", *(("spread", "matched") if stage == "contrast" else ("places_spread",))):
        assert [each[name] for each in whole] == [each[name] for each in cut], name
    weights = [load_checkpoint(tmp_path / run / "best.pt").weights for run in ("whole", "cut")]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    for picture in ("curves.png", "samples.png"):
        assert (tmp_path / "cut" / picture).stat().st_size > 5000


@pytest.mark.slow
def test_a_first_epoch_that_is_cut_leaves_nothing_and_says_so(
    balls: Path, contrast_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parotid_seg.train.time_limit.UNCUT_S", 0.0)
    said: list[str] = []
    config = dataclasses.replace(contrast_config, stages=("contrast",))
    assert not train(config, balls, tmp_path, device="cpu", max_minutes=1e-6, report=said.append)
    assert said[-1].startswith(
        "stopped after 0 of 2 epochs of the stage contrast: the time was over before its first step"
    )
    assert "; there is no best.pt, as no epoch is finished, so --resume" in said[-1]
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
def test_contrast_then_segment(balls: Path, contrast_config: TrainConfig, tmp_path: Path) -> None:
    """The encoder comes from contrast, the decoder from the encoder's stages, the stem stays random."""
    quick = merge(
        contrast_config, {"segment": {"epochs": 1, "images_per_epoch": 16, "validate_every": 1}}, where="test"
    )
    config = dataclasses.replace(quick, stages=("contrast", "segment"))
    assert train(config, balls, tmp_path, device="cpu", labelled=1)
    learnt = load_checkpoint(tmp_path / "contrast" / "best.pt")
    assert learnt.training["train_patients"] == 4, "contrast needs no labels and uses all training patients"
    assert all(name.startswith(("unet.encoder.", "unet.skip_norms.")) for name in learnt.weights)
    account = json.loads((tmp_path / "transfer.json").read_text())
    assert account["source"] == str(tmp_path / "contrast" / "best.pt")
    assert any(name.startswith("decoder.0.blocks") for name in account["taken"])
    assert all(
        name.startswith(("stem_", "decoder.", "expand_", "head_", "classify", "skip_norms.0"))
        for name in account["random"]
    )
    with pytest.raises(InputError, match="of the stage contrast"):
        learnt.network()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
def test_what_contrast_does_not_train_is_handed_on(balls: Path, contrast_config: TrainConfig, tmp_path: Path) -> None:
    quick = merge(contrast_config, {"organs": {"images_per_epoch": 16}}, where="test")
    config = dataclasses.replace(quick, stages=("organs", "contrast"))
    assert train(config, balls, tmp_path, device="cpu")
    organs, contrast = (
        load_checkpoint(path).weights for path in (tmp_path / "organs" / "best.pt", tmp_path / "best.pt")
    )
    assert {name for name in organs if "classify" not in name} == set(contrast)
    for name, value in contrast.items():
        if value.is_floating_point() and name.startswith(("unet.decoder", "unet.stem", "unet.head", "unet.expand")):
            assert torch.equal(value, organs[name]), name
    learnt = "unet.encoder.layers.1.blocks.0.mlp.fc1.weight"
    assert not torch.equal(contrast[learnt], organs[learnt])


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
def test_contrast_keeps_the_classifier_of_a_model_of_the_same_labels(
    balls: Path, contrast_config: TrainConfig, tmp_path: Path
) -> None:
    quick = merge(
        contrast_config, {"segment": {"epochs": 1, "images_per_epoch": 16, "validate_every": 1}}, where="test"
    )
    assert train(dataclasses.replace(quick, stages=("segment",)), balls, tmp_path / "first", device="cpu")
    first = tmp_path / "first" / "best.pt"
    config = dataclasses.replace(quick, stages=("contrast", "segment"), init=str(first))
    said: list[str] = []
    assert train(config, balls, tmp_path / "second", device="cpu", report=said.append)
    account = json.loads((tmp_path / "second" / "transfer.json").read_text())
    assert (account["random"], account["left_out"]) == ([], {})
    before, after = (load_checkpoint(path).weights for path in (first, tmp_path / "second" / "contrast" / "best.pt"))
    assert torch.equal(before["unet.classify.weight"], after["unet.classify.weight"])
    assert not any(INITIAL in line for line in said), "contrast has changed it"


def test_scans_listed_as_unlabelled_are_used_without_labels(balls: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        (data / name).symlink_to(balls / name)
    lists = {"train": ["p0", "p1"], "validation": ["p4"], "unlabelled": ["p2", "p3", "gone"]}
    (data / "splits.json").write_text(json.dumps(lists))
    found = open_data_set(data, "contrast")
    assert (found.train, found.unlabelled) == (("p0", "p1", "p2", "p3"), ())
    assert "patients of the list 'unlabelled' of splits.json have no scan: gone" in found.notes
    assert open_data_set(data).train == ("p0", "p1")


@pytest.mark.usefixtures("without_pictures")
def test_scans_without_labels_are_used(balls: Path, contrast_config: TrainConfig, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("imagesTr", "labelsTr", "dataset.json", "splits.json"):
        (data / name).symlink_to(balls / name)
    (data / "imagesUn").mkdir()
    (data / "imagesUn" / "p0_0000.nii.gz").symlink_to(balls / "imagesTr" / "p0_0000.nii.gz")
    for case, source in (("u0", "p4"), ("u1", "p5")):
        image = nibabel.load(balls / "imagesTr" / f"{source}_0000.nii.gz")
        other = np.asarray(image.dataobj) + np.int16(1)  # the same voxels as in the validation would be refused
        nibabel.save(nibabel.Nifti1Image(other, image.affine), data / "imagesUn" / f"{case}_0000.nii.gz")
    found = open_data_set(data, "contrast")
    assert found.train == ("p0", "p1", "p2", "p3", "u0", "u1")
    assert found.unlabelled == ("u0", "u1")
    config = dataclasses.replace(contrast_config, stages=("contrast",))
    train(config, data, tmp_path / "run", device="cpu", max_minutes=1e-6)
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["train_patients"] == 6


@pytest.mark.usefixtures("without_pictures")
def test_a_collapse_is_named(
    balls: Path, contrast_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All features alike: the encoder's last norm gives the same whatever comes in."""
    config = dataclasses.replace(contrast_config, stages=("contrast",))
    real = ContrastTrainer.start

    def start(self: ContrastTrainer, source: Any) -> None:
        real(self, source)
        norm: Any
        for norm in (self.unet.skip_norms[-1], self.moco.slow.unet.skip_norms[-1]):
            torch.nn.init.zeros_(norm.weight)
            torch.nn.init.ones_(norm.bias)
            norm.requires_grad_(False)

    monkeypatch.setattr(ContrastTrainer, "start", start)
    with pytest.raises(InputError, match=r"contrast collapsed in epoch 1: spread of features 0\.0"):
        train(config, balls, tmp_path, device="cpu")


def test_one_patient_cannot_be_contrasted(balls: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "imagesTr").mkdir(parents=True)
    for name in ("labelsTr", "dataset.json"):
        (data / name).symlink_to(balls / name)
    (data / "splits.json").write_text(json.dumps({"train": ["p0"], "validation": ["p1"]}))
    (data / "imagesTr" / "p0_0000.nii.gz").symlink_to(balls / "imagesTr" / "p0_0000.nii.gz")
    with pytest.raises(InputError, match="found 1 scan for training and in imagesUn"):
        open_data_set(data, "contrast")


def test_the_learning_rate_and_loss_are_finite_from_the_first_step(
    balls: Path, contrast_config: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(contrast_config, stages=("contrast",)).for_stage("contrast")
    trainer = ContrastTrainer(
        config, open_data_set(balls, "contrast"), tmp_path, join("cpu"), lambda _: None, tmp_path / "cache"
    )
    trainer.load()
    batch = next(iter(trainer.batches(range(1))))
    loss, measured = trainer.loss(batch, torch.Generator().manual_seed(0))
    assert math.isfinite(loss.item())
    assert measured["spread"] > 0.02
