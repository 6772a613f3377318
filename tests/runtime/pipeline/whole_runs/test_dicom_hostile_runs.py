"""Runs on files that mean ill: each costs itself a line, and nothing but results in the output folder is written."""

import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.pipeline import worker_process
from tests.dicom_example import every_text, few_slices, run, write_image
from tests.dicom_series import ct_voxels, lay, write_series
from tests.small_files import summary_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # pydicom's, over what is wrong here on purpose
]
pytest.importorskip("jpeg_ls")
pytest.importorskip("openjpeg")
EVIL = "../../up/<script>alert('hit')</script><img src=x onerror=alert('hit')>\x1b[31m\u202egnp\x07\0=1+1"
TEXTS = {
    **dict.fromkeys(("PN", "LO", "SH", "ST", "LT", "UT", "UC"), EVIL),
    **dict.fromkeys(("CS", "AE", "UR"), "../..\0/ETC/HIT"),
    "DA": "/etc/hit",
}
BAD = ("huge", "long", "pixels", "cut", "garbage", "bomb")
FOLDER = "<img src=x onerror=alert('hit')>\n\x1b[31m\u202e\"&;$(touch hit)"
"""A folder's name."""
CAP = 4 << 30
"""Bytes of address space that a process gets."""
HUGE = 4096
"""Rows and columns of an image that is a few thousand bytes in its file."""


def evil(_: object, dataset: pydicom.dataset.Dataset) -> None:
    for element in every_text(TEXTS):
        dataset[element.tag] = element


def bomb(folder: Path) -> None:
    """So many large images, each a few thousand bytes long, that they are gigabytes in memory."""
    (path,) = write_series(
        folder, np.zeros((1, HUGE, HUGE), np.int16), lay((1, 0.1, 0.1)), transfer_syntax=JPEGLSLossless
    )
    dataset = pydicom.dcmread(path)
    assert path.stat().st_size < 100_000
    path.unlink()
    for index in range(46):
        dataset.SOPInstanceUID = f"1.2.3.{index}"
        dataset.ImagePositionPatient = [0, 0, index]
        dataset.save_as(folder / f"{index}.dcm")


def write_all(folder: Path, image: nibabel.Nifti1Image) -> None:
    """Files of all sorts; the names of their folders are what is wrong with them."""
    air = ct_voxels((8, 32, 36))
    write_image(folder / FOLDER, image, change=evil)
    for path in write_series(folder / "huge", air):
        dataset = pydicom.dcmread(path)
        dataset.Rows = dataset.Columns = 65535
        dataset.save_as(path)
    for path in write_series(folder / "long", air)[:1]:
        content = bytearray(path.read_bytes())
        at = content.index(b"\x10\x00\x10\x00PN") + 6
        content[at - 2 : at + 6] = b"UT\0\0" + (0x7FFFFFF0).to_bytes(4, "little")
        path.write_bytes(content)
    for path in write_series(folder / "pixels", air)[:1]:
        content = bytearray(path.read_bytes())
        at = content.index(b"\xe0\x7f\x10\x00OW\0\0") + 8
        content[at : at + 4] = (0x7FFFFFF0).to_bytes(4, "little")
        path.write_bytes(content)
    for path in write_series(folder / "cut", air)[3:4]:
        path.write_bytes(path.read_bytes()[:-700])
    for path in write_series(folder / "garbage", air, transfer_syntax=JPEG2000Lossless)[5:6]:
        content = bytearray(path.read_bytes())
        at = content.index(b"\xff\x93", 1000)  # where the data of a tile begin
        content[at + 2 : -20] = np.random.default_rng(0).bytes(len(content) - at - 22)
        path.write_bytes(content)
    bomb(folder / "bomb")


def capped(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    def cap() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (CAP, CAP))

    return subprocess.run(
        [sys.executable, "-m", "parotid_seg", *map(str, words)],
        capture_output=True,
        timeout=300,
        check=False,
        cwd=folder,
        preexec_fn=cap,
    )


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not path.is_relative_to(folder / "out")}


@pytest.fixture(scope="module")
def hostile(
    head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[Path, int], subprocess.CompletedProcess[bytes]]:
    folder = tmp_path_factory.mktemp("hostile")
    write_all(folder / "scans", few_slices(head, 4))
    before = tree(folder)
    formats = [word for name in ("nifti", "rtstruct", "seg", "nrrd") for word in ("--format", name)]
    words: tuple[str | Path, ...] = (
        "infer",
        folder / "scans",
        "--out",
        folder / "out",
        "--backend",
        "onnxruntime",
        "--identify",
        *formats,
    )
    done = capped(folder, *words)
    return folder, before, done


