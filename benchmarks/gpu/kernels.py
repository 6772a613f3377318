"""Makes the table of the CUDA kernels that graphs of the packaged model launch, by which `bundle` trims.

    python benchmarks/gpu kernels --python ENV/bin/python --libraries FOLDER

ENV has onnxruntime-gpu; FOLDER has libraries with the names of CUDA's that may count instead of compute, so no GPU is
needed: tests/cuda_stub/build.py makes such. On a machine with a GPU, FOLDER is that of CUDA's own libraries. Needs gcc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gpu.fatbins import file_offset
from gpu.inputs import GRAPHS, SLICES, VARIANTS, graph_file, make_scans
from parotid_seg.bench.selection import in_memory, rotation
from parotid_seg.files import write_text
from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cuda import OPTIONS
from parotid_seg.runtime.engines.padding import pad_to_bucket

HERE = Path(__file__).parent
PROVIDER = "libonnxruntime_providers_cuda.so"
SIZES = (1, 16, 64, 256)
"""Samples of the chunks, each at the example's own size, if it has so many slices, and at 512 x 512."""
RUNS = {
    **{graph: (graph, {}) for graph in GRAPHS},
    **{f"{GRAPHS[-1]}, {name}": (GRAPHS[-1], more) for name, more in VARIANTS.items() if name != "NHWC"},
}
"""What is recorded: a graph, and options of the CUDA provider. With NHWC a GPU computes shapes, too, which
libraries that only count cannot; in fixed shapes its kernels are those of the graph without it."""
RUN = """
import json, sys
import numpy, onnxruntime
model, options, *chunks = sys.argv[1:]
onnxruntime.set_default_logger_severity(3)
provider = ("CUDAExecutionProvider", json.loads(options))
session = onnxruntime.InferenceSession(model, providers=[provider], enable_fallback=0)
assert session.get_providers()[0] == provider[0], session.get_providers()
for chunk in chunks:
    session.run(None, dict(numpy.load(chunk)))
python = f"cp{sys.version_info.major}{sys.version_info.minor}"
print(onnxruntime.__version__, python, onnxruntime.__file__)
"""


def record(
    python: Path, libraries: Path, model: Path, provider: Mapping[str, str], chunks: Sequence[Path], scratch: Path
) -> tuple[str, list[str]]:
    """Run chunks of a model in an environment, with more options of the CUDA provider.

    Returns:
        what the program printed last: onnxruntime's version, Python's, and onnxruntime's file; and the recorder's
        lines, see recorder.c.

    Raises:
        SystemExit: if it fails, with the end of its output.
    """
    recorder, lines = scratch / "recorder.so", scratch / "kernels.txt"
    source = HERE / "recorder.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", recorder, source, "-ldl", "-lpthread"], check=True)
    found = (file for file in libraries.iterdir() if re.search(r"\.so\.\d+$", file.name))
    preloaded = [recorder, *sorted(found)]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(map(str, preloaded)),
        "LD_LIBRARY_PATH": str(libraries),
        "KERNELS_FILE": str(lines),
        "ORT_DISABLE_TELEMETRY": "1",
    }
    command = [str(word) for word in (python, "-c", RUN, model, json.dumps({**OPTIONS, **provider}), *chunks)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"kernels: {model.name} does not run: {done.stderr[-600:]}")
    return done.stdout.splitlines()[-1], lines.read_text().splitlines()


def save_chunks(folder: Path, sizes: Sequence[int], scans: Sequence[Path]) -> list[Path]:
    """Chunks of these sizes, padded as for a GPU, for numpy to load."""
    contract = read_model(DEFAULT_MODEL).contract
    paths: list[Path] = []
    for scan in scans:
        covered = in_memory([(scan,)], contract)
        for size in sizes:
            for chunk in rotation(covered, contract, size).chunks[:1]:
                paths.append(folder / f"{len(paths)}.npz")
                np.savez(paths[-1], **pad_to_bucket(chunk)[0])  # type: ignore[arg-type]  # arrays by name
    return paths


def table_for(version: str, tag: str) -> Path:
    """The table of a version of onnxruntime-gpu for a version of Python ("cp312"), whose files differ."""
    return HERE / f"kernels-{version}-{tag}.tsv"


def table_of(lines: Mapping[str, Sequence[str]], version: str, provider: Path) -> str:
    """The recorder's lines by model as a table: a line with version and hash, then a line for each model and kernel."""
    library = provider.read_bytes()
    rows = {
        (file_offset(library, int(address)), int(size), model, int(launches), kernel)
        for model, recorded in lines.items()
        for file, address, size, launches, kernel in (line.split("\t") for line in recorded)
        if Path(file).name == PROVIDER
    }
    head = f"# onnxruntime-gpu {version}: {PROVIDER} {hashlib.sha256(library).hexdigest()}"
    columns = "offset\tbytes\tmodel\tlaunches\tkernel"
    return "\n".join([head, columns, *("\t".join(map(str, row)) for row in sorted(rows))]) + "\n"


def launched(table: Path, library: bytes) -> set[int]:
    """Offsets of the fat binaries with launched kernels.

    Raises:
        SystemExit: if the table was made from another library.
    """
    head, _, *rows = table.read_text(encoding="utf-8").splitlines()
    if (found := hashlib.sha256(library).hexdigest()) != (expected := head.split()[-1]):
        raise SystemExit(
            f"{table.name}: of {PROVIDER} {expected[:12]}, found {found[:12]}; make it anew (python benchmarks/gpu "
            "kernels), or bundle the whole library (--whole)"
        )
    return {int(row.split("\t")[0]) for row in rows}


def main(words: Sequence[str] | None = None) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(
        prog="gpu kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, required=True, help="of an environment with onnxruntime-gpu")
    parser.add_argument("--libraries", type=Path, required=True, help="folder of libcudart.so.13, libcudnn.so.9 ...")
    parser.add_argument("--out", type=Path, help="default: kernels-VERSION-PYTHON.tsv in this folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        own = next((example_folder() / "imagesTr").glob("*.nii.gz"))
        chunks = save_chunks(scratch, options.sizes, [own, *make_scans(scratch, count=1, slices=SLICES)])
        lines, printed = {}, ""
        for name, (graph, provider) in RUNS.items():
            model = graph_file(graph)
            printed, lines[name] = record(options.python, options.libraries, model, provider, chunks, scratch)
    version, tag, file = printed.split(" ", 2)
    out = options.out or table_for(version, tag)
    table = table_of(lines, version, Path(file).parent / "capi" / PROVIDER)
    write_text(table, out)
    print(f"{out}: {len(table.splitlines()) - 2} kernels")
