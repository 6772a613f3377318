"""Make a Python environment for each peer: pinned versions, plain `pip install`, and reused once it is whole.

    python benchmarks/peers/environments.py DIR [--only nnunet monai ours]

An environment is whole if it was finished with the same requirements and the same Python; any other is made anew. torch
brings CUDA's libraries along, some 5 GB for each environment that has it; they are not used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
NAMES = ("nnunet", "monai", "ours")
MARK = "whole.json"
"""Written into an environment last."""
PACKAGES = {
    "nnunet": ("nnunetv2", "torch", "dynamic-network-architectures", "batchgeneratorsv2", "SimpleITK", "numpy"),
    "monai": ("monai", "torch", "onnxruntime", "einops", "nibabel", "numpy"),
    "ours": ("parotid-seg", "onnxruntime", "openvino", "torch", "timm", "nibabel", "isal", "scipy", "numpy"),
}
"""Whose versions a table names; a result keeps all of them."""

Run = Callable[[Sequence[str]], None]


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def wanted(name: str) -> dict[str, str]:
    """What makes an environment the one asked for: its requirements and the Python that made it."""
    text = (HERE / f"{name}.txt").read_text()
    return {"requirements_sha256": hashlib.sha256(text.encode()).hexdigest(), "python": platform.python_version()}


def is_whole(name: str, folder: Path) -> bool:
    """Whether it was finished with these requirements."""
    mark = folder / MARK
    return mark.exists() and python_of(folder).exists() and json.loads(mark.read_text()) == wanted(name)


def run_pip(command: Sequence[str]) -> None:
    """Run a command; what it printed is in the error if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout[-4000:]}")


def make(name: str, folder: Path, run: Run = run_pip) -> Path:
    """Make an environment, or leave one that is whole as it is, but for our own code, which is installed anew.

    Args:
        name: one of `NAMES`.
        folder: where it is or goes; a folder that holds something else is refused.
        run: what runs a command to its end.

    Returns:
        its interpreter.

    Raises:
        SystemExit: if it cannot be made, with the command and what it printed.
    """
    pip = [str(python_of(folder)), "-m", "pip", "install", "--quiet"]
    if is_whole(name, folder):
        if name == "ours":  # the checkout may have changed since
            run([*pip, "--no-deps", "--force-reinstall", str(CHECKOUT)])
        return python_of(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"{folder}: expected nothing or a Python environment here, found other files")
    print(f"{name}: making its environment in {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(folder)])
    own = [f"{CHECKOUT}[openvino]"] if name == "ours" else []
    run([*pip, "--requirement", str(HERE / f"{name}.txt"), *own])
    (folder / MARK).write_text(json.dumps(wanted(name)) + "\n")
    return python_of(folder)


def versions(python: Path) -> dict[str, str]:
    """Every package of an environment and its version, and Python's under "python"."""
    code = (
        "import json, platform; from importlib.metadata import distributions; "
        "print(json.dumps({'python': platform.python_version(), "
        "**{each.metadata['Name']: each.version for each in distributions()}}))"
    )
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(sorted(json.loads(done.stdout).items(), key=lambda item: item[0].lower()))


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds an environment for each peer; some 12 GB with all of them")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        print(name, make(name, arguments.folder / name), flush=True)


if __name__ == "__main__":
    main()
