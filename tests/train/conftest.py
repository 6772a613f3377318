"""A data set small enough to train on in seconds: two bright balls, left and right of the middle of a head."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.pictures import none_drawn

SMALL = """
stages = ["segment"]
[grid]
size = 32
spacing_mm = 7.0
offsets_mm = [-3, 0, 3]
[network]
embed_dim = 16
depths = [1, 1]
heads = [2, 4]
window = 4
stem = [8, 16]
[organs]
epochs = 1
images_per_epoch = 160
batch_size = 8
learning_rate = 0.004
warmup_epochs = 0.2
[segment]
epochs = 4
images_per_epoch = 160
batch_size = 8
learning_rate = 0.004
average_decay = 0.9
warmup_epochs = 0.2
validate_every = 1
calm_epochs = 1
"""
ONE_STAGE = SMALL.replace("depths = [1, 1]\nheads = [2, 4]", "depths = [1]\nheads = [2]")
"""A smaller network, which is exported sooner."""
CONTRAST = """
[contrast]
epochs = 1
images_per_epoch = 32
batch_size = 8
hidden = 32
features = 16
"""


SHAPE, AFFINE = (50, 50, 24), np.diag([-4.0, -4.0, 3.0, 1.0])
X, Y, Z = np.meshgrid(*[np.arange(size) for size in SHAPE], indexing="ij")


def draw_head(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The middle (x, y) of a head, and its voxels."""
    centre = 24 + rng.uniform(-3, 3, size=2)
    return centre, ((X - centre[0]) / 17) ** 2 + ((Y - centre[1]) / 21) ** 2 < 1


def write_patient(folder: Path, name: str, rng: np.random.Generator) -> None:
    centre, head = draw_head(rng)
    data = np.where(head, 0, -1024) + head * rng.normal(0, 15, SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    for value, side in ((1, 1), (2, -1)):  # storage runs to the patient's left, so left is the higher index
        ball = (X - centre[0] - side * 11) ** 2 + (Y - centre[1]) ** 2 + (0.75 * (Z - 12)) ** 2 < 4.5**2
        labels[ball] = value
        data[ball] += 180
    nibabel.save(nibabel.Nifti1Image(data.astype(np.int16), AFFINE), folder / "imagesTr" / f"{name}_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), folder / "labelsTr" / f"{name}.nii.gz")
    organs = np.where(labels > 0, labels, np.where(head & (centre[1] > Y), 5, 0)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(organs, AFFINE), folder / "organsTr" / f"{name}.nii.gz")


@pytest.fixture(scope="session")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    for name in ("imagesTr", "labelsTr", "organsTr"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    names = [f"p{index}" for index in range(6)]
    for name in names:
        write_patient(folder, name, rng)
    labels = {"background": 0, "parotid_left": 1, "parotid_right": 2}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 6}
    description["organ_labels"] = {"LeftParotid": 1, "RightParotid": 2, "Mandible": 5}
    (folder / "dataset.json").write_text(json.dumps({"name": "balls", **description}))
    (folder / "splits.json").write_text(json.dumps({"train": names[:4], "validation": names[4:]}))
    return folder


@pytest.fixture
def data(balls: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(balls, tmp_path / "data")


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def short_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with epochs of a few steps, for runs that need to learn nothing."""
    path = tmp_path_factory.mktemp("config") / "short.toml"
    path.write_text(SMALL.replace("images_per_epoch = 160", "images_per_epoch = 16"))
    return path


def write_examination(folder: Path, name: str, rng: np.random.Generator) -> None:
    """Three MR sequences of a head with a gland on either side, and in one of them a tumour that only STIR shows.

    Each sequence has a scale of its own, as scanners do, from 1e-3 to 3e4 for its brightest tissue.
    """
    centre, head = draw_head(rng)

    def ball(at: NDArray[Any], radius: float) -> NDArray[np.bool_]:
        return (X - at[0]) ** 2 + (Y - at[1]) ** 2 + (0.75 * (Z - at[2])) ** 2 < radius**2

    glands = [np.array([centre[0] + side * 10, centre[1], 12]) for side in (-1, 1)]
    labels = np.zeros(SHAPE, np.uint8)
    for gland in glands:
        labels[ball(gland, 5.5)] = 1
    labels[ball(glands[rng.integers(2)] + rng.uniform(-1, 1, size=3), 3.8)] = 2
    for channel, (tissue, healthy, tumour) in enumerate([(0.4, 0.7, 0.7), (0.35, 0.6, 0.6), (0.4, 0.4, 1.0)]):
        clean = np.select([labels == 2, labels == 1, head], [tumour, healthy, tissue], 0.0)
        noisy = np.abs(clean + rng.normal(0, 0.03, SHAPE)) * 10 ** rng.uniform(-3, 4.5)
        image = nibabel.Nifti1Image(noisy.astype(np.float32), AFFINE)
        nibabel.save(image, folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), folder / "labelsTr" / f"{name}.nii.gz")


@pytest.fixture(scope="session")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    names = [f"m{index}" for index in range(8)]
    for name in names:
        write_examination(folder, name, rng)
    channels = {"0": "T1", "1": "T2", "2": "STIR"}
    description = {"channel_names": channels, "labels": {"background": 0, "gland": 1, "tumour": 2}}
    description |= {"file_ending": ".nii.gz", "numTraining": 8}
    (folder / "dataset.json").write_text(json.dumps({"name": "sequences", **description}))
    (folder / "splits.json").write_text(json.dumps({"train": names[:6], "validation": names[6:]}))
    return folder


@pytest.fixture
def without_pictures() -> Iterator[None]:
    """Trainings in this process draw none."""
    with none_drawn():
        yield
