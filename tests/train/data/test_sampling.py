"""Drawn slices: images and targets stay on each other, and a mirrored scan swaps its labels."""

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from parotid_seg.contract import Grid
from parotid_seg.scan.labels import mirrored_labels
from parotid_seg.train.config import AugmentConfig, TrainConfig
from parotid_seg.train.data.augment import Augmenter, Draws
from parotid_seg.train.data.data_set import DataSet, open_data_set
from parotid_seg.train.data.patients import Patient, load_patients
from parotid_seg.train.data.sampling import PairSampler, SliceSampler
from parotid_seg.train.parallel import Processes
from parotid_seg.train.settings import load_config
from tests.processes.workers import CORES, every_core

ROOT = Path(__file__).parents[3]
STILL = AugmentConfig(
    mirror_probability=0, rotation_deg=0, scale=0, shift_mm=0, warp_mm=0, slice_scale=0, noise_hu=0, blur_px=0.3,
    contrast=0, offset_hu=0, couch_probability=0, bolus_probability=0,
    field_of_view_probability=0, volume_end_probability=0,
)  # fmt: skip


def sampler_of(
    patients: list[Patient], config: TrainConfig, data: DataSet, augment: AugmentConfig, names: Sequence[str] = ()
) -> SliceSampler:
    """Of slices that show a gland."""
    names = names or data.labels
    segment = dataclasses.replace(config.segment, gland_share=1.0, border_share=0.0)
    config = dataclasses.replace(config, seed=1, segment=segment)
    return SliceSampler(patients, config, range(segment.batch_size), segment, mirrored_labels(names), augment)


@pytest.fixture(scope="module")
def drawn(
    balls: Path, small_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[torch.Tensor, torch.Tensor, TrainConfig]]:
    config = load_config("compact", small_config)
    data = open_data_set(balls)
    patients = load_patients(data, data.train, tmp_path_factory.mktemp("cache"), config.window_hu)

    def draw(augment: AugmentConfig, names: Sequence[str] = ()) -> tuple[torch.Tensor, torch.Tensor, TrainConfig]:
        images, targets, _ = sampler_of(patients, config, data, augment, names)[0]
        return images, targets, config

    return draw


def middle_column(target: torch.Tensor) -> float:
    return float((target.sum(0) * torch.arange(target.shape[1])).sum() / target.sum())


@pytest.mark.parametrize("names", ["parotid_left parotid_right", "Parotis_li. Parotis_re.", "Parotide_G Parotide_D"])
@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_left_is_the_higher_column_mirrored_or_not(
    drawn: Callable[..., tuple[torch.Tensor, torch.Tensor, TrainConfig]], mirror: float, names: str
) -> None:
    _, targets, _ = drawn(dataclasses.replace(STILL, mirror_probability=mirror), ("background", *names.split()))
    checked = 0
    for target in targets:
        if target[1].sum() > 3 and target[2].sum() > 3:
            assert middle_column(target[1]) > middle_column(target[2])
            checked += 1
    assert checked > 5


def test_mirroring_mirrors_the_image(drawn: Callable[..., tuple[torch.Tensor, torch.Tensor, TrainConfig]]) -> None:
    plain, targets, _ = drawn(STILL)
    mirrored, mirrored_targets, _ = drawn(dataclasses.replace(STILL, mirror_probability=1.0))
    assert not torch.allclose(plain, mirrored, atol=0.05)
    torch.testing.assert_close(mirrored_targets[:, 1].flip(-1), targets[:, 2])


