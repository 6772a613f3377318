"""What a scan's files say about the patient gets nowhere but into DICOM objects, and with --identify into the summary
and the report."""

import gzip
import io
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from parotid_seg.dicom.read.file import ATTRIBUTES
from parotid_seg.runtime.formats.mask_formats import FORMATS
from parotid_seg.runtime.report.identities import PatientIdentity
from parotid_seg.runtime.report.results import read_results
from tests.command_line import in_process
from tests.dicom_example import every_text, few_slices, write_image
from tests.dicom_series import ct_voxels, lay, write_series
from tests.small_files import summary_rows

pytestmark = pytest.mark.slow

MARK, BORN = "Zqmarker", "19310207"
TEXTS = {
    "PN": f"{MARK}^Zoe=Zq\u5f20={MARK}",
    "LO": f"{MARK} of a long string",
    "SH": MARK,
    "ST": f"{MARK} of\r\ntwo lines",
    "LT": f"{MARK} of\r\ntwo lines",
    "UT": f"{MARK} of\r\ntwo lines",
    "UC": f"{MARK} of unlimited characters",
    "UR": f"http://{MARK}.invalid/",
    "CS": MARK.upper(),
    "AE": MARK,
    "DA": BORN,
    "DT": f"{BORN}120000",
}
"""Something to be found again, for each value representation that holds text."""
PROMISED = {"summary.csv", "report.html", "results.json"}
"""Files that tell the patient with --identify."""
SHOWN = (MARK.casefold(), BORN, "1931-02-07")


def marked(_: object, dataset: Dataset) -> None:
    """Put marks everywhere: into the file's own attributes, items of items and private ones."""
    inner, outer = every_text(TEXTS), every_text(TEXTS)
    for element in inner:
        dataset[element.tag] = element
    outer.RequestedProcedureCodeSequence = Sequence([inner])
    dataset.RequestAttributesSequence = Sequence([outer])
    dataset.OtherPatientIDsSequence = Sequence([inner])
    block = dataset.private_block(0x0009, MARK, create=True)
    for element, (vr, text) in enumerate(TEXTS.items()):
        block.add_new(element, vr, text)
    block.add_new(0x80, "SQ", Sequence([inner]))
    dataset.PatientBirthDate = BORN


def run(folder: Path, *words: Path | str) -> subprocess.CompletedProcess[str]:
    """A command, with its own places for temporary files and for what is kept."""
    with pytest.MonkeyPatch.context() as patch:
        for name, place in (("TMPDIR", folder / "tmp"), ("XDG_CACHE_HOME", folder / "cache")):
            place.mkdir(exist_ok=True)
            patch.setenv(name, str(place))
        patch.setattr(tempfile, "tempdir", None)  # it is looked up again
        patch.chdir(folder)
        return in_process(*words)


def contents(path: Path) -> Iterator[bytes]:
    """All that a file holds, what is compressed in it, too."""
    content = path.read_bytes()
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    if content.startswith(b"NRRD"):
        yield gzip.decompress(content.partition(b"\n\n")[2])
    if path.suffix in (".png", ".webp"):
        with Image.open(io.BytesIO(content)) as image:
            yield repr((image.info, dict(image.getexif()))).encode()


def tells(content: bytes) -> bool:
    """Whether some bytes tell of the patient, in whatever encoding."""
    forms = (content, content.replace(b"\0", b""))
    return any(word.encode() in form.lower() for form in forms for word in SHOWN)


def tellers(*folders: Path) -> set[str]:
    """Files that tell of the patient, by what is in them or by their name; DICOM objects may."""
    found = set()
    for folder in folders:
        for path in folder.rglob("*"):
            assert not tells(str(path).encode())
            if path.is_file() and not path.name.endswith(".dcm") and any(map(tells, contents(path))):
                found.add(path.name)
    return found


def test_the_search_finds_what_is_packed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"x{MARK.lower()}x")
    (tmp_path / "b.txt").write_text(MARK, encoding="utf-16")
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(f"a {MARK.upper()}".encode()))
    (tmp_path / "d.seg.nrrd").write_bytes(b"NRRD0004\ntype: uint8\n\n" + gzip.compress(BORN.encode()))
    exif, text = Image.Exif(), PngInfo()
    exif[Base.ImageDescription] = MARK
    text.add_text("Title", MARK, zip=True)
    Image.new("L", (8, 8)).save(tmp_path / "e.webp", exif=exif)
    Image.new("L", (8, 8)).save(tmp_path / "f.png", pnginfo=text)
    (tmp_path / "g.txt").write_text("nobody")
    assert tellers(tmp_path) == {"a.csv", "b.txt", "c.nii.gz", "d.seg.nrrd", "e.webp", "f.png"}


