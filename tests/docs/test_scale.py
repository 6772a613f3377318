"""Shares of a list of scans: each scan exactly once, the same whenever a share is done again, and one table of all."""

import csv
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import pytest
import yaml

from tests.command_line import parse

ROOT = Path(__file__).parents[2]
SCALE = ROOT / "docs" / "scale"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="clusters; macOS has a bash of 2007")

RECORDER = """#!{python}
import json, sys
print(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def share(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Do a share with a stand-in for parotid-seg that prints what it was called with."""
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER.format(python=sys.executable))
    recorder.chmod(0o755)

    def run(*arguments: Any, **environment: Any) -> subprocess.CompletedProcess[str]:
        words = ["bash", str(SCALE / "share.sh"), *map(str, arguments)]
        environment = {"PATH": "/usr/bin:/bin", "PAROTID_SEG": f"{recorder} --first", **environment}
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


def handed_over(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def scans_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    words = handed_over(done)
    return words[words.index("--") + 1 :]


@pytest.mark.parametrize("variable", ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"])
@pytest.mark.parametrize(("count", "shares"), [(10, 3), (3, 3), (1, 1), (100, 7)])
def test_every_scan_is_in_exactly_one_share(
    share: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, variable: str, count: int, shares: int
) -> None:
    names = [f'/data/Head & Neck/it\'s "{number}" *?.nii.gz' for number in range(count)]
    (tmp_path / "scans.txt").write_text("\n".join(names) + "\n")
    found = [scans_of(share("scans.txt", "masks", shares, **{variable: str(each)})) for each in range(shares)]
    assert sorted(scan for each in found for scan in each) == sorted(names)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize("text", ["a\nb", "a\n\nb\n\n", "a\r\n\r\nb\r\n"])
def test_empty_lines_a_last_line_without_end_and_lines_from_windows(
    share: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, text: str
) -> None:
    (tmp_path / "scans.txt").write_bytes(text.encode())
    done = [share("scans.txt", "masks", 4, SLURM_ARRAY_TASK_ID=str(number)) for number in range(4)]
    found = [scans_of(each) for each in done if "no scans" not in each.stdout]
    assert found == [["a"], ["b"]]


def test_a_share_without_scans_is_done(share: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "scans.txt").write_text("a\nb\n")
    done = share("scans.txt", "masks", 5, SLURM_ARRAY_TASK_ID="4")
    assert (done.returncode, done.stdout) == (0, "share 4: no scans\n")


def test_what_is_called_and_where_the_masks_go(
    share: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "scans.txt").write_text("-a\n")
    done = share("scans.txt", "my masks", 1, "--format", "rtstruct", "--workers", "2", SLURM_ARRAY_TASK_ID="0")
    expected = ["--first", "infer", "--out", "my masks/0", "--format", "rtstruct", "--workers", "2", "--", "-a"]
    assert handed_over(done) == expected
    assert handed_over(share("scans.txt", "m", 1, SLURM_ARRAY_TASK_ID="0"))[1:] == ["infer", "--out", "m/0", "--", "-a"]


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("scans.txt", "masks"), {"SLURM_ARRAY_TASK_ID": "0"}, "usage: share.sh LIST OUT SHARES"),
        (("scans.txt", "masks", 3), {}, "neither Slurm nor Kubernetes tells"),
        (("scans.txt", "masks", 3), {"SLURM_ARRAY_TASK_ID": "3"}, "expected them to be counted from 0"),
        (("gone.txt", "masks", 3), {"SLURM_ARRAY_TASK_ID": "0"}, "gone.txt"),
    ],
)
def test_nothing_is_done_if_it_is_unclear_what(
    share: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    arguments: tuple[int | str, ...],
    environment: dict[str, str],
    words: str,
) -> None:
    (tmp_path / "scans.txt").write_text("a\n")
    done = share(*arguments, **environment)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stdout == ""


def test_the_exit_status_is_that_of_infer(
    share: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "scans.txt").write_text("a\n")
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    assert share("scans.txt", "m", 1, SLURM_ARRAY_TASK_ID="0", PAROTID_SEG=str(failing)).returncode == 3


