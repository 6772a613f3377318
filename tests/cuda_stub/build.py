"""Builds CUDA libraries that compute nothing and record every event, for the real onnxruntime-gpu.

    python build.py FOLDER    in an environment with onnxruntime-gpu and nvidia-cuda-runtime, whose headers are used

The names that each library must have are read from onnxruntime's CUDA provider. Those that the C files in this folder
do not define return 0. Needs gcc and nm.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = {
    "libcudart.so.13": "cudart.c",
    "libcuda.so.1": "driver.c",
    "libcudnn.so.9": "cudnn.c",
    "libcublas.so.13": None,
    "libcublasLt.so.13": None,
    "libcurand.so.10": None,
}
"""Libraries and their C files."""
RECORDER = "libcudart.so.13"
"""The library with whose functions the others record events."""
UNVERSIONED = ("libcuda.so.1", "libcudnn.so.9")
"""Libraries whose symbols have no version."""
PRODUCT = re.compile(r"cublas([SD]gemm|Gemm|LtMatmul$)")
"""The functions of cuBLAS whose calls are recorded: matrix products."""


def build(folder: Path) -> None:
    """Build all libraries into a folder.

    Raises:
        subprocess.CalledProcessError: if a tool fails.
        FileNotFoundError: if there is no gcc or nm.
    """
    provider = _file_of("onnxruntime-gpu", "libonnxruntime_providers_cuda.so")
    headers = _file_of("nvidia-cuda-runtime", "driver_types.h").parent
    names = names_of(provider)
    for library, source in LIBRARIES.items():
        code = '#include "stub.h"\n' if source is None else (HERE / source).read_text()
        versions = [] if library in UNVERSIONED else [f"-Wl,--version-script={library}.map"]
        recorder = [] if library == RECORDER else ["-L", str(folder), f"-l:{RECORDER}"]
        missing = (name for name in names[library] if not re.search(rf"^EXPORT .*\b{name}\(", code, re.MULTILINE))
        (folder / f"{library}.c").write_text(code + "".join(map(_does_nothing, missing)))
        (folder / f"{library}.map").write_text(f"{library} {{ global: *; }};\n")
        subprocess.run(
            [
                *("gcc", "-shared", "-fPIC", "-O1", "-w", "-I", str(HERE), "-I", str(headers)),
                *(f"-Wl,-soname,{library}", *versions, "-o", library, f"{library}.c", *recorder, "-lpthread"),
            ],
            check=True,
            cwd=folder,
        )


def names_of(provider: Path) -> dict[str, list[str]]:
    """The functions that the CUDA provider needs, by library, and those of the driver that PyCUDA needs.

    Those of cuDNN are looked up at run time, so all strings in the file that may be one are taken.
    """
    names: dict[str, list[str]] = {library: [] for library in LIBRARIES}
    for symbol in _undefined(provider):
        name, _, library = symbol.partition("@")
        if library in names:
            names[library].append(name)
        elif re.match("cu[A-Z]", name):
            names["libcuda.so.1"].append(name)
    for module in find_spec("pycuda").submodule_search_locations if find_spec("pycuda") else ():
        for driver in Path(module).glob("_driver*.so"):
            names["libcuda.so.1"] += [name for name in _undefined(driver) if re.match("cu[A-Z]", name)]
    strings = re.findall(rb"\0(cudnn[A-Z]\w*)(?=\0)", provider.read_bytes())
    names["libcudnn.so.9"] = sorted({each.decode() for each in strings})
    return names


def _undefined(library: Path) -> list[str]:
    """The symbols that a library needs of others."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in listed.stdout.splitlines()]


def _does_nothing(name: str) -> str:
    if name.startswith("cublasGetStatus"):
        return f'EXPORT const char *{name}(int status) {{ return "CUBLAS_STATUS_NOT_INITIALIZED"; }}\n'
    note = f'if (!failure) stub_note("product {name}");' if PRODUCT.match(name) else ""
    return f"EXPORT long {name}(void) {{ int failure = stub_entered(__func__); {note} return failure; }}\n"


def _file_of(package: str, name: str) -> Path:
    files: Iterable[metadata.PackagePath] = metadata.files(package) or ()
    return next(Path(str(file.locate())).resolve() for file in files if file.name == name)


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
