"""Builds PyCUDA without the CUDA toolkit, for the tests of this folder: `python install_pycuda.py CONSTRAINTS`.

The headers come from NVIDIA's wheels, which must be installed (nvidia-cuda-runtime, -crt and -profiler-api), and the
linker gets empty libraries. Needs gcc and g++, and two minutes of a core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

SETTINGS = """
CUDA_ROOT = {root!r}
CUDA_INC_DIR = [{headers!r}]
CUDADRV_LIB_DIR = CUDART_LIB_DIR = [{libraries!r}]
CUDA_ENABLE_CURAND = False
CXXFLAGS = ["-O0"]
"""
"""For PyCUDA's setup.py, which reads ~/.aksetup-defaults.py."""


def main(constraints: Path) -> None:
    """Install it for this Python."""
    header = next(file for file in metadata.files("nvidia-cuda-runtime") or () if file.name == "cuda.h")
    headers = Path(str(header.locate())).resolve().parent
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        str(constraints.resolve()),
    ]
    subprocess.run([*pip, "setuptools", "wheel", "mako", "platformdirs", "pytools"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.touch()
        for name in ("cuda", "cudart"):
            library = Path(folder) / f"lib{name}.so"
            soname = {"cuda": "libcuda.so.1", "cudart": "libcudart.so.13"}[name]
            subprocess.run(["gcc", "-shared", f"-Wl,-soname,{soname}", "-o", library, source], check=True)
        settings = SETTINGS.format(root=str(headers.parent), headers=str(headers), libraries=folder)
        (Path(folder) / ".aksetup-defaults.py").write_text(settings)
        build = [*pip, "--no-build-isolation", "--no-deps", "--no-binary", "pycuda", "--no-cache-dir", "pycuda"]
        subprocess.run(build, env={**os.environ, "HOME": folder}, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
