"""The Python interface: images and arrays in, labels in the same order out."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import parotid_seg
from parotid_seg import api
from parotid_seg.errors import InputError, ModelError, OptionError, ParotidSegError, ScanError
from parotid_seg.metrics import dice
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines import load
from parotid_seg.runtime.engines.gpu import Gpu
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.segmentation.segment import Segmentation
from tests.dicom_example import few_slices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head(head: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    """As few slices as a scan may have."""
    return few_slices(head, 4)


@pytest.fixture(scope="module")
def segmenter() -> parotid_seg.Segmenter:
    return parotid_seg.Segmenter(backend="onnxruntime")


@pytest.fixture(scope="module")
def expected(segmenter: parotid_seg.Segmenter, head: nibabel.Nifti1Image) -> Segmentation:
    return segmenter(head)


def test_the_public_names() -> None:
    assert parotid_seg.__all__ == ["Segmentation", "Segmenter", "__version__", "segment"]
    assert all(getattr(parotid_seg, name).__doc__ for name in parotid_seg.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = parotid_seg.nothing


def test_an_image_gets_labels_in_its_own_order(
    expected: Segmentation,
    head: nibabel.Nifti1Image,
    segmenter: parotid_seg.Segmenter,
) -> None:
    assert expected.mask.shape == head.shape
    assert expected.mask.dtype == np.uint8
    assert set(expected.volumes_ml) == {"parotid_left", "parotid_right"}
    assert set(expected.expected_dsc) == set(expected.floor_dsc) == set(expected.volumes_ml)
    flipped = nibabel.Nifti1Image(np.asarray(head.dataobj)[::-1, :, ::-1], head.affine @ flip(head.shape))
    found = segmenter(flipped)
    np.testing.assert_array_equal(found.mask[::-1, :, ::-1], expected.mask)


def flip(shape: tuple[int, ...]) -> np.ndarray:
    matrix = np.diag([-1.0, 1.0, -1.0, 1.0])
    matrix[0, 3], matrix[2, 3] = shape[0] - 1, shape[2] - 1
    return matrix


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.int64])
def test_an_array_with_its_spacing(
    expected: Segmentation, head: nibabel.Nifti1Image, segmenter: parotid_seg.Segmenter, dtype: type[np.number]
) -> None:
    """(D, H, W): feet to head, front to back, right to left, as the image's RAS axes say."""
    ras = nibabel.as_closest_canonical(head)
    array = np.asarray(ras.dataobj)[::-1, ::-1].transpose(2, 1, 0).astype(dtype)
    found = segmenter(array, spacing_mm=head.header.get_zooms()[::-1])
    assert found.mask.shape == array.shape
    mask = np.asarray(nibabel.as_closest_canonical(nibabel.Nifti1Image(expected.mask, head.affine)).dataobj)
    np.testing.assert_array_equal(found.mask, mask[::-1, ::-1].transpose(2, 1, 0))
    assert found.volumes_ml == pytest.approx(expected.volumes_ml, rel=1e-4)
    left, right = (np.argwhere(found.mask == value)[:, 2].mean() for value in (1, 2))
    assert left > right, "columns run to the patient's left"


def test_the_model_stays_loaded(
    monkeypatch: pytest.MonkeyPatch, expected: Segmentation, head: nibabel.Nifti1Image
) -> None:
    loaded: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        loaded.append(arguments)
        return load_backend(*arguments, **options)

    monkeypatch.setattr(api, "load_backend", load)
    api._loaded.cache_clear()
    for model in (None, "packaged"):
        found = parotid_seg.segment(head, model=model, backend="onnxruntime")
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert len(loaded) == 1
    api._loaded.cache_clear()


def test_a_replaced_model_is_loaded_again(tmp_path: Path, expected: Segmentation, head: nibabel.Nifti1Image) -> None:
    file = tmp_path / "m.onnx"
    shutil.copy(DEFAULT_MODEL, file)
    api._loaded.cache_clear()
    for _ in range(2):
        found = parotid_seg.segment(head, model=file, backend="onnxruntime")
        np.testing.assert_array_equal(found.mask, expected.mask)
    assert api._loaded.cache_info().hits == 1
    file.write_text("no")
    with pytest.raises(ModelError, match="not an ONNX model"):
        parotid_seg.segment(head, model=file, backend="onnxruntime")
    api._loaded.cache_clear()


