"""nnU-Net's label "ignore": neither drawn for, nor learnt, nor validated on; and structures that a reference lacks."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from parotid_seg.train import supervised
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.sampling import SliceSampler
from parotid_seg.train.parallel import join
from parotid_seg.train.settings import load_config
from parotid_seg.train.supervised import SegmentTrainer

FIRST_KNOWN = 9


@pytest.fixture
def data(data: Path) -> Path:
    """Ignored: the lower slices, which show glands as well, and in all others everything to the patient's right."""
    description = json.loads((data / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (data / "dataset.json").write_text(json.dumps(description))
    for path in data.glob("labelsTr/*.nii.gz"):
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj).copy()
        labels[:, :, :FIRST_KNOWN] = 3
        labels[:10] = 3
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)
    return data


@pytest.fixture
def trainer(data: Path, small_config: Path, tmp_path: Path) -> SegmentTrainer:
    config = load_config("compact", small_config)
    still = dataclasses.replace(config.augment, volume_end_probability=0.0)
    config = dataclasses.replace(config, augment=still).for_stage("segment")
    data_set = open_data_set(data)
    trainer = SegmentTrainer(config, data_set, tmp_path / "run", join("cpu"), lambda _: None, tmp_path / "cache")
    trainer.load()
    (tmp_path / "run").mkdir()
    return trainer


def test_only_known_slices_are_drawn_and_ignored_pixels_are_marked(trainer: SegmentTrainer) -> None:
    drawn = []
    real = SliceSampler._choose_slice

    class Watched(SliceSampler):
        def _choose_slice(self, patient: Any, rng: Any) -> int:
            drawn.append(real(self, patient, rng))
            return drawn[-1]

    sampler = Watched(trainer.train, trainer.config, range(16), trainer.schedule, (0, 2, 1), trainer.config.augment)
    targets = torch.cat([sampler[number].targets for number in range(8)])
    assert targets.shape[1] == 4
    assert set(drawn) <= set(range(FIRST_KNOWN, 24))
    assert len(set(drawn)) > 5
    torch.testing.assert_close(targets.sum(dim=1), torch.ones_like(targets[:, 0]))
    assert targets[:, 3].amax(dim=(1, 2)).min() > 0.9


def test_a_step_of_training_holds_no_class_for_it(trainer: SegmentTrainer) -> None:
    assert trainer.net.unet.classify.out_channels == 3
    batch = next(iter(trainer.batches(range(1))))
    loss, _ = trainer.loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert math.isfinite(loss.item())
    trainer.save("best.pt", {})
    assert trainer.data.labels == ("background", "parotid_left", "parotid_right")


def test_ignored_voxels_are_not_validated_on(trainer: SegmentTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = trainer.validation[0]
    assert patient.ignored is not None
    found = np.where(patient.ignored, 2, patient.labels).astype(np.uint8)
    found[:FIRST_KNOWN, :, :25] = 1
    monkeypatch.setattr(supervised, "segment_volume", lambda *_: found)
    monkeypatch.setattr(supervised, "clean_labels", lambda mask, _: mask)
    assert trainer._judge(trainer.average, patient)[1] == [1.0, 1.0]


def test_a_structure_that_the_reference_lacks_raises_no_validation_score(
    trainer: SegmentTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = trainer.validation[0]
    left_only = dataclasses.replace(
        patient, labels=np.where(patient.labels == 1, 1, 0), shown_in=((), patient.shown_in[1], ())
    )
    monkeypatch.setattr(supervised, "segment_volume", lambda *_: np.zeros_like(patient.labels))
    left, right = trainer._judge(trainer.average, left_only)[1]
    assert left == 0
    assert math.isnan(right)
    trainer.validation = [left_only]
    trainer.epochs_done = trainer.schedule.epochs
    found = trainer.after_epoch({})
    assert found["validation_dsc"] == 0
