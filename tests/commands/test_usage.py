"""Every command: a wrong value, or a file that is not there, is one line and exit status 2, however late it shows."""

from pathlib import Path

import pytest

from parotid_seg.models import example_folder
from tests.command_line import Run

pytestmark = pytest.mark.slow


SCAN = example_folder() / "imagesTr"
LABELS = example_folder() / "labelsTr"
HERE = ("--backend", "onnxruntime", "--device", "cpu")
INFER = ("infer", SCAN, "--out", "OUT")
DATASET = ("dataset", "FOLDER", "--out", "OUT")
TRAIN = ("train", example_folder(), "--out", "OUT")
EXPORT = ("export", "CHECKPOINT", "--out", "OUT/m.onnx")
BENCH = ("bench", "--out", "OUT")
COMMISSION = ("commission", example_folder(), "--out", "OUT")

VALUES = [
    (*INFER, "--search", "fast"),
    (*INFER, "--batch-size", "0"),
    (*INFER, "--batch-size", "-3"),
    (*INFER, "--workers", "0"),
    (*INFER, "--workers", "-1"),
    (*INFER, "--device", "gpu"),
    (*INFER, "--device", "cuda:x"),
    (*INFER, "--device", ""),
    (*INFER, "--backend", "torch"),
    (*INFER, "--backend", "openvino", "--device", "cuda"),
    (*INFER, "--format", "dicom"),
    (*INFER, "--format", "nifti", "--format", "nifti"),
    (*INFER, "--append", "GONE"),
    (*INFER, "--append", "GONE", "--format", "rtstruct"),
    (*INFER, "--model", "GONE"),
    (*INFER, "--model", "GONE.engine"),
    (*INFER, "--model", "FOLDER"),
    (*INFER, "--triton", "http://localhost:8001"),
    (*INFER, "--cluster", "a b"),
    ("infer", "GONE", "--out", "OUT", *HERE),
    ("infer", "GONE", "GONE.nii", "--out", "OUT", *HERE),
    ("inspect", "GONE"),
    ("inspect", "GONE.onnx"),
    ("inspect", "GONE.engine"),
    ("inspect", SCAN, "--model", "GONE"),
    ("evaluate", "GONE", LABELS),
    ("evaluate", LABELS, "GONE"),
    ("evaluate", LABELS, LABELS, "--out", LABELS / "pt_206.nii.gz"),
    ("commission", "GONE", "--out", "OUT"),
    (*COMMISSION, "--limits", "GONE.toml"),
    (*COMMISSION, "--earlier", "GONE"),
    (*COMMISSION, "--earlier", "FOLDER"),
    (*COMMISSION, "--dose", "GONE"),
    (*COMMISSION, "--model", "GONE"),
    (*COMMISSION, "--search", "fast"),
    ("dataset", "GONE", "--out", "OUT"),
    ("dataset", "FOLDER", "GONE", "--out", "OUT"),
    (*DATASET, "--labels", ""),
    (*DATASET, "--labels", "parotid_left,parotid_left"),
    (*DATASET, "--labels", "tongue"),
    (*DATASET, "--labels", "ignore,parotid_left"),
    (*DATASET, "--names", "GONE"),
    (*DATASET, "--private", "OUT/private"),
    (*TRAIN, "--preset", "huge"),
    (*TRAIN, "--stages", "segment,contrast"),
    (*TRAIN, "--stages", "all"),
    (*TRAIN, "--transfer", "head"),
    (*TRAIN, "--seed", "-1"),
    (*TRAIN, "--config", "GONE"),
    ("train", "GONE", "--out", "OUT"),
    (*EXPORT, "--precision", "fp8"),
    (*EXPORT, "--weights", "int8"),
    (*EXPORT, "--engine", "onnx"),
    (*EXPORT, "--batch", "0", "1", "1"),
    (*EXPORT, "--batch", "4", "2", "8"),
    ("export", "GONE", "--out", "OUT/m.onnx"),
    ("export", "CHECKPOINT", "--out", "OUT/m.bin"),
    ("export", "CHECKPOINT", "--out", "CHECKPOINT"),
    ("export", "FOLDER", "--out", "OUT/m.onnx"),
    (*BENCH, "--backend", "torch"),
    (*BENCH, "--device", "gpu"),
    (*BENCH, "--batch-sizes", "0"),
    (*BENCH, "--batch-sizes", "1,two"),
    (*BENCH, "--minutes", "0"),
    (*BENCH, "--minutes", "nan"),
    (*BENCH, "--model", "GONE"),
    (*BENCH, "--scans", "GONE"),
    ("bench", "compare", "GONE", "FILE"),
    ("bench", "compare", "FILE", "GONE"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("usage")
    (folder / "empty").mkdir()
    (folder / "file.json").write_text("{}")
    (folder / "best.pt").write_bytes(b"text")
    return {
        "FOLDER": folder / "empty",
        "FILE": folder / "file.json",
        "CHECKPOINT": folder / "best.pt",
        "GONE": folder / "gone",
        "OUT": folder / "out",
    }


def filled(word: object, places: dict[str, Path]) -> str:
    head, slash, tail = str(word).partition("/")
    name, dot, ending = head.partition(".")
    return f"{places[name]}{dot}{ending}{slash}{tail}" if name in places else str(word)


@pytest.mark.parametrize("words", VALUES, ids=lambda words: " ".join(map(str, words)).replace(str(SCAN), "SCAN"))
def test_a_wrong_value_is_exit_2(command: Run, places: dict[str, Path], words: tuple[Path | str, ...]) -> None:
    done = command(*(filled(word, places) for word in words))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    given = [filled(word, places) for word in words[1:]]
    assert any(word in done.stderr for word in given if len(word) > 1), done.stderr
    assert not places["OUT"].exists(), "nothing is made"
    assert done.stdout == "", "nothing is reported before"