def test_test_time_augmentation_tells_how_certain_each_gland_is(
    expected: Segmentation, head: nibabel.Nifti1Image
) -> None:
    found = parotid_seg.Segmenter(backend="onnxruntime", tta=True)(head)
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert set(found.agreement) == set(expected.volumes_ml)
    assert all(0.8 < dsc < 1 for dsc in found.agreement.values())
    assert expected.agreement == {}


def test_batch_size_changes_nothing(expected: Segmentation, head: nibabel.Nifti1Image) -> None:
    found = parotid_seg.Segmenter(backend="onnxruntime", batch_size=3)(head)
    assert dice(found.mask > 0, expected.mask > 0) > 0.999


@pytest.mark.parametrize(
    ("scan", "spacing", "error", "words"),
    [
        (np.zeros((20, 30)), (3, 1, 1), InputError, "expected numbers"),
        (np.zeros((20, 30, 30), complex), (3, 1, 1), InputError, "expected numbers"),
        (np.zeros((20, 30, 30)), None, InputError, "spacing_mm: found None"),
        (np.zeros((20, 30, 30)), (3, 1), InputError, "spacing_mm"),
        (np.zeros((20, 30, 30)), (3, 1, 1), ScanError, "every voxel has the value 0"),
        (np.full((20, 30, 30), 40) + np.arange(30), (3, 0, 1), InputError, "spacing_mm: found"),
        (np.full((20, 30, 30), 40) + np.arange(30), (3, 1, 1), ScanError, "not HU"),
        (np.zeros((2, 20, 30, 30)) + np.arange(30), (3, 1, 1), ScanError, "channels: found 2, expected 1"),
        (np.full((20, 30, 30), 40) + np.arange(30), ("3", 1, 1), InputError, "spacing_mm: found"),
        (
            np.full((20, 30, 30), 2**32) + np.arange(30),
            (3, 1, 1),
            InputError,
            "found values from 4294967296 to 42949673",
        ),
        (np.ma.masked_less(np.zeros((20, 30, 30)) + np.arange(30), 5), (3, 1, 1), InputError, "masked array"),
        (torch.zeros((20, 30, 30), requires_grad=True), (3, 1, 1), InputError, "requires grad"),
        (torch.zeros((20, 30, 30), dtype=torch.bfloat16), (3, 1, 1), InputError, "BFloat16"),
        ([], None, InputError, "found an array of shape"),
        ([[[1, 2]], [[1]]], (3, 1, 1), InputError, "scan: setting an array element with a sequence"),
        (np.zeros((20, 30, 30)), 3.0, InputError, "spacing_mm: found 3.0, expected"),
    ],
)
def test_what_cannot_be_segmented(
    segmenter: parotid_seg.Segmenter,
    scan: NDArray[Any],
    spacing: tuple[int, ...] | None,
    error: type[ParotidSegError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        segmenter(scan, spacing_mm=spacing)


def test_a_spacing_for_an_image_and_channels_apart(segmenter: parotid_seg.Segmenter, head: nibabel.Nifti1Image) -> None:
    with pytest.raises(InputError, match="which has its own"):
        segmenter(head, spacing_mm=(1, 1, 1))
    moved = head.affine.copy()
    moved[0, 3] += 5
    with pytest.raises(InputError, match="not lie on the same voxels"):
        segmenter([head, nibabel.Nifti1Image(np.asarray(head.dataobj), moved)])


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_size_that_is_none(size: Any) -> None:
    with pytest.raises(OptionError, match=f"batch_size: found {size}, expected a whole number of at least 1"):
        parotid_seg.Segmenter(backend="onnxruntime", batch_size=size)


def test_the_cpu_in_place_of_a_gpu_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = Gpu("NVIDIA Test", (8, 9), "13.0")
    for module in (api, load):
        monkeypatch.setattr(module, "find_gpu", lambda index=0: gpu if index == 0 else None)
    parotid_seg.Segmenter(backend="onnxruntime")
    (record,) = (each for each in caplog.records if "is not used, but the CPU" in each.message)
    assert (record.levelname, record.message.startswith("NVIDIA Test")) == ("WARNING", True)


def test_a_model_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("no")
    with pytest.raises(ModelError, match="not an ONNX model"):
        parotid_seg.Segmenter(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="found a folder"):  # not the packaged model
        parotid_seg.Segmenter("")


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, parotid_seg; print([m for m in ('numpy', 'onnxruntime', 'nibabel') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
