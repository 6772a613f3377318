"""Installs a bundle, without a network, into the Python that runs this: a machine's or a virtual environment's.

onnxruntime for the CPU is removed from there before, since onnxruntime-gpu has the same files. CUDA's libraries are
those that torch brings, as onnxruntime looks for them beside itself. OUT/setup.json has what was found: GPU, driver,
versions, providers of onnxruntime, packages that are still missing or older than expected, and what is wrong with the
installation of onnxruntime, as parotid-seg checks it: another one may lie elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = "parotid-seg-bundle.txt"
QUERY = "name,driver_version,compute_cap,memory.total"
MODULES: tuple[str, ...] = (
    *(
        "filelock",
        "highdicom",
        "hypothesis",
        "isal",
        "jinja2",
        "msgspec",
        "nibabel",
        "nrrd",
        "numpy",
        "onnx",
        "onnxruntime.quantization",
    ),
    *("PIL", "pydicom", "pytest", "rich", "scipy", "timm", "torch", "typer"),
)
CHECK = """
import importlib, json, pathlib, sys, tomllib
from importlib import metadata
from packaging.requirements import Requirement
pyproject, *modules = sys.argv[1:]
missing = {}
for name in modules:
    try:
        importlib.import_module(name)
    except Exception as error:
        missing[name] = f"{type(error).__name__}: {error}"[:300]
import onnxruntime
from parotid_seg.runtime.engines.onnxruntime.cpu import check_installation
older = {}
for line in tomllib.loads(pathlib.Path(pyproject).read_text())["project"]["dependencies"]:
    needed = Requirement(line)
    name = "onnxruntime-gpu" if needed.name == "onnxruntime" else needed.name
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        missing[name] = "not installed"
        continue
    if not needed.specifier.contains(version, prereleases=True):
        older[name] = f"found {version}, expected {needed.specifier}"
found = {"onnxruntime": onnxruntime.__version__, "from": onnxruntime.__file__, "missing": missing, "older": older}
found["providers"] = onnxruntime.get_available_providers()
try:
    check_installation()
except Exception as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def read_bundle(folder: Path) -> dict[str, Any]:
    """What a bundle's bundle.json says.

    Raises:
        SystemExit: if a file is missing or damaged, or if it is for another Python.
    """
    try:
        about: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{folder}: no bundle: {error}") from error
    digest = hashlib.sha256()
    for part in about["parts"]:
        if not (folder / part).is_file():
            raise SystemExit(f"{folder / part}: missing, expected {', '.join(about['parts'])}")
        digest.update((folder / part).read_bytes())
    if digest.hexdigest() != about["sha256"]:
        raise SystemExit(f"{folder}: damaged: its files do not have the hash in bundle.json")
    if about["python"] != (found := ".".join(platform.python_version_tuple()[:2])):
        raise SystemExit(f"{folder}: for Python {about['python']}, found {found}")
    return about


def install(folder: Path, about: dict[str, Any], site: Path) -> None:
    """Unpack a bundle, link CUDA's libraries beside it if they are elsewhere, and note its hash there.

    Raises:
        SystemExit: if the folder cannot be written to.
    """
    try:
        site.mkdir(parents=True, exist_ok=True)
        packages = (*site.glob("onnxruntime-*.dist-info"), *site.glob("onnxruntime_gpu-*.dist-info"))
        for old in (site / "onnxruntime", *packages):
            if old.exists():
                shutil.rmtree(old)
        packed = io.BytesIO(b"".join((folder / part).read_bytes() for part in about["parts"]))
        with tarfile.open(fileobj=packed, mode="r:xz") as archive:
            archive.extractall(site, filter="data")
        torch = importlib.util.find_spec("torch")
        libraries = Path(torch.origin).parents[1] / "nvidia" if torch and torch.origin else site / "nvidia"
        if libraries.is_dir() and not (site / "nvidia").exists():
            (site / "nvidia").symlink_to(libraries)
        (site / MARK).write_text(about["sha256"])
    except OSError as error:
        raise SystemExit(
            f"{site}: cannot be written to ({error}); run it with the Python of a virtual environment: "
            "python3 -m venv --system-site-packages DIR"
        ) from error


def is_installed(about: dict[str, Any], site: Path) -> bool:
    """Whether this bundle was installed completely."""
    mark = site / MARK
    return mark.is_file() and mark.read_text() == about["sha256"]


def default_site() -> Path:
    """The folder of packages of this Python."""
    return Path(sysconfig.get_paths()["platlib"])


def machine() -> dict[str, Any]:
    """GPU and driver as nvidia-smi reports them, processors, Python."""
    found = {"python": platform.python_version(), "processors": os.cpu_count(), "gpu": "nvidia-smi: not found"}
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        found["gpu"] = (done.stdout or done.stderr).strip()
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Install, and check by importing; status 1 if something is missing."""
    parser = argparse.ArgumentParser(
        prog="gpu setup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--site", type=Path, help="folder of packages; default: that of this Python")
    options = parser.parse_args(words)
    site = options.site or default_site()
    options.out.mkdir(parents=True, exist_ok=True)
    about = read_bundle(options.bundle)
    if not is_installed(about, site):
        install(options.bundle, about, site)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "ORT_DISABLE_TELEMETRY": "1"}
    check = [sys.executable, "-c", CHECK, str(ROOT / "pyproject.toml"), *MODULES, "parotid_seg"]
    done = subprocess.run(check, env=environment, capture_output=True, text=True, check=False)
    checked = json.loads(done.stdout) if not done.returncode else {"error": done.stderr[-600:]}
    found = {**machine(), "bundle": about["versions"], **checked}
    (options.out / "setup.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), flush=True)
    if found.get("missing") or "error" in found:
        raise SystemExit(1)
