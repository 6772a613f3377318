"""The 3-D network of benchmarks/teacher.py: what it sees, how its scores come back, its training, and a whole fold."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import teacher
from teacher import Settings, Training, centres_in, keep_settings, scores_of
from teacher_net import TeacherNet, loss_of
from teacher_views import Region, augmented, grid_mm, region_of, scores_back, seen

from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import InputError
from parotid_seg.metrics import dice
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.runtime.segmentation.locate import Ask, Prepared
from parotid_seg.scan.chunks import CroppedScan
from parotid_seg.scan.nifti import read_mask, read_nifti
from parotid_seg.scan.volume import Mask, Orientation, Volume
from tests.benchmarks.test_benchmarks import run_script
from tests.train.conftest import balls, small_config  # noqa: F401

pytestmark = pytest.mark.slow

SMALL = {"teacher_net.WIDTHS": (4, 8), "teacher_views.SHAPE": (24, 24, 24)}
"""A small network that sees 72 mm."""
LABELS = ("background", "parotid_left", "parotid_right")
CONTRACT = Contract(LABELS, ("CT",), ((-200.0, 300.0),), Grid())


def scan_with(mask: Mask) -> Prepared:
    """A scan that is bright where a mask of both glands is not 0, and tissue elsewhere."""
    voxels = np.where(mask > 0, 250, -50).astype(np.int16)[None]
    volume = Volume(voxels, (2.5, 4.0, 3.5), Orientation((0, 1, 2), (False, False, False)))
    return Prepared(volume, np.array([(-200, 300)], np.float32), CONTRACT)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the script itself does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def glands() -> Mask:
    """Two unequal ellipsoids with a corner, the patient's left one at the higher columns."""
    z, y, x = np.indices((40, 45, 60))
    mask = np.zeros(z.shape, np.uint8)
    for value, column, size in ((1, 44, 1.0), (2, 16, 0.8)):
        mask[((z - 20) / 9) ** 2 + ((y - 22) / 6) ** 2 + ((x - column) / 5) ** 2 < size] = value
        mask[16:26, 22:31, column : column + 8] = value
    return mask


def region(glands: Mask, value: int) -> Region:
    centre = centres_in(glands, LABELS)[value - 1]
    assert centre
    contoured = (glands == value).astype(np.uint8)
    return region_of("one", scan_with(glands), centre, mirrored=value == 1, contoured=contoured)


@pytest.mark.parametrize("value", [1, 2])
def test_what_the_network_sees_comes_back_to_the_scan_s_voxels(glands: Mask, value: int) -> None:
    each = region(glands, value)
    back = np.zeros(glands.shape)
    back[each.part] = scores_back(seen(each, grid_mm())[0, 1], each).numpy() > 0.5
    assert dice(back > 0, glands == value) > 0.96


def test_left_glands_look_like_right_ones(glands: Mask) -> None:
    left = seen(region(glands, 1), grid_mm())
    in_mirror = np.ascontiguousarray(glands[:, :, ::-1])
    right = seen(region(np.where(in_mirror > 0, 3 - in_mirror, 0).astype(np.uint8), 2), grid_mm())
    assert torch.allclose(left, right, atol=1e-4)
    assert not torch.allclose(left, left.flip(-1), atol=0.1)


def test_scores_of_a_left_gland_are_turned_back(glands: Mask) -> None:
    def lower_columns(image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([0 * image, torch.where(grid_mm()[..., 2] < 0, 20.0, -20.0).expand_as(image)], dim=1)]

    centres = centres_in(glands, LABELS)
    scores = scores_of(cast(TeacherNet, lower_columns), scan_with(glands), [*centres[:1], None])
    assert centres[0]
    assert np.argwhere(scores[0] > 0.5)[:, 2].min() >= centres[0][2] - 1
    assert scores[0].max() == pytest.approx(1, abs=1e-4)
    assert not scores[1].any()


def test_augmentation_moves_image_and_contours_together(glands: Mask) -> None:
    generator = torch.Generator().manual_seed(1)
    middles = []
    for _ in range(6):
        image, shares = augmented(region(glands, 2), generator)
        assert shares.sum(dim=1).allclose(torch.ones(()))
        bright, gland = image[0, 0].numpy() > 0.6, shares[0, 1].numpy() > 0.5
        assert dice(bright, gland) > 0.8
        middles.append(np.argwhere(gland).mean(axis=0))
    assert (np.std(middles, axis=0) > 0.5).all()