@pytest.mark.parametrize("augment", [STILL, AugmentConfig()])
def test_targets_stay_on_the_bright_balls(
    drawn: Callable[..., tuple[torch.Tensor, torch.Tensor, TrainConfig]], augment: AugmentConfig
) -> None:
    images, targets, config = drawn(dataclasses.replace(augment, contrast=0.05, offset_hu=0, noise_hu=5))
    augmenter = Augmenter(
        dataclasses.replace(augment, contrast=0.05, offset_hu=0, noise_hu=5), config.grid, ("CT",), config.window_hu
    )
    images, targets = augmenter(images, targets, Draws(torch.Generator().manual_seed(0)))
    torch.testing.assert_close(targets.sum(1), torch.ones_like(targets[:, 0]))
    centre = images[:, images.shape[1] // 2]
    inside, outside = targets[:, 1:].sum(1) > 0.95, (targets[:, 0] > 0.99) & (centre > 0.05)
    assert centre[inside].mean() > centre[outside].mean() + 0.15
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_same_seed_draws_the_same(drawn: Callable[..., tuple[torch.Tensor, torch.Tensor, TrainConfig]]) -> None:
    first, second = drawn(AugmentConfig()), drawn(AugmentConfig())
    torch.testing.assert_close(first[0], second[0])


def test_different_native_sizes_share_a_batch(balls: Path, small_config: Path, tmp_path: Path) -> None:
    config = load_config("compact", small_config)
    data = open_data_set(balls)
    patients = load_patients(data, data.train[:2], tmp_path, config.window_hu)
    volume = patients[1].volume
    cropped = dataclasses.replace(
        patients[1],
        volume=dataclasses.replace(volume, voxels=volume.voxels[:, :, 3:, :-5]),
        labels=np.asarray(patients[1].labels[:, 3:, :-5]),
    )
    images, targets, _ = sampler_of([patients[0], cropped], config, data, STILL)[0]
    assert len(images) == len(targets) == config.segment.batch_size
    assert torch.isfinite(images).all()


def test_batches_come_in_order_and_do_not_depend_on_the_workers(
    balls: Path, small_config: Path, tmp_path: Path
) -> None:
    config = load_config("compact", small_config)
    data = open_data_set(balls)
    sampler = sampler_of(load_patients(data, data.train, tmp_path, config.window_hu), config, data, AugmentConfig())
    here, there = (list(sampler.batches(range(3, 6), workers)) for workers in (0, 2))
    assert len(here) == len(there) == 3
    for number, one, other in zip(range(3, 6), here, there, strict=True):
        for expected, found, again in zip(one, other, sampler[number], strict=True):
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(again, expected)
    assert not torch.equal(here[0].images, here[1].images)


BY_OTHER_THREADS = """
import pickle, sys, time
from pathlib import Path
import torch
sampler = pickle.loads(Path(sys.argv[1]).read_bytes())
torch.set_num_threads(1)  # as a process of the loader does
thread, process = time.thread_time(), time.process_time()
sampler[0]
print((time.process_time() - process) / (time.thread_time() - thread) - 1)
"""


@pytest.mark.skipif(len(CORES) < 2, reason="on one core NumPy has one thread, too")
def test_a_process_that_draws_computes_in_one_thread(balls: Path, small_config: Path, tmp_path: Path) -> None:
    """Eight such processes with a thread for each of 16 cores took 60 times as long."""
    config = load_config("compact", small_config)
    data = open_data_set(balls)
    patient = load_patients(data, data.train[:1], tmp_path, config.window_hu)[0]
    depth, height, width = patient.volume.spacing_mm
    voxels = patient.volume.voxels.repeat(8, axis=-2).repeat(8, axis=-1)
    finer = dataclasses.replace(patient.volume, voxels=voxels, spacing_mm=(depth, height / 8, width / 8))
    labels = np.asarray(patient.labels).repeat(8, axis=1).repeat(8, axis=2)
    sampler = sampler_of([dataclasses.replace(patient, volume=finer, labels=labels)], config, data, STILL)
    (tmp_path / "sampler").write_bytes(pickle.dumps(sampler))
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", BY_OTHER_THREADS, str(tmp_path / "sampler")]
    with every_core():
        done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1


def test_only_a_couch_is_added_behind_the_body(
    drawn: Callable[..., tuple[torch.Tensor, torch.Tensor, TrainConfig]],
) -> None:
    images, targets, config = drawn(STILL)
    couch = dataclasses.replace(STILL, couch_probability=1.0)
    draws = [Draws(torch.Generator().manual_seed(1)) for _ in range(2)]
    changed, _ = Augmenter(couch, config.grid, ("CT",), config.window_hu)(images, targets, draws[0])
    plain, _ = Augmenter(STILL, config.grid, ("CT",), config.window_hu)(images, targets, draws[1])
    body = images.amax(1, keepdim=True) > 0.2
    assert ((changed - plain).abs() * body).mean() < 0.01
    assert ((changed - plain) > 0.05).any(dim=(1, 2, 3)).sum() >= len(images) // 2


def test_images_of_several_channels_are_channel_by_channel(sequences: Path, small_config: Path, tmp_path: Path) -> None:
    config = load_config("compact", small_config)
    data = open_data_set(sequences)
    images, targets, _ = sampler_of(
        load_patients(data, data.train[:2], tmp_path, config.window_hu), config, data, STILL
    )[0]
    assert images.shape[1] == 3 * len(config.grid.offsets_mm)
    t1, t2, stir = images[:, 1], images[:, 4], images[:, 7]
    gland, tumour = targets[:, 1] > 0.95, targets[:, 2] > 0.95
    assert abs(t1[tumour].mean() - t1[gland].mean()) < 0.1
    assert stir[tumour].mean() > stir[gland].mean() + 0.3
    assert t1[gland].mean() > stir[gland].mean() + 0.3
    assert not torch.equal(t1, t2)


def augmented(images: torch.Tensor, channels: tuple[str, ...], augment: AugmentConfig, seed: int = 0) -> torch.Tensor:
    targets = torch.zeros(len(images), 2, *images.shape[2:])
    targets[:, 0] = 1
    grid = Grid(size=images.shape[-1], spacing_mm=4.0)
    augmenter = Augmenter(augment, grid, channels, (-200.0, 300.0))
    return augmenter(images, targets, Draws(torch.Generator().manual_seed(seed)))[0]


def test_intensities_change_for_each_channel_by_itself() -> None:
    rng = torch.Generator().manual_seed(0)
    one = torch.rand(16, 3, 40, 40, generator=rng)
    images = torch.cat([one, torch.zeros_like(one), one], dim=1)
    first, empty, third = augmented(images, ("T1", "T2", "STIR"), AugmentConfig()).chunk(3, dim=1)
    assert not empty.any(), "nothing comes over from the other channels"
    assert (first - third).abs().mean() > 0.01


def test_a_channel_without_units_counts_500_hu_wide() -> None:
    assert Augmenter(AugmentConfig(), Grid(), ("CT", "T1"), (-400.0, 600.0)).hu_ranges == [1000.0, 500.0]


def test_couches_are_painted_on_ct_only() -> None:
    images = torch.zeros(32, 2, 40, 40)
    images[:, :, 10:20, 10:30] = 0.5
    couch = dataclasses.replace(STILL, couch_probability=1.0)
    behind = np.s_[:, :, 25:]
    ct, t1 = augmented(images, ("CT", "T1"), couch).split(1, dim=1)
    assert ct[behind].any()
    assert not t1[behind].any()
    assert not augmented(images, ("T1", "CT"), couch)[behind].any()


def test_bolus_touches_the_skin_of_the_cheeks() -> None:
    offsets_mm = (-40.0, -20.0, 0.0, 20.0, 40.0)
    images = torch.zeros(64, 5, 96, 96)
    images[:, :, 15:80, 25:70] = 0.6
    augmenter = Augmenter(
        dataclasses.replace(STILL, bolus_probability=1.0),
        Grid(size=96, spacing_mm=2.25, offsets_mm=offsets_mm),
        ("CT",),
        (-200.0, 300.0),
    )
    targets = torch.ones(64, 1, 96, 96)
    with_bolus, _ = augmenter(images, targets, Draws(torch.Generator().manual_seed(0)))
    bolus = (with_bolus > 0.05) & (images == 0)
    assert bolus.any(dim=(1, 2, 3)).float().mean() > 0.9
    assert not bolus[:, :, :15].any(), "it lies beside rows that show the body"
    assert not bolus[:, :, 80:].any()
    inside = with_bolus[:, :, 20:75, 30:65]
    assert ((inside > 0.5) & (inside < 0.7)).all(), "the body is as it was, but for its gamma"
    skin = bolus[:, :, :, 24] | bolus[:, :, :, 70]
    assert torch.equal(skin, bolus.any(dim=3)), "it touches the skin"
    thickest_mm = 2.25 * bolus[:, :, :, :25].sum(dim=3).max()
    assert 12 < thickest_mm <= 23
    sides = {(bool(each[..., :25].any()), bool(each[..., 70:].any())) for each in bolus if each.any()}
    assert sides == {(True, False), (False, True), (True, True)}
    assert 0 < bolus.any(dim=(2, 3)).float().mean() < 1, "it ends above and below"


def test_an_image_has_the_same_bolus_whatever_the_others_have() -> None:
    images = torch.zeros(32, 11, 48, 48)
    images[:, :, 8:40, 12:35] = torch.linspace(0.5, 0.7, 32).view(-1, 1, 1, 1)
    none, some, all_of_them = (
        augmented(images, ("CT",), dataclasses.replace(STILL, bolus_probability=share)) for share in (1e-9, 0.5, 1.0)
    )
    without, painted = ((some == each).all(dim=(1, 2, 3)) for each in (none, all_of_them))
    assert (without | painted).all()
    assert (painted & ~without).sum() > 5
    assert (without & ~painted).sum() > 5


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("pairs", [False, True])
def test_processes_draw_an_epoch_between_them(
    balls: Path, small_config: Path, tmp_path: Path, count: int, pairs: bool
) -> None:
    """Together exactly what one process draws, and nothing twice."""
    config = load_config("compact", small_config)
    data = open_data_set(balls)
    patients = load_patients(data, data.train, tmp_path, config.window_hu)
    batch_size, names = 8, mirrored_labels(data.labels)

    def sampler(places: range) -> PairSampler | SliceSampler:
        if pairs:
            return PairSampler(patients, config, places, config.contrast.first, config.contrast.second)
        return SliceSampler(patients, config, places, config.segment, names, config.augment)

    processes = [Processes(rank, count, torch.device("cpu")) for rank in range(count)]
    whole = sampler(range(batch_size))
    parts = [sampler(each.share(batch_size)) for each in processes]
    seen = []
    for number in range(4):
        batch = whole[number]
        for values, *of_parts in zip(batch, *(each[number] for each in parts), strict=True):
            assert torch.equal(torch.cat(of_parts), values)
        seen.append(batch[0])
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 4 * batch_size
    drawn = torch.cat([each.draws(torch.Generator().manual_seed(5)).normal(2, 3) for each in processes])
    assert torch.equal(drawn, Draws(torch.Generator().manual_seed(5)).normal(2 * count, 3))
