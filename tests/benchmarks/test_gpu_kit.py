"""The commands of benchmarks/gpu around the measurements: bundle, setup, kernels, probe and all; without a GPU."""

import ast
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from gpu import bundle, fatbins, inputs, install, kernels

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def entry(capability: int, code: bytes, kind: int = 2) -> bytes:
    return fatbins.ENTRY.pack(kind, 0x0101, 64, len(code), capability).ljust(64, b"\0") + code


def fat_binary(*entries: bytes) -> bytes:
    code = b"".join(entries)
    return fatbins.FAT_BINARY.pack(fatbins.MAGIC, fatbins.VERSION, fatbins.FAT_BINARY.size, len(code)) + code


def library() -> tuple[bytes, list[int]]:
    """A shared library with three fat binaries, and where they lie; loaded at address 0x1000."""
    segment = fatbins.SEGMENT.pack(fatbins.LOADED, 0, 0, 0x1000, 0, 5000, 5000, 0)
    header = (b"\x7fELF".ljust(32, b"\0") + struct.pack("<Q8xIHHH", 64, 0, 64, len(segment), 1)).ljust(64, b"\0")
    content, places = header + segment + struct.pack("<I", fatbins.MAGIC) + b"no fat binary", []
    for code in (b"launched" * 10, b"large" * 40, b"small"):
        content = content.ljust(-(-len(content) // 8) * 8, b"\0")
        places.append(len(content))
        content += fat_binary(entry(80, b"older " + code), entry(90, code), entry(90, b"ptx", kind=1))
    return content.ljust(5000, b"\0"), places


def test_code_that_is_not_needed_is_removed() -> None:
    content, places = library()
    made = fatbins.trimmed(content, 90, {places[0]}, most_unlaunched=150)
    assert len(made) == len(content)
    assert [fat.offset for fat in fatbins.fat_binaries(content)] == places
    entries = {fat.offset: [capability for *_, capability in fat.entries] for fat in fatbins.fat_binaries(made)}
    assert entries == {places[0]: [90, 90], places[1]: [], places[2]: [90, 90]}
    assert b"launched" in made
    assert b"small" in made
    assert b"large" not in made
    assert b"older" not in made


def table(folder: Path, content: bytes, places: list[int]) -> Path:
    provider = folder / kernels.PROVIDER
    provider.write_bytes(content)
    recorded = [f"{provider}\t{0x1000 + place}\t300\t5\t_Z{place}" for place in places]
    recorded.append("/elsewhere/libcublas.so.13\t1\t2\t3\tgemm")
    path = folder / "kernels.tsv"
    path.write_text(kernels.table_of({"fp32": recorded, "fp16": recorded[:1]}, "1.31.1", provider))
    return path


def test_the_table_names_what_was_launched(tmp_path: Path) -> None:
    content, places = library()
    made = table(tmp_path, content, places[:2])
    assert kernels.launched(made, content) == set(places[:2])
    assert len(made.read_text().splitlines()) == 2 + 3
    with pytest.raises(SystemExit, match=r"kernels\.tsv: of libonnxruntime_providers_cuda.so .*; make it anew"):
        kernels.launched(made, content + b"another")


def test_the_committed_table_is_of_the_tested_version() -> None:
    constraints = (BENCHMARKS.parent / "constraints.txt").read_text().splitlines()
    version = next(line.partition("==")[2] for line in constraints if line.startswith("onnxruntime-gpu=="))
    _, _, *rows = kernels.table_for(version, "cp312").read_text().splitlines()
    assert {row.split("\t")[2] for row in rows} == set(kernels.RUNS)
    attention = {row.split("\t")[2] for row in rows if "AddBiasTransposeUnpack" in row or "AddBiasUnpack" in row}
    assert attention == {name for name in kernels.RUNS if "fused" in name}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_recorder_notes_launches_and_passes_them_on(tmp_path: Path) -> None:
    """On a runtime of CUDA that counts; the program is Python, which launches what it has registered."""
    runtime = """
    #include <stdint.h>
    static int handle, launched;
    static const uint64_t binary[] = {0x00100001BA55ED50, 8, 0};
    struct { int magic, version; const void *data; void *file; } wrapper = {0x466243b1, 1, binary, 0};
    char one, other;
    void **__cudaRegisterFatBinary(void *w) { return (void **)&handle; }
    void __cudaRegisterFunction() {}
    int __cudaGetKernel(const void **kernel, const void *function) { return *kernel = (char *)function + 100, 0; }
    typedef struct { unsigned x, y, z; } Size;
    int cudaLaunchKernel(const void *f, Size g, Size b, void **a, unsigned long s, void *t)
    { return g.z == 3 && b.z == 6 && s == 7 ? 40 + ++launched : -1; }
    int __cudaLaunchKernel(const void *f, Size g, Size b, void **a, unsigned long s, void *t) { return ++launched; }
    int cudaLaunchKernelExC(const void *c, const void *f, void **a) { return ++launched; }
    """
    program = """
    import ctypes, sys
    cuda, fake = ctypes.CDLL(None), ctypes.CDLL("libcudart.so.13")
    class Size(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint) for name in "xyz"]
    at = lambda name: ctypes.addressof(ctypes.c_char.in_dll(fake, name))
    cuda.__cudaRegisterFatBinary.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(cuda.__cudaRegisterFatBinary(ctypes.c_void_p(at("wrapper"))))
    names = {"one": b"one_kernel", "other": b"other_kernel"}
    for name, kernel in names.items():
        cuda.__cudaRegisterFunction(handle, ctypes.c_void_p(at(name)), None, kernel, 0, *[None] * 5)
    kernel, one = ctypes.c_void_p(), ctypes.c_void_p(at("one"))
    cuda.__cudaGetKernel(ctypes.byref(kernel), one)
    sizes = (Size(1, 2, 3), Size(4, 5, 6), None, ctypes.c_size_t(7), None)
    print(cuda.cudaLaunchKernel(one, *sizes), cuda.__cudaLaunchKernel(kernel, *sizes))
    """
    (tmp_path / "runtime.c").write_text(runtime)
    gcc = ["gcc", "-shared", "-fPIC", "-w", "-o"]
    subprocess.run([*gcc, tmp_path / "libcudart.so.13", tmp_path / "runtime.c"], check=True)
    recorder = tmp_path / "recorder.so"
    subprocess.run([*gcc, recorder, BENCHMARKS / "gpu" / "recorder.c", "-ldl", "-lpthread"], check=True)
    lines = tmp_path / "lines"
    environment = {**os.environ, "LD_PRELOAD": f"{recorder} {tmp_path / 'libcudart.so.13'}", "KERNELS_FILE": str(lines)}
    environment["LD_LIBRARY_PATH"] = str(tmp_path)
    script = "\n".join(line.removeprefix("    ") for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["41", "2"]
    ((file, _, size, launches, kernel),) = [line.split("\t") for line in lines.read_text().splitlines()]
    assert (Path(file).name, size, launches, kernel) == ("libcudart.so.13", "24", "2", "one_kernel")


def test_kernels_writes_the_table_of_every_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, places = library()
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi / kernels.PROVIDER).write_bytes(content)
    runs = []

    def record(
        python: Path, libraries: Path, model: Path, provider: dict[str, str], chunks: list[Path], scratch: Path
    ) -> tuple[str, list[str]]:
        runs.append((model.name, *provider))
        assert {np.load(chunk)["neighbours"].shape[0] for chunk in chunks} == {2}
        return f"1.31.1 cp312 {capi.parent / '__init__.py'}", [f"{kernels.PROVIDER}\t{0x1000 + places[0]}\t9\t1\tk"]

    monkeypatch.setattr(kernels, "record", record)
    monkeypatch.setattr(kernels, "make_scans", lambda *_, **__: [])
    monkeypatch.setattr(kernels, "graph_file", Path)
    words = ["--python", "python", "--libraries", str(tmp_path), "--out", str(tmp_path / "x.tsv"), "--sizes", "2"]
    kernels.main(words)
    graphs = [("fp32",), ("fp16",), ("fp32 fused",), ("fp16 fused",)]
    assert runs == [*graphs, ("fp16 fused", "fuse_conv_bias"), ("fp16 fused", "sdpa_kernel")]
    assert kernels.launched(tmp_path / "x.tsv", content) == {places[0]}
    assert len((tmp_path / "x.tsv").read_text().splitlines()) == 2 + len(runs)


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


@pytest.fixture
def made_bundle(tmp_path: Path) -> Path:
    """Of two wheels, in several files."""
    content, places = library()
    wheels, out = tmp_path / "wheels", tmp_path / "bundle"
    wheels.mkdir()
    code = b"__version__ = '1.31.1'\n\ndef get_available_providers():\n    return ['CUDAExecutionProvider']\n"
    files = {"onnxruntime/__init__.py": code, f"onnxruntime/capi/{kernels.PROVIDER}": content}
    record = "".join(f"{name},sha256=as-it-was,1\n" for name in (*files, "onnxruntime/datasets/large.py"))
    files["onnxruntime_gpu-1.31.1.dist-info/RECORD"] = f"{record}onnxruntime_gpu-1.31.1.dist-info/RECORD,,\n".encode()
    files |= {"onnxruntime/datasets/large.py": b"1", "onnxruntime/capi/libonnxruntime.so.1.31.1": b"2"}
    wheel(wheels, "onnxruntime_gpu-1.31.1", {**files, "onnxruntime_gpu-1.31.1.dist-info/METADATA": b"Name: x\n"})
    wheel(wheels, "nibabel-5.4.2", {"one_of_nibabel/__init__.py": os.urandom(3000), "nibabel/tests/x.py": b"3"})
    words = [
        str(out),
        "--wheels",
        str(wheels),
        "--python",
        PYTHON,
        "--table",
        str(table(tmp_path, content, places[:1])),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "PART_BYTES", 1000)
        patch.setattr(bundle, "MOST_UNLAUNCHED", 150)
        bundle.main(words)
    return out


def test_a_bundle_may_be_whole(made_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.main([str(made_bundle), "--wheels", str(tmp_path / "wheels"), "--python", PYTHON, "--whole"])
    about = json.loads((made_bundle / "bundle.json").read_text())
    assert about["capability"] is None
    assert about["parts"] == ["site.tar.xz.0"]
    assert sorted(path.name for path in made_bundle.iterdir()) == ["bundle.json", "site.tar.xz.0"]
    set_up(made_bundle, tmp_path / "site", tmp_path / "out", monkeypatch)
    assert (tmp_path / "site" / "onnxruntime" / "capi" / kernels.PROVIDER).read_bytes() == library()[0]


def test_a_bundle_that_is_too_large_is_refused(
    made_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MOST_MIB", 1)
    words = [str(made_bundle), "--wheels", str(tmp_path / "wheels"), "--table", str(tmp_path / "kernels.tsv")]
    with pytest.raises(SystemExit, match=r"bundle: found [\d.]+ MiB with the repository, expected at most 1"):
        bundle.main(words)


def set_up(folder: Path, site: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(install, "MODULES", ("json", "one_that_is_not_there"))
    with pytest.raises(SystemExit) as ended:
        install.main(["--bundle", str(folder), "--site", str(site), "--out", str(out)])
    assert ended.value.code == 1  # a package is missing
    return dict(json.loads((out / "setup.json").read_text()))


def test_a_bundle_is_installed_without_a_network(
    made_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = json.loads((made_bundle / "bundle.json").read_text())
    assert about["versions"] == {"onnxruntime-gpu": "1.31.1", "nibabel": "5.4.2"}
    assert len(about["parts"]) > 2
    site, out = tmp_path / "site", tmp_path / "out"
    (site / "onnxruntime" / "old").mkdir(parents=True)
    (site / "onnxruntime-1.30.0.dist-info").mkdir()
    found = set_up(made_bundle, site, out, monkeypatch)
    assert found["onnxruntime"] == "1.31.1"
    assert found["providers"] == ["CUDAExecutionProvider"]
    assert found["from"] == str(site / "onnxruntime" / "__init__.py")
    assert list(found["missing"]) == ["one_that_is_not_there"]
    assert "error" not in found  # the onnxruntime of these tests is another, but this one is whole
    assert not (site / "onnxruntime" / "old").exists()
    assert not (site / "onnxruntime-1.30.0.dist-info").exists()
    assert not (site / "onnxruntime" / "datasets").exists()
    assert not (site / "nibabel").exists()
    provider = (site / "onnxruntime" / "capi" / kernels.PROVIDER).read_bytes()
    assert b"launched" in provider
    assert b"older" not in provider
    (site / "onnxruntime" / "capi" / kernels.PROVIDER).write_bytes(b"mark")
    found = set_up(made_bundle, site, out, monkeypatch)
    assert (site / "onnxruntime" / "capi" / kernels.PROVIDER).read_bytes() == b"mark"  # it was not unpacked again
    assert "have overwritten each other's files; keep one" in found["error"]


def test_libraries_of_cuda_are_linked_from_beside_torch(
    made_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment has torch from elsewhere, and onnxruntime looks beside itself."""
    libraries = tmp_path / "elsewhere" / "nvidia"
    libraries.mkdir(parents=True)
    torch = SimpleNamespace(origin=str(libraries.parent / "torch" / "__init__.py"))
    about = install.read_bundle(made_bundle)
    with monkeypatch.context() as patch:
        patch.setattr(install, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: torch)))
        for _ in range(2):
            install.install(made_bundle, about, tmp_path / "site")
    assert (tmp_path / "site" / "nvidia").resolve() == libraries
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"file/site: cannot be written to .*python3 -m venv --system-site-packages"):
        install.install(made_bundle, about, tmp_path / "file" / "site")


def test_a_bundle_that_cannot_be_used_is_one_line(made_bundle: Path) -> None:
    about = json.loads((made_bundle / "bundle.json").read_text())
    (made_bundle / "bundle.json").write_text(json.dumps({**about, "python": "3.8"}))
    with pytest.raises(SystemExit, match=f"for Python 3.8, found {PYTHON}"):
        install.read_bundle(made_bundle)
    part = made_bundle / about["parts"][1]
    part.write_bytes(part.read_bytes()[::-1])
    with pytest.raises(SystemExit, match="damaged: its files do not have the hash"):
        install.read_bundle(made_bundle)
    part.unlink()
    with pytest.raises(SystemExit, match=r"site\.tar\.xz\.1: missing, expected site\.tar\.xz\.0, "):
        install.read_bundle(made_bundle)
    with pytest.raises(SystemExit, match="no bundle"):
        install.read_bundle(made_bundle / "nowhere")


def test_the_bundle_brings_every_dependency_that_is_not_expected_there() -> None:
    names = bundle.wanted(BENCHMARKS.parent / "pyproject.toml")
    assert names[0] == "onnxruntime-gpu"
    assert {"nibabel", "msgspec", "python-gdcm", "pytest"} <= set(names)
    assert not {"onnxruntime", "Jinja2", "numpy"} & set(names)


def test_made_scans_go_to_and_fro(tmp_path: Path, example: nibabel.Nifti1Image) -> None:
    (path,) = inputs.make_scans(tmp_path, count=1, side=160, slices=300)
    made = nibabel.load(path)
    voxels, old = np.asarray(made.dataobj), np.asarray(example.dataobj)
    depth = old.shape[2]
    assert voxels.shape == (160, 160, 300)
    np.testing.assert_array_equal(voxels[..., :depth], voxels[..., depth : 2 * depth][..., ::-1])
    assert abs(float(voxels[..., 3].mean()) - float(old[..., 3].mean())) < 5
    assert np.linalg.norm(made.affine[:3, 0]) * 160 == pytest.approx(np.linalg.norm(example.affine[:3, 0]) * 128)
    before = path.stat().st_mtime_ns
    inputs.make_scans(tmp_path, count=1, side=160, slices=300)
    assert path.stat().st_mtime_ns == before


def test_graphs_are_those_that_infer_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in FP16 that lies beside the model is taken, and fused."""
    monkeypatch.setattr("gpu.inputs.GpuGraph.made", lambda graph: (graph.model.name, graph.precision, graph.fused))
    model, beside = tmp_path / "x.onnx", tmp_path / "x.fp16.onnx"
    found = [inputs.graph_file(name, model) for name in inputs.GRAPHS]
    assert found == [model, ("x.onnx", "fp16", False), ("x.onnx", "fp32", True), ("x.onnx", "fp16", True)]
    beside.touch()
    found = [inputs.graph_file(name, model) for name in inputs.GRAPHS]
    assert found == [model, beside, ("x.onnx", "fp32", True), ("x.fp16.onnx", "fp16", True)]


def test_setup_checks_whatever_the_tests_on_a_gpu_import() -> None:
    """Of other packages, at the beginning of files; what one of them lacks would end the tests there."""
    root = Path(__file__).parents[2]
    files = [root / "tests" / "conftest.py", *(root / "tests" / "gpu").glob("*.py")]
    seen, found = set(files), set[str]()
    while files:
        for node in ast.parse(files.pop().read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                path = root / f"{name.replace('.', '/')}.py"
                if name.startswith("tests.") and path.is_file() and path not in seen:
                    seen.add(path)
                    files.append(path)
                elif not name.startswith("tests"):
                    found.add(name.partition(".")[0])
    checked = {name.partition(".")[0] for name in install.MODULES}
    assert found - set(sys.stdlib_module_names) - checked == {"parotid_seg"}
    assert {"pytest", "hypothesis"} <= found
