"""An engine file and its sidecar: the source and target of a TensorRT engine, and whether it can be used here.

An engine is a program: loading it runs its code. It is therefore loaded only through `read_engine`, after its hash has
been compared with its sidecar. This detects mix-ups, damage and a replaced engine file. Anyone who can write both files
can also write a matching pair, so store them as safely as programs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parotid_seg.contract import SCHEMA_VERSION as CONTRACT_VERSION
from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, MissingModelError, ModelError, OptionError, RecordError
from parotid_seg.files import hash_file, read_input
from parotid_seg.records import canonical, convert, parse, read_bytes, record_text
from parotid_seg.runtime.engines.gpu import Gpu, capability_text
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES, library_named

SCHEMA_VERSION = 2
MOST_BYTES = 2**20
"""Most bytes of a sidecar."""
AMPERE = (8, 0)

Capabilities = frozenset[tuple[int, int]]
"""Compute capabilities that a library makes code for, see `library.known_capabilities`."""
Shape = tuple[int, ...]
Shapes = dict[str, tuple[Shape, Shape, Shape]]
"""Smallest, usual and largest shape of each input by name."""


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes that an engine is built for: numbers of samples at once.

    Attributes:
        min: fewest; above 1 the last chunk of a scan must be padded to it.
        opt: the number at which the engine is fastest.
        max: most.
    """

    min: int = 1
    opt: int = 16
    max: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            found = f"{self.min} {self.opt} {self.max}"
            raise OptionError(f"--batch: found {found}, expected MIN OPT MAX with 1 <= MIN <= OPT <= MAX")

    def __str__(self) -> str:
        return f"batches of {self.min} to {self.max}, best at {self.opt}"


ENGINE_BATCH = BatchProfile(1, 64, 256)
"""The batch sizes that engines are built for unless the user names others. With few samples a GPU waits for its kernels
to be launched; the size that is used is measured (`load.BATCHES`)."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        workspace_mib: most memory a layer may take for itself; None is the library's own limit, the GPU's memory.
            TensorRT-RTX makes most of a network one layer, and the limit counts at the largest shapes.
        runs_on: "this-gpu" (the model of GPU it is built on), "same-capability" (any of its compute capability),
            "ampere-plus" (compute capability 8.0 and newer); None is the library's default. TensorRT-RTX makes only
            the last: for Turing it has no FP32 products.
        version_compatible: let later versions of TensorRT run it, too; it may be slower.
        tf32: allow rounding of FP32 products to TF32, which is faster and keeps 10 bits of 23.
    """

    workspace_mib: int | None = None
    runs_on: str | None = None
    version_compatible: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise OptionError(f"--workspace-mib: found {self.workspace_mib}, expected at least 1")

    def for_library(self, name: str) -> EngineOptions:
        """A copy with the library's default filled in. Raises InputError for options that it does not support."""
        library = library_named(name)
        runs_on = self.runs_on or library.runs_on[0]
        if runs_on not in library.runs_on:
            offers = ", ".join(library.runs_on)
            raise OptionError(f"--runs-on: found {runs_on!r}, expected one of {library.title}'s: {offers}")
        if self.version_compatible and not library.carries_over:
            raise OptionError(f"--version-compatible: {library.title} engines run on the version that built them only")
        return dataclasses.replace(self, runs_on=runs_on)


