"""What our code calls, and what the fakes in tests offer, exists in TensorRT's and TensorRT-RTX's real Python bindings.

The table is made by tests/fakes/tensorrt_signatures.py.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import parotid_seg
from tests.fakes import fake_cuda
from tests.fakes.fake_gpu import FakeGpu
from tests.fakes.tensorrt_signatures import TABLE, described

LIBRARIES = ("tensorrt", "tensorrt-rtx")
PACKAGE = Path(parotid_seg.__file__).parent
RECEIVERS = {
    "runtime/engines/tensorrt/tensorrt_engine.py": {
        "runtime": "Runtime",
        "loaded": "ICudaEngine",
        "_loaded": "ICudaEngine",
        "config": "IRuntimeConfig",
    },
    "runtime/engines/tensorrt/execution_slot.py": {"context": "IExecutionContext", "cuda_engine": "ICudaEngine"},
    "runtime/engines/tensorrt/kernel_cache.py": {"cache": "IRuntimeCache"},
    "runtime/engines/tensorrt/library.py": {},
    "export/build_engine.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
    },
    "export/ops_by_dtype.py": {"network": "INetworkDefinition"},
    "../tests/export/built_layers.py": {"inspector": "EngineInspector"},
    "bench/layers.py": {"cuda_engine": "ICudaEngine", "config": "IRuntimeConfig", "inspector": "EngineInspector"},
}
"""Names of variables and attributes in our files, and the class of what they hold."""
OTHERS = {
    ("export/build_engine.py", "profile"): {"min", "max", "opt"},
    ("export/ops_by_dtype.py", "DataType"): {"Name"},  # ONNX's
}
"""Members of other objects of those names."""
FAKES = {
    fake_cuda.FakeEngine: "ICudaEngine",
    fake_cuda.FakeExecutionContext: "IExecutionContext",
    fake_cuda.FakeRuntimeConfig: "IRuntimeConfig",
    fake_cuda.FakeRuntimeCache: "IRuntimeCache",
}
OF_FAKES_ALONE = {"changed", "read"}
"""Methods that a fake needs for itself."""


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def attributes(path: Path) -> Iterator[tuple[str, str, int | None]]:
    """Attributes in a file: what they are taken of, their name, and the number of arguments if they are called."""
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    counts = {id(call.func): len(call.args) + len(call.keywords) for call in calls}
    starred = {id(call.func) for call in calls if any(isinstance(each, ast.Starred) for each in call.args)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = node.value
            name = of.id if isinstance(of, ast.Name) else of.attr if isinstance(of, ast.Attribute) else ""
            yield name, node.attr, None if id(node) in starred else counts.get(id(node))


@pytest.mark.parametrize("file", RECEIVERS)
def test_members_that_our_code_uses_exist(table: dict[str, Any], file: str) -> None:
    receivers, seen = RECEIVERS[file], set()
    for name, member, arguments in attributes(PACKAGE / file):
        kind = receivers.get(name)
        if kind is None or member in OTHERS.get((file, name), ()):
            continue
        seen.add(name)
        known = [table[library]["classes"].get(kind, {}) for library in LIBRARIES]
        assert any(member in members for members in known), f"{kind} has no {member}"
        for members in known:
            parameters = members.get(member)
            assert arguments is None or parameters is None or arguments <= len(parameters), f"{kind}.{member}"
    assert seen == set(receivers), "the names in this test are those of the code"


@pytest.mark.parametrize("file", RECEIVERS)
def test_enumerations_and_classes_that_our_code_uses_exist(table: dict[str, Any], file: str) -> None:
    found = list(attributes(PACKAGE / file))
    for library in LIBRARIES:
        known = table[library]
        names = {*known["classes"], *known["enumerations"], *known["functions"], "__version__", "__name__"}
        other = "tensorrt-rtx" if library == "tensorrt" else "tensorrt"
        either = names | {*table[other]["classes"], *table[other]["enumerations"]}
        assert {member for name, member, _ in found if name in ("trt", "_trt")} <= either
        for name, member, _ in found:
            if name in known["enumerations"] and member not in {"__members__", *OTHERS.get((file, name), ())}:
                assert member in known["enumerations"][name], f"{name}.{member}"


@pytest.mark.parametrize(("fake", "kind"), FAKES.items())
def test_fakes_have_the_real_names_and_parameters(table: dict[str, Any], fake: type, kind: str) -> None:
    real = {**table["tensorrt"]["classes"].get(kind, {}), **table["tensorrt-rtx"]["classes"][kind]}
    methods = {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in inspect.getmembers(fake, inspect.isfunction)
        if not name.startswith("_") and name not in OF_FAKES_ALONE
    }
    assert methods
    assert methods == {name: real.get(name) for name in methods}


@pytest.mark.parametrize("library", LIBRARIES)
def test_fake_modules_have_real_enumerations(table: dict[str, Any], library: str) -> None:
    module = fake_cuda.fake_tensorrt(FakeGpu(), library)
    real = table[library]
    names = [name for name in vars(module) if isinstance(getattr(module, name), enum.EnumMeta)]
    assert len(names) >= 3
    for name in names:
        assert set(getattr(module, name).__members__) <= set(real["enumerations"][name]), name
    assert set(module.ILogger.Severity.__members__) <= set(real["severities"])
    methods = {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in inspect.getmembers(module.Runtime, inspect.isfunction)
        if not name.startswith("_")
    }
    assert methods == {name: real["classes"]["Runtime"].get(name) for name in methods}


def test_the_table_is_that_of_the_installed_tensorrt_rtx(table: dict[str, Any]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is missing: pip install tensorrt-rtx")
    if trt.__version__ != table["tensorrt-rtx"]["version"]:
        pytest.skip(
            f"TensorRT-RTX {trt.__version__} is installed: python tests/fakes/tensorrt_signatures.py tensorrt_rtx"
        )
    assert described(trt) == table["tensorrt-rtx"]
