"""What a run writes and says, as it is shown to people: it changes only together with tests/snapshots."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import nibabel
import numpy as np
import pytest

from parotid_seg.commands.terminal import outcome_text
from parotid_seg.models import example_folder
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import Outcome, infer_at
from parotid_seg.runtime.report.results import read_results
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.scan.chunks import CroppedScan
from parotid_seg.scan.nifti import read_nifti
from tests.calibrations import BOTH
from tests.command_line import Run
from tests.dicom_series import ct_voxels, write_series
from tests.golden import MASK
from tests.runtime.report.drawn import Here, drawn_voxels, write

COMMANDS = (
    *("infer", "inspect", "evaluate", "commission", "listen", "dataset", "train", "export", "bench", "bench compare"),
    "version",
)


def masked(text: str, folder: Path) -> str:
    """A text without what differs between runs, machines and versions of packages, and nothing else of it.

    These are: folders of the test, hashes, times of day, seconds, versions of packages, the machine and its cores,
    and the bytes of pictures.
    """
    changes: dict[str, str | Callable[[re.Match[str]], str]] = {
        re.escape(str(folder)): "/FOLDER",
        r"data:image/webp;base64,[A-Za-z0-9+/=]+": "data:image/webp;base64,PICTURE",
        r"sha256-[A-Za-z0-9+/]{43}=": "sha256-HASH",
        r"\b[0-9a-f]{64}\b": "HASH",
        r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00)?": "TIME",
        r"\(\d+\.\d s\)": "(SECONDS)",
        r'(data-label="Seconds" data-value=")[^"]+(" class="number">)[^<]+': r"\1SECONDS\2SECONDS",
        r"(<dt>Seconds</dt><dd>)[^<]+": r"\1SECONDS",
        r'("(?:read|segment|write)": )[0-9.e-]+': r"\1SECONDS",
        r'("[0-9.e-]+",){3}("drawn")': r'"SECONDS","SECONDS","SECONDS",\2',
        r'"(versions|machine)": \{[^}]+\}': r'"\1": {}',
        r"Versions:\s[^<]+": "Versions.",
        r"<(style|script)>.*?</\1>": r"<\1></\1>",
    }
    for pattern, instead in changes.items():
        text = re.sub(pattern, instead, text, flags=re.DOTALL)
    return text


class Example(Here):
    """A calibrated model that gives the example scan the labels of `tests/golden/mask.nii.gz`."""

    contract = replace(Here.contract, calibrations=(BOTH,))

    def labelled(self, covered: CroppedScan) -> Prediction:
        scan = read_nifti(next((example_folder() / "imagesTr").glob("*.nii.gz")))
        labels = scan.volume.orientation.to_canonical(np.asarray(nibabel.load(MASK).dataobj))
        return Prediction(np.ascontiguousarray(labels[:, covered.rows, covered.columns]), {}, 0.0)


class Mixed(Here):
    """A model that is not calibrated, and is sure of both glands."""

    agreement: ClassVar[dict[str, float]] = {"parotid_left": 0.97, "parotid_right": 0.98}


def run(site: Example | Mixed, scans: Path, out: Path) -> str:
    """Do a folder of scans, and give what the terminal shows of it."""
    said: list[str] = []

    def progress(outcome: Outcome) -> None:
        said.append(outcome.entry.failure if outcome.status == "failed" else outcome_text(outcome))

    summary = infer_at(site, [scans], out, InferOptions(), model_name="drawn.onnx", say=said.append, progress=progress)
    return "\n".join([*said, str(summary), ""])


@pytest.fixture(scope="module")
def example_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("example")
    scans = example_folder() / "imagesTr"
    return scans.parent.parent, folder / "out", run(Example(), scans, folder / "out")


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A scan that fails, some that are flagged, one that was done before, a DICOM series, and one that is no scan."""
    folder = tmp_path_factory.mktemp("mixed")
    scans = folder / "scans"
    (scans / "ct").mkdir(parents=True)
    write(scans / "before.nii.gz")
    run(Mixed(), scans / "before.nii.gz", folder / "out")
    write(scans / "good.nii.gz")
    write(scans / "swapped.nii.gz", left=(10, 18, 8), right=(10, 18, 30))
    write(scans / "cut.nii.gz", left=(0, 18, 30))
    write(scans / "unequal.nii.gz", size=(7, 5))
    (scans / "broken.nii.gz").write_bytes(b"no image")
    affine = np.array([[0, 0, 5.0, 0], [0, 5.0, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    write_series(scans / "ct", drawn_voxels(), affine)
    write_series(scans / "topogram", ct_voxels((3, 16, 16)))
    return folder, folder / "out", run(Mixed(), scans, folder / "out")


@pytest.mark.parametrize("name", ["report.html", "results.json", "summary.csv", "run.json"])
@pytest.mark.parametrize("which", ["example", "mixed"])
def test_files(
    which: str, name: str, snapshot: Callable[[str, str | Path], None], request: pytest.FixtureRequest
) -> None:
    folder, out, _ = request.getfixturevalue(f"{which}_run")
    text = (out / name).read_bytes().decode("utf-8").replace("\r\n", "\n")
    snapshot(masked(masked(text, out.parent), folder), f"{which}/{name}")


@pytest.mark.parametrize("which", ["example", "mixed"])
def test_terminal(which: str, snapshot: Callable[[str, str | Path], None], request: pytest.FixtureRequest) -> None:
    folder, out, said = request.getfixturevalue(f"{which}_run")
    snapshot(masked(masked(said, out.parent), folder), f"{which}/terminal.txt")


def test_every_source_is_a_path_that_exists(mixed_run: tuple[Path, Path, str]) -> None:
    _, out, _ = mixed_run
    cases = read_results(out / "results.json").cases
    assert {case.status for case in cases} == {"done", "failed"}
    assert all(Path(case.scan.source).exists() for case in cases)
    assert len({case.scan.series for case in cases}) == 2, "files, and the DICOM series"


def test_the_right_gland_comes_first_for_readers_and_files_have_the_order_of_the_labels(
    mixed_run: tuple[Path, Path, str],
) -> None:
    _, out, said = mixed_run
    page = (out / "report.html").read_text()
    for text in (
        said[said.index("[1/7]") :],
        page[page.index("<thead>") : page.index("</thead>")],
        *re.findall(r'<table class="glands">.*?</table>', page, re.DOTALL),
        "".join(re.findall(r"<figcaption>.*?</figcaption>", page)[:2]),
    ):
        assert text.index("right parotid") < text.index("left parotid"), text
    heads = (out / "summary.csv").read_text().splitlines()[0]
    assert heads.index("left_ml") < heads.index("right_ml")
    structures = json.loads((out / "results.json").read_text())["cases"][-1]["structures"]
    assert [each["name"] for each in structures] == ["parotid_left", "parotid_right"]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(
    name: str, command: Run, snapshot: Callable[[str, str | Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = command(*name.split(), "--help")
    assert done.returncode == 0
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    snapshot("\n".join(lines) + "\n", f"help/{name.replace(' ', '-') or 'parotid-seg'}.txt")
