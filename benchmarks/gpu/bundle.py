"""Collects what a machine with a GPU, but without a network, lacks, in one folder to carry there: `setup` installs it.

That is onnxruntime-gpu, and the packages that parotid-seg needs besides those in `EXPECTED`. Of onnxruntime-gpu's CUDA
provider only the code for one compute capability stays, and of that the kernels that the packaged model launches
(kernels-VERSION-PYTHON.tsv) and all small ones; --whole leaves it whole. Needs a network with PyPI.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from gpu.fatbins import trimmed
from gpu.kernels import PROVIDER, launched, table_for
from parotid_seg.files import make_folder, write_text

ROOT = Path(__file__).parents[2]
EXPECTED = {"contourpy", "filelock", "jinja2", "numpy", "onnxruntime", "pillow", "rich", "scipy", "typer"}
"""Dependencies that are expected there: torch, timm, onnx, onnxruntime, scipy, matplotlib, typer and what they need."""
GPU_PACKAGE = "onnxruntime-gpu"
FOR_TESTS = ("pytest", "pluggy", "iniconfig", "hypothesis", "sortedcontainers")
"""pytest, hypothesis, and what they need besides packages that are there: packaging, and Pygments, which rich needs."""
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)), "manylinux2014_x86_64"]
UNUSED = re.compile(
    r"onnxruntime/(datasets|backend)/"
    r"|onnxruntime/capi/(libonnxruntime_providers_tensorrt\.so|libonnxruntime\.so)"
    r"|nibabel/(.*/)?tests/|pydicom/data/test_files/|highdicom/.*tests/"
)
"""Files of the packages that segmenting does not need: tests, and a second copy of onnxruntime."""
PART_BYTES = 48 << 20
"""Most bytes of a file of the bundle. The bundle with trimmed code is one file."""
MOST_MIB = 64
"""Most MiB of the bundle and the repository together."""
MOST_UNLAUNCHED = 100_000
"""See `fatbins.trimmed`. The larger ones are attention, mixtures of experts and quantised products for language
models."""


def wanted(pyproject: Path) -> list[str]:
    """Names of the packages that the bundle brings."""
    declared = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    names = [re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in declared]
    return [GPU_PACKAGE, *(name for name in names if name.lower() not in EXPECTED), *FOR_TESTS]


def download(names: Sequence[str], python: str, folder: Path) -> None:
    """Wheels of these packages, in the tested versions, for Linux on x86-64 and a version of Python ("3.12").

    Raises:
        subprocess.CalledProcessError: if one cannot be had.
    """
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), "-d", str(folder), *names], check=True)


def unpack(wheels: Sequence[Path], site: Path) -> dict[str, str]:
    """The used files of some wheels, as if installed; versions by name."""
    versions = {}
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        versions[name.replace("_", "-")] = version
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site, [each for each in archive.namelist() if not UNUSED.match(each)])
    return versions


def correct_records(site: Path) -> None:
    """Let the packages' records have the files that are there, as they are: by them an installation is checked."""
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if (site / row[0]).is_file()]
        for row in rows:
            if row[1]:
                content = (site / row[0]).read_bytes()
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
                row[1:] = [f"sha256={digest}", str(len(content))]
        with record.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def trim(provider: Path, table: Path, capability: str, most_unlaunched: int) -> None:
    """Remove GPU code that is not needed from a library, see `fatbins.trimmed`."""
    library = provider.read_bytes()
    kept = launched(table, library)
    provider.write_bytes(trimmed(library, int(capability.replace(".", "")), kept, most_unlaunched))


def pack(site: Path, out: Path, part_bytes: int) -> list[str]:
    """Compress a folder into files of at most so many bytes; their names, in order."""
    for old in out.glob("site.tar.xz.*"):
        old.unlink()
    names: list[str] = []
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        whole = Path(scratch) / "site.tar.xz"
        with tarfile.open(whole, "w:xz", preset=6) as archive:
            for entry in sorted(site.iterdir()):
                archive.add(entry, entry.name)
        with whole.open("rb") as file:
            while part := file.read(part_bytes):
                names.append(f"site.tar.xz.{len(names)}")
                (out / names[-1]).write_bytes(part)
    return names


def repository_bytes(root: Path) -> int:
    """Bytes of the files under version control."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, check=True).stdout
    files = (root / name for name in listed.decode().split("\0") if name)
    return sum(file.stat().st_size for file in files if file.is_file())


def main(words: Sequence[str] | None = None) -> None:
    """Make the bundle; an error if it is too large with the repository."""
    parser = argparse.ArgumentParser(
        prog="gpu bundle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--whole", action="store_true", help="all GPU code, about 230 MB")
    parser.add_argument("--capability", default="9.0", help="compute capability of the GPU; 9.0 is an H100 or H200")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--more", nargs="*", default=[], help="more packages that are missing there")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to take instead of downloading")
    parser.add_argument("--table", type=Path, help="of launched kernels; default: the one of this version")
    options = parser.parse_args(words)
    began = time.monotonic()
    make_folder(options.out)
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        site, wheels = Path(name) / "site", options.wheels or Path(name) / "wheels"
        if options.wheels is None:
            download([*wanted(ROOT / "pyproject.toml"), *options.more], options.python, wheels)
        versions = unpack(sorted(wheels.glob("*.whl")), site)
        provider = site / "onnxruntime" / "capi" / PROVIDER
        whole_bytes = provider.stat().st_size
        if not options.whole:
            tag = f"cp{options.python.replace('.', '')}"
            table = options.table or table_for(versions[GPU_PACKAGE], tag)
            trim(provider, table, options.capability, MOST_UNLAUNCHED)
        correct_records(site)
        parts = pack(site, options.out, PART_BYTES)
        digest = hashlib.sha256()
        for part in parts:
            digest.update((options.out / part).read_bytes())
        about = {
            "python": options.python,
            "capability": None if options.whole else options.capability,
            "versions": versions,
            "parts": parts,
            "sha256": digest.hexdigest(),
        }
        write_text(json.dumps(about, indent=1) + "\n", options.out / "bundle.json")
    size = sum((options.out / part).stat().st_size for part in parts)
    total_mib = (size + repository_bytes(ROOT)) / 2**20
    print(
        f"{options.out}: {len(versions)} packages, {size / 2**20:.1f} MiB in {len(parts)} files, with the repository "
        f"{total_mib:.1f} MiB; {PROVIDER} {'whole' if options.whole else f'trimmed, of {whole_bytes / 1e6:.0f} MB'}; "
        f"{time.monotonic() - began:.0f} s"
    )
    if total_mib > MOST_MIB and not options.whole:
        raise SystemExit(f"bundle: found {total_mib:.1f} MiB with the repository, expected at most {MOST_MIB}")