@dataclass(frozen=True)
class Sidecar:
    """The description of an engine, in the file ENGINE.json beside it.

    Attributes:
        contract: the model's, as in its ONNX file.
        precision: type the network computes in, the contract's; the engine keeps the ONNX graph's types.
        onnx_name, onnx_sha256: the ONNX file it was built from, expected beside it, and its hash.
        library, library_version: the library that built it ("tensorrt" or "tensorrt-rtx").
        gpu, compute_capability, cuda: the GPU it was built on and the newest CUDA of its driver; None without a GPU.
        batch: the batch sizes it was built for.
        shapes: the resulting shapes of every input.
        options: how it was built.
        engine_sha256: hash of the engine file.
        verification: comparison of its masks with the trained model's, or "not_run" and why; empty if there was none.
    """

    contract: Contract
    precision: str
    onnx_name: str
    onnx_sha256: str
    library: str
    library_version: str
    gpu: str | None
    compute_capability: tuple[int, int] | None
    cuda: str | None
    batch: BatchProfile
    shapes: Shapes
    options: EngineOptions
    engine_sha256: str
    verification: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        library_named(self.library)
        if Path(self.onnx_name).name != self.onnx_name:
            raise InputError(f"onnx_name: found {self.onnx_name!r}, expected a file name without a folder")
        if self.contract.schema_version != CONTRACT_VERSION:
            found = self.contract.schema_version
            raise InputError(f"contract: found schema_version {found}, expected {CONTRACT_VERSION}")

    def to_json(self) -> str:
        """The sidecar as JSON text, with a checksum over all other fields."""
        content = dataclasses.asdict(self)
        return record_text({**content, "checksum": _checksum(content)})

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Sidecar:
        """Read a sidecar back.

        Raises:
            ModelError: if it is damaged, changed by hand, or of another schema version.
        """
        try:
            fields = convert(parse(text), dict[str, Any], version=SCHEMA_VERSION, advice="build the engine again")
            checksum = fields.pop("checksum", None)
            if checksum != _checksum(fields):
                raise ModelError(f"{where}: changed since it was written (its checksum does not match); build again")
            return convert(fields, cls)
        except RecordError as error:
            raise ModelError(f"{where}: not an engine's sidecar: {error.reason}") from error


@dataclass(frozen=True)
class Verdict:
    """Whether an engine can be used here.

    Attributes:
        reasons: why it cannot be used; empty if it can.
        rebuild_from: the ONNX file to build another from, if that helps.
        options: how to build that; the same as before, unless that would not run on this GPU.
        not_rebuilt: why none can be built; empty if one can, or need not.
    """

    reasons: tuple[str, ...]
    rebuild_from: Path | None = None
    options: EngineOptions | None = None
    not_rebuilt: str = ""

    def refusal(self, engine: Path) -> ModelError:
        """The error to raise for an engine that can be neither used nor rebuilt."""
        return ModelError(
            f"cannot be used here: {'; '.join(self.reasons)}; not rebuilt: {self.not_rebuilt}", path=engine
        )


def sidecar_path(engine: Path) -> Path:
    """Path of an engine's sidecar."""
    return engine.with_name(f"{engine.name}.json")


def read_sidecar(engine: Path) -> Sidecar:
    """The sidecar of an engine file.

    Raises:
        MissingModelError: if there is neither an engine nor a sidecar.
        ModelError: if the sidecar is missing, damaged or of another version.
    """
    path = sidecar_path(engine)
    if not (engine.is_file() or path.is_file()):
        raise MissingModelError("no such engine file", path=engine)
    try:
        content = read_bytes(path, MOST_BYTES)
    except RecordError as error:
        raise ModelError(
            f"no usable sidecar of the engine: {error.reason}; build the engine again", path=path
        ) from error
    return Sidecar.from_json(content, where=str(path))


def read_engine(engine: Path, sidecar: Sidecar) -> bytes:
    """The bytes of an engine file, after a check that it is the one its sidecar describes.

    Raises:
        ModelError: if it is missing or another file.
    """
    try:
        content = read_input(engine)
    except OSError as error:
        raise ModelError(f"the engine file cannot be read ({error.strerror})", path=engine) from error
    if hashlib.sha256(content).hexdigest() != sidecar.engine_sha256:
        raise ModelError("not the file its sidecar describes (its hash does not match); build it again", path=engine)
    return content


def check_engine(
    engine: Path,
    sidecar: Sidecar,
    library_version: str | None,
    gpu: Gpu | None,
    capabilities: Capabilities | None = None,
) -> tuple[str, ...]:
    """Reasons why an engine cannot be used here; empty if it can. The engine is not loaded.

    Args:
        engine: the file.
        sidecar: its sidecar.
        library_version: of the sidecar's library, None if that is not installed.
        gpu: the GPU to run it on, None if there is none.
        capabilities: those that the library makes code for; None if that is not known.
    """
    reasons = (
        _judge_file(engine, sidecar),
        _judge_library(sidecar, library_version),
        unsupported(sidecar.library, gpu, capabilities) or _judge_gpu(sidecar, gpu),
    )
    return tuple(reason for reason in reasons if reason)


