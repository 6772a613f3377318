"""What the operating system says reaches the user, and the name of a Python class does not."""

import errno
from pathlib import Path

import pytest

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.errors import ScanError, system_reason
from parotid_seg.scan.nifti import read_nifti

REASONS = [
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    (OSError(errno.ESTALE, None), "Stale file handle"),
    (OSError("a library's words"), "the system gave no reason"),
    (OSError(), "the system gave no reason"),
]


@pytest.mark.parametrize(("error", "said"), REASONS)
def test_what_the_system_said(tmp_path: Path, error: OSError, said: str) -> None:
    assert system_reason(error) == said
    with pytest.raises(ScanError, match=rf"a\.dcm: cannot be read \({said}\)"), phi_safe(tmp_path / "a.dcm", "file"):
        raise error


def test_a_nifti_file_that_the_system_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii"
    path.touch()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, None)

    monkeypatch.setattr("parotid_seg.scan.nifti_file.open_input", fail)
    with pytest.raises(ScanError, match=r"a\.nii: .*Input/output error"):
        read_nifti(path)
