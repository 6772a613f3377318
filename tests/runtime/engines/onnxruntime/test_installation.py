"""Environments with both onnxruntime and onnxruntime-gpu: those that work, and those that are broken."""

import base64
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from parotid_seg.errors import ParotidSegError
from parotid_seg.runtime.engines.onnxruntime.cpu import check_installation

CPU = {"__init__.py": b"cpu", "capi/state.so": b"for the CPU only", "tools/only_cpu.py": b"x"}
GPU = {"__init__.py": b"gpu", "capi/state.so": b"for CUDA as well", "capi/cuda.so": b"kernels"}

Install = Callable[[str, dict[str, bytes]], None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, the first that Python looks at."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "onnxruntime" / "__init__.py"))
    return tmp_path


def install(site: Path, package: str, files: dict[str, bytes]) -> None:
    """Unpack a package over what is there, as pip does."""
    record = []
    for name, content in files.items():
        path = site / "onnxruntime" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record.append(f"onnxruntime/{name},sha256={digest},{len(content)}")
    info = site / f"{package.replace('-', '_')}-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2.3\n")
    (info / "RECORD").write_text("\n".join([*record, f"{info.name}/RECORD,,"]))
    importlib.invalidate_caches()


@pytest.mark.parametrize("order", [("onnxruntime", "onnxruntime-gpu"), ("onnxruntime-gpu", "onnxruntime")])
def test_the_one_unpacked_last_works(site: Path, order: tuple[str, str]) -> None:
    for package in order:
        install(site, package, GPU if package == "onnxruntime-gpu" else CPU)
    check_installation()


@pytest.mark.parametrize("name", ["capi/state.so", "capi/cuda.so", "__init__.py"])
@pytest.mark.parametrize("content", [None, b"for the CPU too."])
def test_one_whose_files_were_removed_or_replaced_is_refused(site: Path, name: str, content: bytes | None) -> None:
    install(site, "onnxruntime", CPU)
    install(site, "onnxruntime-gpu", GPU)
    path = site / "onnxruntime" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ParotidSegError, match=r"overwritten each other's files; keep one: .*onnxruntime-gpu==1\.2\.3"):
        check_installation()


def test_a_whole_one_that_is_not_imported_does_not_count(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "onnxruntime", CPU)
    install(site, "onnxruntime-gpu", GPU)
    monkeypatch.setattr(onnxruntime, "__file__", str(site / "elsewhere" / "__init__.py"))
    with pytest.raises(ParotidSegError):
        check_installation()


def test_one_alone_is_not_read(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    install(site, "onnxruntime", CPU)
    (site / "onnxruntime" / "__init__.py").unlink()
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    check_installation()