def test_the_loss_counts_every_level(glands: Mask) -> None:
    shares = seen(region(glands, 2), grid_mm())[:, 1:]
    targets = torch.cat([1 - shares, shares], dim=1)
    right = [20 * (2 * targets[:, :, ::step, ::step, ::step] - 1) for step in (1, 2, 4)]
    good = float(loss_of(right, targets))
    worse = [float(loss_of([*right[:level], -right[level], *right[level + 1 :]], targets)) for level in range(3)]
    assert good < 0.5 < worse[2] < worse[1] < worse[0]


def test_a_training_that_was_cut_gives_the_same_weights(
    glands: Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)
    regions = [region(glands, value) for value in (1, 2)]
    whole = Training(Settings(3, warmup_steps=1), regions, tmp_path / "whole.pt")
    assert whole.run(1, "whole")
    cut = Training(Settings(3, warmup_steps=1), regions, tmp_path / "cut.pt")
    assert not cut.run(0, "cut")
    cut._step()
    cut.save()
    resumed = Training(Settings(3, warmup_steps=1), regions, tmp_path / "cut.pt")
    assert resumed.step == 1
    assert resumed.run(1, "resumed")
    assert resumed.losses == whole.losses
    for one, other in zip(resumed.averaged.parameters(), whole.averaged.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_training_keeps_its_settings(tmp_path: Path) -> None:
    keep_settings(teacher.settings_of(Settings(4)), tmp_path / "settings.json")
    keep_settings(teacher.settings_of(Settings(4)), tmp_path / "settings.json")
    with pytest.raises(InputError, match="steps: found 5, expected 4"):
        keep_settings(teacher.settings_of(Settings(5)), tmp_path / "settings.json")


def bright_places(prepared: Prepared, _: Ask) -> tuple[CroppedScan, Prediction]:
    """In place of the model: what is bright is a gland, on the lower columns the right one."""
    covered = prepared.crop_to_grid()
    labels = (covered.voxels[0] > 120).astype(np.uint8)
    middle = labels.shape[2] // 2
    labels[:, :, :middle] *= 2
    return covered, Prediction(labels, {}, 0.0)


def test_a_score_becomes_a_half_and_shares_stay_shares() -> None:
    import distil

    scores = np.array([[0.4, 0.2, 0.0, 1.0, 0.5], [0.0, 0.7, 0.0, 0.0, 0.5]], np.float32)
    np.testing.assert_array_equal(distil.shifted(scores, 0.5), scores)
    found = distil.shifted(scores, 0.4)
    np.testing.assert_allclose(found[:, 0], [0.5, 0.0])
    np.testing.assert_array_equal(found[:, 2:], scores[:, 2:])
    assert (found[:, 1] > scores[:, 1]).all()
    assert (found.sum(axis=0) <= 1 + 1e-6).all()


def quick(steps: int, seed: int) -> Settings:
    """Settings for a few steps."""
    return Settings(steps, learning_rate=0.01, warmup_steps=3, seed=seed)


@pytest.fixture(scope="module")
def trained(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:  # noqa: F811
    """The folder with runs and results of a 3-D network on fold 0, and what its training printed."""
    folder = tmp_path_factory.mktemp("trained")
    words = [str(balls), "--folds", "0", "--steps", "30", *places_in(folder)]
    constants = {**SMALL, "Settings": quick, "labels_of_scan": bright_places, "PRINT_EVERY": 10}
    return folder, run_script("teacher.py", *words, constants=constants)


def places_in(folder: Path) -> list[str]:
    return ["--runs", str(folder / "runs"), "--results", str(folder / "results")]


def test_a_fold_is_trained_scored_and_told(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert "teacher fold 0: step 30 of 30, loss" in printed
    result = json.loads((folder / "results" / "teacher" / "fold-0.json").read_text())
    held_out = json.loads((folder / "results" / "folds.json").read_text())[0]
    assert sorted(result["patients"]) == held_out
    assert result["settings"]["shape"] == [24, 24, 24]
    for name in held_out:
        assert min(gland["dsc"] for gland in result["patients"][name].values()) > 0.7
    table = run_script("cross_validation.py", "--report", "--results", str(folder / "results"))
    assert f"| teacher | 0 | {len(held_out)} |" in table


def test_masks_by_networks_that_had_not_seen_the_patients_become_soft_labels(
    balls: Path,  # noqa: F811
    trained: tuple[Path, str],
) -> None:
    folder, _ = trained
    folds = json.loads((folder / "results" / "folds.json").read_text())
    masks = folder / "results" / "teacher" / "masks"
    more = ["--masks", str(masks), "--name", "of-masks", "--fold", "1"]
    printed = run_script("distil.py", str(balls), *places_in(folder), *more)
    without = {name for fold in folds[2:] for name in fold}
    assert {line.split(":")[0] for line in printed.splitlines()} == without, "the masks of these folds are missing"
    name = folds[0][0]
    soft, _ = read_mask(folder / "runs" / "of-masks" / "fold-1" / f"{name}_0002.nii.gz")
    mask, _ = read_mask(masks / f"{name}.nii.gz")
    np.testing.assert_array_equal(soft, 255 * (mask == 2))
    assert soft.any()


def test_an_ensemble_teaches_a_compact_network(
    balls: Path,  # noqa: F811
    small_config: Path,  # noqa: F811
    trained: tuple[Path, str],
    tmp_path: Path,
) -> None:
    folder, _ = trained
    places, runs, results = places_in(folder), folder / "runs", folder / "results"
    held_out = json.loads((results / "folds.json").read_text())[0]
    recipes = {name: tmp_path / f"{name}.toml" for name in ("hard", "soft")}
    short = small_config.read_text().replace("epochs = 4", "epochs = 1")
    recipes["hard"].write_text(short)
    recipes["soft"].write_text(short.replace("[segment]", "[segment]\nsoft_share = 0.5"))
    run_script("cross_validation.py", str(balls), str(recipes["hard"]), *places, "--folds", "0")
    constants = {**SMALL, "teacher.labels_of_scan": bright_places}
    printed = run_script("distil.py", str(balls), *places, "--fold", "0", "--recipes", "hard", constants=constants)
    taught = [f"p{index}" for index in range(6) if f"p{index}" not in held_out]
    assert f"{taught[-1]}: {len(taught)} of {len(taught)}, " in printed
    written = {path.name for path in (runs / "softTr" / "fold-0").iterdir()}
    assert written == {f"{name}_000{value}.nii.gz" for name in taught for value in (1, 2)}
    scan = read_nifti(balls / "imagesTr" / f"{taught[0]}_0000.nii.gz")
    contours, _ = read_mask(balls / "labelsTr" / f"{taught[0]}.nii.gz")
    shares, _ = read_mask(runs / "softTr" / "fold-0" / f"{taught[0]}_0001.nii.gz", like=scan)
    assert shares[contours == 1].mean() > 3 * shares[contours != 1].mean()
    assert not run_script("distil.py", str(balls), *places, "--recipes", "hard", constants=constants)  # all are there
    more = ["--name", "shifted", "--least", "0.3", "--recipes", "hard", "--teachers", "teacher", "teacher"]
    run_script("distil.py", str(balls), *places, *more, constants=constants)
    raised, _ = read_mask(runs / "shifted" / "fold-0" / f"{taught[0]}_0001.nii.gz", like=scan)
    assert raised.mean() > shares.mean()
    run_script("distil.py", str(balls), *places, "--recipes", "hard", "--score", "0.4", constants=constants)
    scored = json.loads((results / "ensemble-0.4" / "fold-0.json").read_text())
    assert scored["settings"] == {"networks": ["teacher/fold-0", "hard/fold-0"], "least_score": 0.4}
    assert scored["patients"].keys() == set(held_out)
    assert "| ensemble-0.4 | 0 |" in run_script("cross_validation.py", "--report", *places[2:])
    run_script("cross_validation.py", str(balls), str(recipes["soft"]), *places, "--soft", "shifted", "--folds", "0")
    assert json.loads((results / "soft" / "fold-0.json").read_text())["patients"].keys() == set(held_out)
