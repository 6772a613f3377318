"""The front door: help answers at once and shows an example, and the inference side never loads torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import parotid_seg
from parotid_seg.runtime.pipeline.protocol.worker_stdio import command_of
from tests.command_line import Run

pytestmark = pytest.mark.slow


COMMANDS = ["infer", "train", "export", "evaluate", "inspect", "commission"]
HEAVY = {"numpy", "torch", "nibabel", "onnxruntime", "scipy", "PIL", "onnx", "timm"}


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from parotid_seg.cli import main
for command in {[[], *([name] for name in COMMANDS)]!r}:
    sys.argv = ["parotid-seg", *command, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    heavy = {HEAVY!r} & {{name.split(".")[0] for name in sys.modules}}
    assert not heavy, f"{{command}}: {{heavy}}"
"""
    assert "parotid_seg" in modules_after(code)


def test_the_inference_side_imports_no_training_package() -> None:
    found = modules_after(
        "import parotid_seg.runtime.pipeline.run, parotid_seg.runtime.engines.onnxruntime.cpu; "
        "import parotid_seg.runtime.evaluation, "
        "parotid_seg.runtime.inspection"
    )
    assert "onnxruntime" in found
    assert not found & {"torch", "timm", "onnx", "matplotlib"}
    assert "jinja2" not in found, "only where a report is written"


def test_infer_starts_its_first_worker_before_it_imports_anything_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from types import SimpleNamespace
from parotid_seg.runtime.pipeline import worker_process
worker_process.subprocess = SimpleNamespace(Popen=lambda *_, **__: sys.exit())
sys.argv = ["parotid-seg", "infer", {str(tmp_path)!r}, "--out", {str(tmp_path / "out")!r}]
from parotid_seg.cli import main
try:
    main()
except SystemExit:
    pass