def unsupported(library: str, gpu: Gpu | None, capabilities: Capabilities | None) -> str:
    """Why a library has no code for a GPU; empty if it has, or if either is not known."""
    if gpu is None or capabilities is None or gpu.compute_capability in capabilities:
        return ""
    known = ", ".join(map(capability_text, sorted(capabilities)))
    return f"found {gpu}, expected one of {LIBRARIES[library].title}'s compute capabilities: {known}"


def judge_engine(
    engine: Path,
    sidecar: Sidecar,
    library_version: str | None,
    gpu: Gpu | None,
    capabilities: Capabilities | None = None,
) -> Verdict:
    """Decide by `check_engine` whether to use an engine, build another from its ONNX file, or refuse it.

    One that was damaged or replaced is always refused: another would hide that, and lack its verification.
    """
    reasons = check_engine(engine, sidecar, library_version, gpu, capabilities)
    if not reasons:
        return Verdict(())
    if _judge_file(engine, sidecar):
        return Verdict(reasons, not_rebuilt="these are not the files that export wrote; export them again")
    if library_version is None or gpu is None:
        return Verdict(reasons, not_rebuilt="it could not be run here either")
    onnx = engine.with_name(sidecar.onnx_name)
    if not onnx.is_file():
        return Verdict(reasons, not_rebuilt=f"no {sidecar.onnx_name} beside it")
    library, requested = LIBRARIES[sidecar.library], sidecar.options.runs_on
    for runs_on in () if unsupported(sidecar.library, gpu, capabilities) else (requested, *library.runs_on):
        if runs_on and (runs_on != "ampere-plus" or gpu.compute_capability >= AMPERE):
            return Verdict(reasons, onnx, dataclasses.replace(sidecar.options, runs_on=runs_on))
    return Verdict(reasons, not_rebuilt=f"{library.title} makes no engines for {gpu}")


def _judge_file(engine: Path, sidecar: Sidecar) -> str:
    try:
        if hash_file(engine) != sidecar.engine_sha256:
            return "its hash is not the one in its sidecar"
        onnx = engine.with_name(sidecar.onnx_name)
        if onnx.is_file() and hash_file(onnx) != sidecar.onnx_sha256:
            return f"it was built from another {onnx.name} than the one beside it"
        return ""
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"


def _judge_library(sidecar: Sidecar, version: str | None) -> str:
    title = LIBRARIES[sidecar.library].title
    if version is None:
        return f"{title} is not installed"
    if sidecar.options.version_compatible and _ordered(version) >= _ordered(sidecar.library_version):
        return ""
    if version == sidecar.library_version:
        return ""
    or_newer = " or newer" if sidecar.options.version_compatible else ""
    return f"found {title} {version}, expected {sidecar.library_version}{or_newer}, which built it"


def _judge_gpu(sidecar: Sidecar, gpu: Gpu | None) -> str:
    if gpu is None:
        return "no NVIDIA GPU found"
    runs_on = sidecar.options.runs_on or LIBRARIES[sidecar.library].runs_on[0]
    capability = sidecar.compute_capability
    if runs_on == "ampere-plus":
        fits, expected = gpu.compute_capability >= AMPERE, f"compute capability {capability_text(AMPERE)} or newer"
    elif runs_on == "same-capability":
        fits, expected = gpu.compute_capability == capability, f"compute capability {capability_text(capability)}"
    else:
        fits, expected = (gpu.name, gpu.compute_capability) == (sidecar.gpu, capability), str(sidecar.gpu)
    return "" if fits else f"found {gpu}, expected {expected}"


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _checksum(content: dict[str, Any]) -> str:
    """SHA-256 of the content, equal for tuples and their lists in JSON."""
    return hashlib.sha256(canonical(content)).hexdigest()