@pytest.fixture(scope="module")
def place(
    head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a marked series in all formats, report and pictures."""
    folder = tmp_path_factory.mktemp("marked")
    write_image(folder / "ct", few_slices(head, 4), change=marked)
    done = infer(folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def infer(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    formats = [word for name in FORMATS for word in ("--format", name)]
    return run(folder, "infer", folder / "ct", "--out", folder / "out", "--backend", "onnxruntime", *formats, *words)


def test_the_marks_are_in_the_scan(place: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = place
    content = next((folder / "ct").iterdir()).read_bytes()
    assert content.lower().count(MARK.casefold().encode()) > 3000
    assert all(tells((folder / "out" / f"ct{FORMATS[name].ending}").read_bytes()) for name in ("rtstruct", "seg"))


def test_no_result_but_dicom_objects_tells_of_the_patient(place: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = place
    kinds = {path.suffix for path in (folder / "out").rglob("*") if path.is_file()}
    assert kinds >= {".gz", ".nrrd", ".dcm", ".png", ".webp", ".html", ".json", ".csv", ".jsonl", ".txt"}
    assert tellers(folder / "out", folder / "tmp", folder / "cache") == set()
    assert not tells((done.stdout + done.stderr).encode())
    assert "[1/1] ct: " in done.stdout


def test_neither_does_inspect(place: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = place
    for path in (folder / "ct", next((folder / "ct").iterdir())):
        told = run(folder, "inspect", path)
        assert told.returncode == 0, told.stderr
        assert "4 slices" in told.stdout
        assert not tells((told.stdout + told.stderr).encode())


def test_identify_tells_it_where_it_says_and_nowhere_else(place: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = place
    done = infer(folder, "--identify")
    assert "1 done before" in done.stdout, "nothing is segmented again"
    assert not tells((done.stdout + done.stderr).encode())
    assert tellers(folder / "out", folder / "tmp", folder / "cache") == PROMISED
    (row,) = summary_rows(folder / "out")
    assert row["patient"] == f"{TEXTS['PN']}, ID {TEXTS['LO']}, born 1931-02-07"
    page = (folder / "out" / "report.html").read_text("utf-8")
    assert f"<dt>Patient</dt><dd><bdi>{MARK}^Zoe=Zq&#24352;={MARK}, ID {TEXTS['LO']}, born 1931-02-07</bdi>" in page
    assert "says who the patients are (--identify)" in page
    (case,) = read_results(folder / "out" / "results.json").cases
    assert case.patient == PatientIdentity(TEXTS["PN"], TEXTS["LO"], "1931-02-07")
    infer(folder)
    assert tellers(folder / "out") == set(), "the next run does not identify"


NUMBERS = sorted({*ATTRIBUTES, "BitsAllocated", "PixelData"} - {"SOPClassUID"})


def test_no_message_quotes_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A series for each attribute that is read, in which that attribute holds a mark instead of what belongs there."""
    air = np.clip(ct_voxels((3, 16, 16)), -1000, -400)

    def spoil(keyword: str) -> Callable[..., None]:
        def change(index: object, dataset: Dataset) -> None:
            dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = TEXTS["PN"], MARK, BORN
            dataset["PixelData"].VR = "OW"
            if keyword in dataset:
                del dataset[keyword]
            dataset.add_new(keyword, "UT", MARK)

        return change

    for keyword in NUMBERS:
        write_series(tmp_path / "scans" / keyword.lower(), air, lay((8, 4, 4)), change=spoil(keyword))
    done = run(tmp_path, "infer", tmp_path / "scans", "--out", tmp_path / "out", "--backend", "onnxruntime")
    assert done.returncode == 1, "no scan shows a patient"
    assert not tells((done.stdout + done.stderr).encode())
    assert "Traceback" not in done.stderr
    assert tellers(tmp_path / "out", tmp_path / "tmp", tmp_path / "cache") == set()
    told = run(tmp_path, "inspect", tmp_path / "scans")
    assert not tells((told.stdout + told.stderr).encode())
    for line in done.stderr.splitlines():
        assert str(tmp_path / "scans") in line, "one line each"