def test_infer_takes_the_place_of_the_script_so_that_signals_reach_it(tmp_path: Path) -> None:
    (tmp_path / "scans.txt").write_text("a\n")
    teller = tmp_path / "teller"
    teller.write_text("#!/bin/sh\necho $$\n")
    teller.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PAROTID_SEG": str(teller), "SLURM_ARRAY_TASK_ID": "0"}
    words = ["bash", str(SCALE / "share.sh"), str(tmp_path / "scans.txt"), "masks", "1"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert int(process.communicate()[0]) == process.pid


def gather(*arguments: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCALE / "gather.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, check=False, encoding="utf-8")


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.mark.slow
def test_shares_of_real_scans_and_their_table(
    share: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, head: nibabel.Nifti1Image
) -> None:
    """Two short scans of one name and one that is none, in two shares; then a second time."""
    for name in ("a b", "c"):
        (tmp_path / name).mkdir()
        nibabel.save(head.slicer[:, :, 2:8], tmp_path / name / "same_0000.nii.gz")
    (tmp_path / "no scan.nii.gz").write_bytes(b"nothing")
    (tmp_path / "link").symlink_to(tmp_path / "c")
    scans = [tmp_path / "a b" / "same_0000.nii.gz", tmp_path / "no scan.nii.gz", tmp_path / "link"]
    (tmp_path / "scans.txt").write_text("".join(f"{scan}\n" for scan in scans))
    environment = {"PAROTID_SEG": f"{sys.executable} -m parotid_seg", "PYTHONPATH": str(ROOT)}
    words = ("scans.txt", "masks", 2, "--backend", "onnxruntime", "--workers", "1", "--no-pictures", "--no-report")

    first = share(*words, SLURM_ARRAY_TASK_ID="0", **environment)
    assert first.returncode == 0, first.stderr
    half = gather(tmp_path / "scans.txt", tmp_path / "masks")
    assert half.returncode == 1
    assert half.stderr == f"missing: {scans[1]}\n"

    assert share(*words, SLURM_ARRAY_TASK_ID="1", **environment).returncode == 1  # nothing but a scan of no use
    again = share(*words, SLURM_ARRAY_TASK_ID="0", **environment)
    assert "2 done before" in again.stdout
    whole = gather(tmp_path / "scans.txt", tmp_path / "masks")
    assert (whole.returncode, whole.stderr) == (0, "")
    found = [(row["share"], row["status"]) for row in rows_of(whole)]
    assert found == [("0", "done"), ("0", "done"), ("1", "failed")]
    assert all((tmp_path / "masks" / row["share"] / row["mask"]).is_file() for row in rows_of(whole) if row["mask"])


def test_tables_with_other_columns_and_more_than_nine_shares(tmp_path: Path) -> None:
    for number, (columns, row) in enumerate(
        [("case,left_agreement,source", "a,0.95,/d/a"), ("case,source", "b,/d/b")] * 6
    ):
        (tmp_path / "masks" / str(number)).mkdir(parents=True)
        table = f"{columns}\r\n{row}{number}\r\n"
        (tmp_path / "masks" / str(number) / "summary.csv").write_text(table, encoding="utf-8")
    (tmp_path / "scans.txt").write_bytes(b"/d/a0\n\n/d/b1\r\n/d/a\n/d\n/e\n")
    done = gather(tmp_path / "scans.txt", tmp_path / "masks")
    assert [row["share"] for row in rows_of(done)] == [str(number) for number in range(12)]
    assert [row["left_agreement"] for row in rows_of(done)] == ["0.95", ""] * 6
    assert done.stderr == "missing: /d/a\nmissing: /e\n"


def test_scans_in_several_shares(tmp_path: Path) -> None:
    """An earlier run had more shares: their tables have the same scans once more. A folder may have several rows: two
    series, or two reasons."""
    for share, sources in (("0", "/d/a /d/b"), ("1", "/d/c"), ("2", "/d/b")):
        (tmp_path / "masks" / share).mkdir(parents=True)
        lines = [f"{source},{series}" for source in sources.split() for series in ("CT series 1", "CT series 2")]
        lines += [f"/d/bad-{share},", f"/d/bad-{share},"]
        (tmp_path / "masks" / share / "summary.csv").write_text("\n".join(["source,series", *lines]), encoding="utf-8")
    (tmp_path / "scans.txt").write_text("/d/a\n/d/b\n/d/c\n")
    done = gather(tmp_path / "scans.txt", tmp_path / "masks")
    assert done.returncode == 1
    expected = [f"in several shares: /d/b CT series {number} (shares 0, 2)" for number in (1, 2)]
    assert done.stderr.splitlines() == expected


def job() -> dict[str, Any]:
    return yaml.safe_load((SCALE / "kubernetes.yaml").read_text())


def test_the_job_counts_its_shares_alike_and_runs_the_script(
    tmp_path: Path, share: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    spec = job()["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    bash, script, scans, masks, shares = container["command"]
    assert (bash, script) == ("bash", "/scripts/share.sh")
    assert (job()["kind"], spec["completionMode"], spec["completions"]) == ("Job", "Indexed", int(shares))
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in spec["template"]["spec"]["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert mounts[str(Path(scans).parent)] == "scans"
    assert "persistentVolumeClaim" in volumes[mounts[masks]]
    assert f"configmap {volumes['scripts']['configMap']['name']} " in (ROOT / "docs" / "scale.md").read_text()


def test_the_job_s_arguments_are_those_of_infer() -> None:
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    understood(["scan", "--out", "masks", *container["args"]])


def test_the_job_is_locked_up_and_retries_what_may_help() -> None:
    spec = job()["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    user = pod["securityContext"]
    assert user["runAsNonRoot"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    assert pod["restartPolicy"] == "Never"
    assert spec["backoffLimitPerIndex"] >= 1
    fails = [rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailIndex"]
    assert [rule["onExitCodes"]["values"] for rule in fails] == [[3]]


def understood(words: list[str]) -> None:
    parse("infer", words)


def test_the_lines_of_the_docs_for_slurm_are_understood() -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    lines = [shlex.split(line) for line in re.findall(r"sbatch --array=[^`\n]*", text)]
    assert len(lines) == 3
    for _, array, script, _, masks, shares, *options in lines:
        assert (ROOT / script).is_file()
        assert max(map(int, re.findall(r"\d+", array))) < int(shares)
        understood(["scan", "--out", masks, *options])
