"""Which of the packages onnxruntime and onnxruntime-gpu is installed, and whether it is whole.

Both install the same files, and pip does not know this. Where both are installed, the one unpacked last works if none
of its files was replaced or removed since; images that come with onnxruntime are a usual case.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import metadata
from pathlib import Path

import onnxruntime

from parotid_seg.errors import ParotidSegError

PACKAGES = ("onnxruntime", "onnxruntime-gpu")


def check_installation() -> None:
    """Refuse an environment in which onnxruntime and onnxruntime-gpu have overwritten each other's files.

    Nothing is read if only one of them is installed.

    Raises:
        ParotidSegError: with the command that repairs it.
    """
    installed: dict[str, metadata.Distribution] = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
    if len(installed) < len(PACKAGES) or any(_is_imported_and_whole(each) for each in installed.values()):
        return
    cpu, gpu = (installed[name].version for name in PACKAGES)
    raise ParotidSegError(
        f"onnxruntime {cpu} and onnxruntime-gpu {gpu} have overwritten each other's files; keep one: pip uninstall -y "
        f"onnxruntime onnxruntime-gpu && pip install --no-deps onnxruntime-gpu=={gpu}"
    )


def _is_imported_and_whole(package: metadata.Distribution) -> bool:
    """Whether Python imports this package's files, and each is as pip installed it (by its record)."""
    files = (file for file in package.files or () if file.parts[0] == "onnxruntime")
    hashes = {Path(str(file.locate())).resolve(): file.hash for file in files if file.hash is not None}
    if Path(onnxruntime.__file__).resolve() not in hashes:
        return False
    return all(place.is_file() and _hash_of(place, recorded) == recorded.value for place, recorded in hashes.items())


def _hash_of(place: Path, recorded: metadata.FileHash) -> str:
    """A file's hash as pip records it (packaging.python.org/specifications/recording-installed-packages)."""
    with place.open("rb") as file:
        digest = hashlib.file_digest(file, recorded.mode).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
