"""Names and signatures of TensorRT's and TensorRT-RTX's real Python bindings, for test_tensorrt_signatures.py.

    python tests/fakes/tensorrt_signatures.py tensorrt_rtx    # or tensorrt, or tensorrt_bindings

This writes its part of tensorrt_signatures.json. No GPU is needed. The bindings alone suffice (wheel
tensorrt-cu13-bindings, module tensorrt_bindings, which can be unpacked into a folder of PYTHONPATH): gcc then builds
empty libraries in place of TensorRT's.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

TABLE = Path(__file__).with_suffix(".json")
CLASSES = (
    *("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache", "EngineInspector", "ILogger"),
    *("Builder", "IBuilderConfig", "INetworkDefinition", "IOptimizationProfile", "ITimingCache", "IHostMemory"),
    *("OnnxParser", "ParserError", "IProgressMonitor", "IProfiler"),
)
ENUMERATIONS = (
    *("BuilderFlag", "ComputeCapability", "CudaGraphStrategy", "DataType", "DynamicShapesKernelSpecializationStrategy"),
    *("EngineInvalidityDiagnostics", "EngineValidity", "ExecutionContextAllocationStrategy"),
    *(
        "HardwareCompatibilityLevel",
        "LayerInformationFormat",
        "LayerType",
        "MemoryPoolType",
        "NetworkDefinitionCreationFlag",
    ),
    *("PreviewFeature", "ProfilingVerbosity", "TensorIOMode"),
)


def described(module: ModuleType) -> dict[str, Any]:
    """Version, members of classes with their signatures, and members of enumerations of the bindings."""
    return {
        "version": module.__version__,
        "classes": {name: members_of(getattr(module, name)) for name in CLASSES if hasattr(module, name)},
        "enumerations": {
            name: list(getattr(module, name).__members__) for name in ENUMERATIONS if hasattr(module, name)
        },
        "severities": list(module.ILogger.Severity.__members__),
        "functions": [name for name in ("nptype",) if hasattr(module, name)],
    }


def members_of(kind: type) -> dict[str, list[str] | None]:
    """Names of a class's public members: the parameters of methods (of their first overload) without self; None for
    properties."""
    return {name: parameters(getattr(kind, name)) for name in dir(kind) if not name.startswith("_")}


def parameters(member: object) -> list[str] | None:
    """Names of a method's parameters from its documentation: pybind11 gives no other signature. None for others."""
    if not callable(member):
        return None
    for line in (getattr(member, "__doc__", None) or "").splitlines():
        found = re.match(r"(?:\d+\. )?\w+\((self: .*)\) -> ", line)
        if found:
            return re.findall(r"(?:^|, )(\w+): ", found[1])[1:]
    return []


def empty_libraries(bindings: Path, folder: Path) -> None:
    """Build libraries that have the names and symbols that bindings need, and do nothing."""
    listed = subprocess.run(["readelf", "-d", bindings], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"NEEDED.*\[(libnv.*)\]", listed)
    undefined = subprocess.run(["nm", "-D", "--undefined-only", bindings], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in undefined.stdout.splitlines() if " U " in line and "@" not in line]
    own = [symbol for symbol in symbols if not symbol.startswith(("Py", "_Py"))]
    source = folder / "empty.c"
    for library in libraries:
        source.write_text("".join(f"long {symbol}(void) {{ return 0; }}\n" for symbol in own))
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", "-o", folder / library, source], check=True
        )
        own = []


def main(name: str) -> None:
    """Replace the library's part of the table."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        spec = find_spec(name)
        if os.environ.get("LD_LIBRARY_PATH", "").startswith(tempfile.gettempdir()) or spec is None:
            raise
        with tempfile.TemporaryDirectory() as folder:
            bindings = next(Path(str(spec.origin)).parent.glob("tensorrt*.so"))
            empty_libraries(bindings, Path(folder))
            subprocess.run([sys.executable, __file__, name], env={**os.environ, "LD_LIBRARY_PATH": folder}, check=True)
        return
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    table["tensorrt-rtx" if "rtx" in name else "tensorrt"] = described(module)
    text = json.dumps(table, indent=1, sort_keys=True)
    TABLE.write_text(re.sub(r"\[[^\[\]{}]+\]", lambda found: " ".join(found[0].split()), text) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
