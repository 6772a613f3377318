"""DICOM studies through the command: which are cases, what they are called, and masks on the first series' slices."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from parotid_seg.contract import Contract, Grid
from parotid_seg.runtime.engines.base import INPUTS
from parotid_seg.runtime.pipeline.case_runner import key_of
from parotid_seg.runtime.pipeline.discovery import find_scans, name_cases
from parotid_seg.runtime.pipeline.protocol.messages import WorkerConfig
from parotid_seg.runtime.pipeline.sources import read_scan, voxels_of
from tests.command_line import Run
from tests.dicom_series import TILTED, ct_voxels, lay, write_series
from tests.export.small_model import write_graph
from tests.mr_studies import DIFFUSION, SHAPE, STIR, T1, T2, points_of, write_mr, write_study
from tests.small_files import summary_rows

pytestmark = pytest.mark.slow


CT, MR = ("CT",), ("T1", "T2", "STIR")


def found_in(*folders: Path, channels: tuple[str, ...] = MR) -> tuple[list[list[int | None]], list[str], list[str]]:
    """Numbers of the scans' series, errors, and what is said, without the series' keys."""
    said: list[str] = []
    scans, errors = find_scans(folders, channels, skip=lambda each: said.append(f"not used: {each}"))
    lines = [re.sub(r" \([0-9a-f]{8}[a-z0-9-]*\)", "", str(each)) for each in (*errors, *said)]
    return [[series.number for series in scan] for scan in scans], lines[: len(errors)], lines[len(errors) :]


def names_of(*folders: Path, channels: tuple[str, ...] = MR) -> list[str]:
    scans, errors = find_scans(folders, channels)
    assert not errors
    return [case.name for case in name_cases(scans, taken={})]


def test_a_ct_model_takes_the_ct_of_a_folder_with_both(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(), number=1)
    write_study(tmp_path / "mr")
    scans, errors, said = found_in(tmp_path, channels=CT)
    assert scans == [[1]]
    assert not errors
    assert said == [
        f"not used: {tmp_path}/mr/{name}: MR series {number}: the model takes CT (10 files)"
        for name, number in (("stir", 5), ("t1", 3), ("t2", 4))
    ]
    assert names_of(tmp_path, channels=CT) == ["ct"]


def test_an_mr_model_takes_the_mr_of_a_folder_with_both(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels(), number=1)
    write_study(tmp_path / "mr")
    scans, errors, said = found_in(tmp_path)
    assert scans == [[3, 4, 5]]
    assert not errors
    assert said == [f"not used: {tmp_path}/ct: CT series 1: the model takes T1, T2, STIR (12 files)"]
    assert found_in(tmp_path, channels=("T2",))[0] == [[4]]


def test_a_folder_of_the_other_modality_only_is_an_error_that_says_so(tmp_path: Path) -> None:
    write_mr(tmp_path / "t1", T1)
    scans, (error,), _ = found_in(tmp_path, channels=CT)
    assert not scans
    assert error == (
        f"{tmp_path}: no scan in this folder, expected NIfTI (.nii, .nii.gz, .hdr with .img), NRRD (.nrrd) or DICOM "
        "files; not used: MR series 3: the model takes CT"
    )


def test_series_of_a_study_that_are_named_one_by_one_are_one_case(tmp_path: Path) -> None:
    write_study(tmp_path)
    folders = [tmp_path / name for name in ("stir", "t1", "t2")]
    assert found_in(*folders, tmp_path / "t1") == ([[3, 4, 5]], [], [])
    assert names_of(*folders) == [tmp_path.name]


def test_a_case_is_called_after_the_studys_folder(tmp_path: Path) -> None:
    write_study(tmp_path / "p1" / "mr", study="a")
    write_study(tmp_path / "p2" / "mr", study="b")
    write_study(tmp_path / "p3", study="c")
    for study in "de":
        for number, sequence in enumerate((T1, T2, STIR), start=3):
            write_mr(tmp_path / "both" / f"{study}{number}", sequence, number=number, study=study)
    names = names_of(tmp_path)
    first, second = sorted(name for name in names if name.startswith("both"))
    assert re.fullmatch(r"both_[0-9a-f]{8}", first)
    assert re.fullmatch(r"both_[0-9a-f]{8}", second)
    assert sorted(set(names) - {first, second}) == ["p1_mr", "p2_mr", "p3"]


def test_what_a_scan_takes_of_memory(tmp_path: Path) -> None:
    write_study(tmp_path)
    ((scan,), _) = find_scans([tmp_path], MR)
    assert voxels_of(scan) == 4 * np.prod(SHAPE), "three channels, and the one that is being resampled"
    assert read_scan(scan).volume.voxels.shape == (3, *SHAPE)


def test_another_image_in_any_channel_is_other_work(tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    work = WorkerConfig(tmp_path, Contract(("background", "gland"), MR, (None, None, None), Grid()), ("model",))

    def key() -> str:
        ((scan,), _) = find_scans([tmp_path / "study"], MR)
        return key_of(scan, work)

    keys = {key(), key()}
    assert len(keys) == 1
    for number, (name, sequence) in enumerate({"t1": T1, "t2": T2, "stir": STIR}.items(), start=3):
        write_mr(tmp_path / "study" / name, sequence, phantom=lambda points: np.abs(points[..., 2]), number=number)
        keys.add(key())
    assert len(keys) == 4


# --- through the command, with a model that marks what is bright: 1 in T1, 2 in T2, 3 in STIR

BRIGHT_MM = ((-25.0, 0.0, 0.0), (25.0, 0.0, 0.0), (0.0, 25.0, 0.0))
"""Where each sequence has its bright ball, LPS."""
WIDE = (14, 44, 44)
AXIAL = lay((4.0, 3.0, 3.0), origin=(-64.5, -64.5, -26.0))


def ball(number: int) -> Callable[..., NDArray[Any]]:
    """A body of 300 with a ball of 1000 at one of three places, and 200 at the others."""

    def phantom(points: NDArray[Any]) -> NDArray[Any]:
        body = np.where(np.hypot(points[..., 0], points[..., 1]) < 55, 300.0, 0.0)
        for place, centre in enumerate(BRIGHT_MM):
            body[np.linalg.norm(points - centre, axis=-1) < 16] = 1000.0 if place == number else 200.0
        return body

    return phantom


STEPS: list[tuple[str, list[str], str, dict[str, Any]]] = [
    ("Cast", ["slices"], "raw", {"to": TensorProto.FLOAT}),
    ("Unsqueeze", ["window", "last axis"], "windows", {}),
    ("Gather", ["windows", "zero"], "low", {"axis": 1}),
    ("Gather", ["windows", "one"], "high", {"axis": 1}),
    ("Reshape", ["low", "each channel"], "from", {}),
    ("Reshape", ["high", "each channel"], "to", {}),
    ("Sub", ["to", "from"], "width", {}),
    ("Sub", ["raw", "from"], "above", {}),
    ("Div", ["above", "width"], "seen", {}),
    ("MatMul", ["rows", "seen"], "half way", {}),
    ("Transpose", ["columns"], "columns turned", {"perm": [1, 0]}),
    ("MatMul", ["half way", "columns turned"], "in plane", {}),
    ("Reshape", ["in plane", "flat"], "planes", {}),
    ("Squeeze", ["neighbours", "one axis"], "looks", {}),
    ("MatMul", ["looks", "planes"], "images", {}),
    ("Slice", ["images", "first", "second", "first"], "one image", {}),
    ("Mul", ["one image", "nothing"], "none", {}),
    ("Add", ["none", "half"], "background", {}),
    ("Concat", ["background", "images"], "scores", {"axis": 0}),
    ("MatMul", ["slices_back", "scores"], "by slice", {}),
    ("Reshape", ["by slice", "square"], "maps", {}),
    ("Transpose", ["columns_back"], "back turned", {"perm": [1, 0]}),
    ("MatMul", ["maps", "back turned"], "back half way", {}),
    ("MatMul", ["rows_back", "back half way"], "native", {}),
    ("ArgMax", ["native"], "best", {"axis": 0, "keepdims": 0}),
    ("Cast", ["best"], "labels", {"to": TensorProto.UINT8}),
]


def write_channel_model(path: Path) -> Path:
    """A model whose label is the channel of the highest intensity, if that is above half of the window."""
    grid = Grid(size=32, spacing_mm=4.0, kernel_mm=4.0, offsets_mm=(0.0,))
    channels = len(MR)
    constants = {
        "last axis": np.array([2]),
        "zero": np.array(0),
        "one": np.array(1),
        "one axis": np.array([1]),
        "each channel": np.array([channels, 1, 1, 1]),
        "flat": np.array([channels, -1, grid.size**2]),
        "square": np.array([channels + 1, -1, grid.size, grid.size]),
        "first": np.array([0]),
        "second": np.array([1]),
        "nothing": np.array(0, np.float32),
        "half": np.array(0.5, np.float32),
    }
    sizes: dict[str, tuple[int | str, ...]] = {
        "slices": (channels, "depth", "height", "width"),
        "window": (channels, 2),
        "rows": (grid.size, "height"),
        "columns": (grid.size, "width"),
        "neighbours": ("batch", 1, "depth"),
        "slices_back": ("out", "batch"),
        "rows_back": ("height", grid.size),
        "columns_back": ("width", grid.size),
    }
    assert tuple(sizes) == INPUTS
    contract = Contract(
        labels=("background", "bright T1", "bright T2", "bright STIR"),
        channels=MR,
        windows=(None, None, None),
        grid=grid,
    )
    nodes = [helper.make_node(kind, inputs, [output], **how) for kind, inputs, output, how in STEPS]
    kinds = {name: TensorProto.FLOAT16 if name == "slices" else TensorProto.FLOAT for name in sizes}
    outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, ("out", "height", "width"))]
    shapes = {name: (kinds[name], shape) for name, shape in sizes.items()}
    return write_graph(path, nodes, constants, shapes, outputs, contract)


def test_sequences_on_three_grids_give_one_mask_on_the_first_ones_slices(command: Run, tmp_path: Path) -> None:
    study = tmp_path / "studies" / "p1"
    oblique = lay((4.0, 3.0, 3.0), row=TILTED[0], column=TILTED[1])
    oblique[:3, 3] -= points_of(oblique, (48, 60, 60)).reshape(-1, 3).mean(axis=0)
    coronal = lay((3.0, 2.5, 2.5), row=(1, 0, 0), column=(0, 0, -1), origin=(-64.5, -70.0, 40.0))
    write_mr(study / "a", STIR, oblique, shape=(48, 60, 60), phantom=ball(2), number=5)
    write_mr(study / "b", T1, AXIAL, shape=WIDE, phantom=ball(0), number=3)
    write_mr(study / "c", T2, coronal, shape=(46, 34, 54), phantom=ball(1), number=4)
    write_mr(study / "d", DIFFUSION, AXIAL, shape=WIDE, number=6)
    write_mr(tmp_path / "studies" / "p2" / "t1", T1, study="other", number=3)
    model = write_channel_model(tmp_path / "model.onnx")
    formats = (word for name in ("nifti", "rtstruct", "seg") for word in ("--format", name))
    how = ("--model", model, "--backend", "onnxruntime", "--device", "cpu", "--allow-unverified", *formats)
    done = command("infer", tmp_path / "studies", "--out", tmp_path / "out", *how, "--no-clean-up")
    assert done.returncode == 3, done.stderr
    told = re.sub(r" \([0-9a-f]{8}\)|: study [0-9a-f]{8}", "", done.stderr.strip())
    missing = "no T2 and no STIR series, expected T1, T2, STIR; found T1: MR series 3"
    assert told == f"parotid-seg: {tmp_path}/studies/p2/t1: {missing}"
    assert "MR series 6" in done.stdout
    assert {row["case"]: row["status"] for row in summary_rows(tmp_path / "out")} == {"p1": "done", "": "failed"}
    assert (tmp_path / "out" / "pictures" / "p1.png").stat().st_size > 2000
    mask = np.asarray(nibabel.load(tmp_path / "out" / "p1.nii.gz").dataobj).T
    assert mask.shape == WIDE
    points = points_of(AXIAL, WIDE)
    for label, centre in enumerate(BRIGHT_MM, start=1):
        inside = np.linalg.norm(points - centre, axis=-1) < 16
        dsc = 2 * ((mask == label) & inside).sum() / ((mask == label).sum() + inside.sum())
        assert dsc > 0.85, f"channel {label}"
    of_t1 = {pydicom.dcmread(path).SOPInstanceUID for path in (study / "b").iterdir()}
    structures = pydicom.dcmread(tmp_path / "out" / "p1.rtstruct.dcm")
    (frame,) = structures.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert {each.ReferencedSOPInstanceUID for each in series.ContourImageSequence} == of_t1
    (series,) = pydicom.dcmread(tmp_path / "out" / "p1.seg.dcm").ReferencedSeriesSequence
    assert {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence} <= of_t1