def lines(text: bytes) -> list[str]:
    """Lines of which none has anything in it that moves the cursor or turns letters round."""
    told = text.decode("utf-8").split("\n")
    assert all(line.isprintable() for line in told), told
    return [line for line in told if line]


def test_each_costs_itself_one_line_and_the_good_one_is_done(
    hostile: tuple[Path, dict[Path, int], subprocess.CompletedProcess[bytes]],
) -> None:
    folder, _, done = hostile
    assert done.returncode == 3, done.stderr
    told = lines(done.stderr)
    costs = {name: sum(str(folder / "scans" / name) in line for line in told) for name in BAD}
    assert costs == {**dict.fromkeys(BAD, 1), "long": 2}, "of the long one its file and its series"
    assert len(told) == sum(costs.values())
    refused = "reading it would take 5152 MB of memory, expected at most 768 MB"
    assert any("bomb" in line and refused in line for line in told), told
    assert b"Traceback" not in done.stderr
    assert any("1 done, 0 done before, 7 failed" in line for line in lines(done.stdout))


def test_nothing_is_written_but_results(
    hostile: tuple[Path, dict[Path, int], subprocess.CompletedProcess[bytes]],
) -> None:
    folder, before, _ = hostile
    assert tree(folder) == before
    names = {path.name for path in (folder / "out").iterdir()}
    rest = {
        ".lock",
        ".written.json",
        "pictures",
        "journal.jsonl",
        "run.json",
        "summary.csv",
        "report.html",
        "results.json",
        "itk-snap-labels.txt",
    }
    assert names - rest == {f"{FOLDER}{ending}" for ending in (".nii.gz", ".rtstruct.dcm", ".seg.dcm", ".seg.nrrd")}
    assert not [path for path in (folder / "out").rglob("*") if path.is_symlink()]


class Parsed(HTMLParser):
    """The tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_runs_in_the_report(hostile: tuple[Path, dict[Path, int], subprocess.CompletedProcess[bytes]]) -> None:
    folder, _, _ = hostile
    text = (folder / "out" / "report.html").read_text("ascii")
    tags = Parsed(text).tags
    assert "alert(&#39;hit&#39;)" in text, "the patient's name is shown"
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert {tag for tag, _ in tags}.isdisjoint({"iframe", "object", "embed", "link", "base", "form"})
    assert {tag for tag, _ in tags}.isdisjoint({"foreignobject", "animate", "set"}), "an SVG only shows parts"
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        picture = "data:image/webp;base64,"
        assert (attributes.get("href") or "#").startswith(picture if tag == "image" else ("#", "./"))
        assert (attributes.get("src") or picture).startswith(picture)
    (row,) = (row for row in summary_rows(folder / "out") if row["status"] == "done")
    assert row["patient"].isprintable()
    assert row["patient"].startswith("../../up/<script>")


def test_inspect_tells_one_line_a_fact_whatever_the_size(
    hostile: tuple[Path, dict[Path, int], subprocess.CompletedProcess[bytes]],
) -> None:
    folder, _, _ = hostile
    done = capped(folder, "inspect", folder / "scans")
    assert done.returncode == 0, done.stderr
    told = lines(done.stdout)
    assert any("46 slices of 4096 x 4096 voxels" in line for line in told)
    assert any("8 slices of 32 x 36 voxels" in line and "garbage" in line for line in told), "it looks as if of use"
    assert not done.stderr


def test_a_library_that_ends_the_process_costs_its_case_only(
    model: Backend, head: nibabel.Nifti1Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C++ codecs may do that, over files nobody has seen yet."""
    image = few_slices(head)
    for name in ("fatal", "good"):
        write_image(tmp_path / "scans" / name, image)
    program = (
        "import os; from parotid_seg.dicom.read.frames import Frames\n"
        "from parotid_seg.runtime.pipeline.worker import main\n"
        "read = Frames.of\n"
        "Frames.of = lambda self, file, _: os.abort() if file.path.parent.name == 'fatal' else read(self, file, _)\n"
        "main()"
    )
    monkeypatch.setattr(worker_process, "FORKS", False)
    monkeypatch.setattr(worker_process, "command_of", lambda _: [sys.executable, "-c", program])
    ran = run(model, tmp_path / "scans", tmp_path / "out")
    assert ran.statuses == {"fatal": "failed", "good": "done"}
    assert ran.summary.exit_status == 3
    (reason,) = ran.errors
    assert str(tmp_path / "scans" / "fatal") in reason
    assert "tried twice: its process was ended by SIGABRT" in reason