"""
    found = modules_after(code)
    assert "socket" in found
    assert not found & (HEAVY | {"rich", "msgspec", "pydicom", "openvino"})


def test_a_worker_imports_all_that_a_nifti_scan_needs_and_nothing_else() -> None:
    *words, program, folder = command_of("parotid_seg.runtime.pipeline.worker_server")
    program = program.replace("; main()", "") + "; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [*words, program, folder], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    found = set(done.stderr.split())
    assert {"nibabel", "scipy.ndimage", "isal.isal_zlib", "PIL.WebPImagePlugin"} <= found
    unwanted = {"pydicom", "requests", "openvino", "onnxruntime", "rich", "typer", "jinja2", "filelock", "torch"}
    assert not found & unwanted


def test_a_command_imports_openvino_without_what_converts_models() -> None:
    code = "from parotid_seg.imports import lighten_command; lighten_command(); "
    code += "from parotid_seg.runtime.engines.openvino import cpu_core; cpu_core()"
    found = modules_after(code)
    assert {"openvino", "nibabel"} <= found
    assert not found & {"absl", "onnxruntime", "pydicom"}


def test_nibabel_without_pydicom_leaves_pydicom_as_it_is() -> None:
    code = "from parotid_seg.imports import import_nibabel; import_nibabel(); import pydicom; pydicom.Dataset()"
    assert {"nibabel", "pydicom"} <= modules_after(code)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(command: Run, name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0
    assert f"Example: parotid-seg {name}" in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing command. (see parotid-seg --help)"),
        (["bogus"], "No such command 'bogus'. (see parotid-seg --help)"),
        (["infer"], "Missing argument 'SCAN'. (see parotid-seg infer --help)"),
        (["infer", "x"], "Missing option '--out'. (see parotid-seg infer --help)"),
        (["infer", "x", "--out"], "Option '--out' requires an argument. (see parotid-seg infer --help)"),
        (["bench", "--scans"], "Option '--scans' requires an argument. (see parotid-seg bench --help)"),
        (
            ["infer", "x", "--out", "y", "--batch-size", "two"],
            "--batch-size: found 'two', expected a whole number of at least 1 (see parotid-seg infer --help)",
        ),
        (
            ["train", "x", "--out", "y", "--seed", "1.5"],
            "--seed: found '1.5', expected a whole number (see parotid-seg train --help)",
        ),
        (
            ["train", "x", "--out", "y", "--max-minutes", "an hour"],
            "--max-minutes: found 'an hour', expected a number (see parotid-seg train --help)",
        ),
        (["infer", "x", "--out", "y", "--bogus"], "No such option"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(command: Run, arguments: list[str], words: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_version(command: Run, words: list[str]) -> None:
    assert command(*words).stdout == f"parotid-seg {parotid_seg.__version__}\n"


def test_help_by_its_short_name(command: Run) -> None:
    assert command("-h").stdout == command("--help").stdout
    assert command("infer", "-h").stdout == command("infer", "--help").stdout


def test_verbose_says_on_stderr_what_is_done(command: Run, scans: Path, tmp_path: Path) -> None:
    words = ("infer", scans, "--backend", "onnxruntime", "--no-pictures", "--no-report")
    told = command(*words, "--out", tmp_path / "a", "-q", "-v")
    assert (told.returncode, told.stdout) == (0, "")
    lines = [re.sub(r"\d+(\.\d+)?", "N", line) for line in told.stderr.splitlines()]
    assert all(line.startswith("N:N:N ") for line in lines)
    assert "N:N:N files found: N" in lines
    assert "N:N:N good: read N s, segment N s, write N s; wrote good.nii.gz" in lines
    silent = command(*words, "--out", tmp_path / "b", "-q")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")


def test_the_shell_completes_commands_and_options() -> None:
    def completed(*words: str) -> list[str]:
        environment = {"_PAROTID_SEG_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
        environment |= {"COMP_CWORD": str(len(words) - 1)}
        words_of_it = [sys.executable, "-m", "parotid_seg"]
        ran = subprocess.run(words_of_it, env={**os.environ, **environment}, check=True, capture_output=True, text=True)
        return ran.stdout.split()

    assert completed("parotid-seg", "in") == ["infer", "inspect"]
    assert "--format" in completed("parotid-seg", "infer", "--fo")


IMPORT_ALL = """
import importlib, pkgutil, sys
import parotid_seg, parotid_seg.cli
for module in pkgutil.walk_packages(parotid_seg.__path__, "parotid_seg."):
    if not module.name.startswith(("parotid_seg.train", "parotid_seg.export", "parotid_seg.cluster")):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def test_the_runtime_is_imported_where_there_is_no_unix_and_no_metadata_of_its_own() -> None:
    """As in a checkout that is not installed, and on Windows."""
    absent = """
import signal, sys
from importlib import metadata
del signal.SIGKILL
for name in ("fcntl", "resource"):
    sys.modules[name] = None
found = metadata.version
def version(name):
    if name == "parotid-seg":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
"""
    code = absent + IMPORT_ALL + "from parotid_seg.system import versions_of\n"
    code += "assert versions_of(['parotid-seg']) == {'parotid-seg': parotid_seg.__version__}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_inspect_tells_of_models_and_scans(command: Run, scans: Path, tmp_path: Path) -> None:
    from parotid_seg.models import DEFAULT_MODEL

    model = command("inspect", DEFAULT_MODEL).stdout
    assert "1 parotid_left" in model
    assert "verified" in model
    scan = command("inspect", scans / "good_0000.nii.gz").stdout
    assert "LPI" in scan
    assert re.search(r"^for: +the packaged model \(CT\)$", scan, re.MULTILINE)
    assert re.search(r"^would be: +segmented$", scan, re.MULTILINE)
    wrong = command("inspect", tmp_path / "gone.onnx")
    assert wrong.returncode == 2
    assert "no such file" in wrong.stderr


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from parotid_seg.cli import main; main()"
    words = [sys.executable, "-c", code, "export", str(tmp_path / "best.pt"), "--out", str(tmp_path / "m.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "parotid-seg[export]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """onnxruntime keeps what it is going to send in the user's cache folder."""
    load = "from parotid_seg.models import DEFAULT_MODEL; from parotid_seg.runtime.engines.load import load_backend; "
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    words = [sys.executable, "-c", load + "load_backend(DEFAULT_MODEL, 'onnxruntime', 'cpu')"]
    subprocess.run(words, env=environment, check=True, timeout=60)
    assert not list(tmp_path.iterdir())
