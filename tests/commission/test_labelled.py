"""Which patients of a data set are used, and why."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from parotid_seg.commission.labelled import choose
from parotid_seg.errors import InputError, OptionError, ScanError
from tests.commission.data import DESCRIPTION, write_patient


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """p0 and p1 with label maps and p2 without, in imagesTr."""
    for name in ("p0", "p1", "p2"):
        write_patient(tmp_path, name)
    (tmp_path / "labelsTr" / "p2.nii.gz").unlink()
    (tmp_path / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return tmp_path


def split(data: Path, **lists: list[str]) -> None:
    (data / "splits.json").write_text(json.dumps(lists))


def test_all_labelled_patients_without_a_test_list(data: Path) -> None:
    chosen = choose(data)
    assert list(chosen.patients) == ["p0", "p1"]
    assert chosen.why.startswith("all of imagesTr with label maps (2); splits.json names no test patients")
    assert chosen.notes == ("not used, since without a label map: 1 of imagesTr (p2)",)
    assert chosen.patients["p0"].scan == data / "imagesTr" / "p0_0000.nii.gz"
    assert choose(data / "dataset.json") == chosen


def test_label_maps_without_a_scan_are_named(data: Path) -> None:
    scan = data / "imagesTr" / "p1_0000.nii.gz"
    scan.rename(scan.with_name("p1.nii.gz"))
    assert list(choose(data).patients) == ["p0"]
    expected = "not used, since without a scan imagesTr/CASE_0000.nii.gz: 1 of labelsTr (p1)"
    assert expected in choose(data).notes


def test_patients_that_a_model_may_have_seen_are_counted(data: Path) -> None:
    split(data, train=["p0"], validation=[])
    assert choose(data).notes[-1].startswith("in the lists train and validation of splits.json: 1 of them; for a model")


def test_the_test_list_comes_first(data: Path) -> None:
    write_patient(data, "p7", folders=("imagesTs", "labelsTs"))
    assert list(choose(data).patients) == ["p7"]
    assert choose(data).why.startswith("those of imagesTs with label maps (1)")
    split(data, train=["p0"], test=["p7", "p1"])
    chosen = choose(data)
    assert list(chosen.patients) == ["p7", "p1"]
    assert chosen.why == "those in the list test of splits.json (2)"
    assert not any("too good" in note for note in chosen.notes)


def test_a_data_set_without_a_description_is_taken(data: Path) -> None:
    (data / "dataset.json").unlink()
    assert choose(data).channels == ()
    assert list(choose(data).patients) == ["p0", "p1"]


def test_a_copy_of_a_scan_is_no_further_patient(data: Path) -> None:
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        shutil.copy(data / folder / f"p0{ending}", data / folder / f"p5{ending}")
    with pytest.raises(InputError, match="found the same scan for p0 and p5, expected one patient of each"):
        choose(data)


@pytest.mark.parametrize("level", [None, 1], ids=["unpacked", "packed otherwise"])
def test_a_copy_in_another_file_is_no_further_patient(data: Path, level: int | None) -> None:
    for folder, name in (("imagesTr", "_0000.nii"), ("labelsTr", ".nii")):
        content = gzip.decompress((data / folder / f"p0{name}.gz").read_bytes())
        ending = name if level is None else f"{name}.gz"
        (data / folder / f"p5{ending}").write_bytes(content if level is None else gzip.compress(content, level))
    with pytest.raises(InputError, match="found the same scan for p0 and p5, expected one patient of each"):
        choose(data)


def test_scans_that_cannot_be_read_are_left_to_the_run(data: Path) -> None:
    import nibabel
    import numpy as np

    for name in ("p0", "p1"):
        path = data / "imagesTr" / f"{name}_0000.nii.gz"
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.full(image.shape, ord(name[1]), np.int16), image.affine), path)
    assert list(choose(data).patients) == ["p0", "p1"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["p2"], "test: no scan with a label map for p2"),
        (["gone"], "test: no scan with a label map for gone"),
        (["p0", "p0"], "found patients more than once: p0"),
    ],
)
def test_a_wrong_test_list_is_refused(data: Path, names: list[str], reason: str) -> None:
    split(data, test=names)
    with pytest.raises(InputError, match=reason):
        choose(data)


def test_a_test_patient_in_both_folders_is_refused(data: Path) -> None:
    write_patient(data, "p0", folders=("imagesTs", "labelsTs"))
    split(data, test=["p0"])
    with pytest.raises(InputError, match="found p0 in imagesTr and in imagesTs"):
        choose(data)


def test_the_same_scan_twice_is_refused(data: Path) -> None:
    (data / "imagesTr" / "p1_0000.nii.gz").unlink()
    (data / "imagesTr" / "p1_0000.nii.gz").symlink_to(data / "imagesTr" / "p0_0000.nii.gz")
    with pytest.raises(InputError, match="found the same scan for p0 and p1"):
        choose(data)


@pytest.mark.parametrize(("folder", "name"), [("imagesTr", "p1_0000"), ("labelsTr", "p1")])
def test_two_files_of_one_patient_are_refused(data: Path, folder: str, name: str) -> None:
    (data / folder / f"{name}.nii").touch()
    with pytest.raises(InputError, match=rf"found {name}.nii and {name}.nii.gz, expected one file of case p1"):
        choose(data)


def test_a_label_map_of_other_voxels_is_refused_before_anything_runs(data: Path) -> None:
    import nibabel
    import numpy as np

    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 9), np.uint8), np.eye(4)), data / "labelsTr" / "p1.nii.gz")
    with pytest.raises(ScanError, match="not on the voxels of"):
        choose(data)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such folder"):
        choose(tmp_path / "gone")
    with pytest.raises(InputError, match="found no scan with a label map, expected imagesTr/CASE_0000"):
        choose(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({**DESCRIPTION, "channel_names": {"CT": 0}}))
    with pytest.raises(InputError, match=r"channel_names: found .* expected an object"):
        choose(tmp_path)
