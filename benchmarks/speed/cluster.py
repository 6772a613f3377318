"""`parotid-seg infer --cluster` against the run on one machine: masks, time, memory, and what is lost when things die.

    python benchmarks/speed/cluster.py SCANS --out FILE.json [--only PART,...] [--large FOLDER]

On a machine without another Ray: `head` ends all there is. Parts:


`speed`: the scans by the command alone, then on a local Ray with one worker and with two; masks byte for byte.
`workers`: a worker is killed every 20 s.
`head`: a cluster of its own whose head is killed half-way; then a new one, and the same command.
`memory`: 2 000 small scans; memory of the command, the client and the workers over the run.
`hosts`: four hosts with addresses of their own (network namespaces, needs root), one of them cut off half-way.
`tasks`: how many tasks a second the client hands out and takes back, if there is nothing to do in them.
`cores`: what one core does alone, of these scans and of larger ones (`--large`), and the bytes read and written.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import operator
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import pydicom

from parotid_seg.bench.system_state import about_machine
from parotid_seg.files import write_text
from parotid_seg.models import example_folder
from parotid_seg.system import versions_of

SMALL_SCANS = 2000
TASKS = 5000
LARGE_COPIES = 12
HOSTS = 4
KILLED_EVERY_S = 20.0
INFER = [sys.executable, "-m", "parotid_seg", "infer"]
RAY = [str(Path(sys.executable).with_name("ray"))]


def lines_of(process: subprocess.Popen[str]) -> IO[str]:
    """What a process prints."""
    assert process.stdout is not None, "started without a pipe"
    return process.stdout


def run(
    scans: Path, out: Path, *options: str, before: Sequence[str] = (), half_way: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """A run to its end: seconds in all and from the first case to the last, and how cases ended.

    Args:
        scans, out, options: of the command.
        before: words in front of the command.
        half_way: called when half of the scans have ended.
    """
    begun, half = time.perf_counter(), len(list(scans.iterdir())) // 2
    process = subprocess.Popen(
        [*before, *INFER, str(scans), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = []
    for _ in (line for line in lines_of(process) if line.startswith("[")):
        ends.append(time.perf_counter())
        if len(ends) == half:
            half_way()
    error = process.stderr.read() if process.stderr else ""
    return {
        "exit_status": process.wait(),
        "error": error[-500:],
        "seconds": round(time.perf_counter() - begun, 1),
        "seconds_to_first_case": round(ends[0] - begun, 1) if ends else None,
        "seconds_a_case": round((ends[-1] - ends[0]) / (len(ends) - 1), 3) if len(ends) > 1 else None,
        "longest_gap_s": round(max(map(operator.sub, ends[1:], ends)), 1) if len(ends) > 1 else None,
        "cases": statuses(out),
    }


def statuses(out: Path) -> dict[str, int]:
    """How many cases ended how, by the summary."""
    if not (out / "summary.csv").exists():
        return {}
    with (out / "summary.csv").open() as file:
        return dict(Counter(row["status"] for row in csv.DictReader(file)))


def masks(out: Path) -> dict[str, str]:
    """Hashes by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.nii.gz"))}


def against(out: Path, expected: dict[str, str]) -> dict[str, Any]:
    """Masks that differ or miss, cases that the journal has more than once, and what is left over."""
    found = masks(out)
    with (out / "journal.jsonl").open() as file:
        entries = Counter(entry["case"] for entry in map(json.loads, file) if entry["status"] == "done")
    return {
        "masks": len(found),
        "missing": len(expected.keys() - found.keys()),
        "other_bytes": sum(found[name] != expected[name] for name in found.keys() & expected.keys()),
        "journalled_twice": sum(count > 1 for count in entries.values()),
        "half_written": len(list(out.rglob(".partial-*"))),
    }


def speed(scans: Path, scratch: Path, expected: dict[str, str]) -> dict[str, Any]:
    """One worker and two against the command alone, which has both cores, too."""
    found = {}
    for name, options in {
        "alone, 1 worker": ("--workers", "1"),
        "alone": (),
        "ray, 1 worker": ("--cluster", "local", "--workers", "1"),
        "ray, 2 workers": ("--cluster", "local", "--workers", "2"),
        "ray, 1 worker of 2 cores": ("--cluster", "local", "--workers", "1", "--worker-cpus", "2"),
    }.items():
        out = scratch / name.replace(" ", "-")
        found[name] = run(scans, out, "--backend", "onnxruntime", *options)
        expected.update({} if expected else masks(out))
        found[name] |= against(out, expected)
        print(name, json.dumps(found[name]), flush=True)
    return found


def workers(scans: Path, scratch: Path, expected: dict[str, str]) -> dict[str, Any]:
    """A worker is killed every 20 s."""
    out, kills, over = scratch / "workers", [0], threading.Event()

    def kill() -> None:
        while not over.wait(KILLED_EVERY_S):
            found = subprocess.run(["pgrep", "-f", "^ray::.*MapWorker"], capture_output=True, text=True, check=False)
            if pids := found.stdout.split():
                subprocess.run(["kill", "-9", random.choice(pids)], check=False)
                kills[0] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        told = run(scans, out, "--backend", "onnxruntime", "--cluster", "local")
    finally:
        over.set()
        killer.join()
    return told | {"kills": kills[0]} | against(out, expected)


def head(scans: Path, scratch: Path, expected: dict[str, str]) -> dict[str, Any]:
    """The head is killed half-way, a new one started, and the command repeated."""
    out, found = scratch / "head", []
    start = [*RAY, "start", "--head", "--port", "6399", "--node-ip-address", "127.0.0.1", "--num-cpus", "2"]
    for half_way in (lambda: subprocess.run(["pkill", "-9", "-f", "gcs_server|raylet/raylet"], check=False), lambda: 0):
        subprocess.run(
            [*start, "--include-dashboard", "false", "--disable-usage-stats"], check=True, capture_output=True
        )
        options = ("--backend", "onnxruntime", "--cluster", "127.0.0.1:6399")
        found.append(run(scans, out, *options, half_way=half_way))
        subprocess.run([*RAY, "stop", "--force"], check=False, capture_output=True)
        print(found[-1], flush=True)
    return {"runs": found} | against(out, expected)


def memory(_: Path, scratch: Path, __: dict[str, str]) -> dict[str, Any]:
    """Memory (MiB, own pages) of the command, the client and the workers at each tenth of many small scans."""
    small, out = scratch / "small", scratch / "memory"
    small.mkdir()
    image, labels = (nibabel.load(next((example_folder() / each).iterdir())) for each in ("imagesTr", "labelsTr"))
    middle = int(np.median(np.nonzero(np.asarray(labels.dataobj))[2]))
    some = image.slicer[:, :, middle - 6 : middle + 6]
    stored = np.asarray(some.dataobj)
    for index in range(SMALL_SCANS):
        nibabel.save(nibabel.Nifti1Image(stored + np.int16(index % 50), some.affine), small / f"s{index:04d}.nii.gz")
    process = subprocess.Popen(
        [*INFER, str(small), "--out", str(out), "--cluster", "local", "--no-report", "--no-pictures"],
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, dict[str, list[float]]] = {}
    for count, _line in enumerate(line for line in lines_of(process) if line.startswith("[")):
        if count % (SMALL_SCANS // 10) == SMALL_SCANS // 20:
            for name, pattern in {
                "command": str(process.pid),
                "client": "cluster.driver",
                "worker": "^ray::.*MapWorker",
            }.items():
                for number, pid in enumerate([pattern] if name == "command" else pids_of(pattern)):
                    found.setdefault(name, {}).setdefault(str(number), []).append(own_mib(pid))
            print(count, {name: {k: v[-1] for k, v in each.items()} for name, each in found.items()}, flush=True)
    return {"exit_status": process.wait(), "cases": statuses(out), "mib": found}


def pids_of(pattern: str) -> list[str]:
    """Processes whose command line matches, oldest first."""
    return subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()


def own_mib(pid: str) -> float:
    """Memory that a process shares with no other."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/smaps_rollup").open() as file:
        return round(sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024, 1)
    return 0.0


@contextlib.contextmanager
def network() -> Iterator[list[tuple[str, ...]]]:
    """Commands that put what follows them on one of four hosts, which a switch connects."""
    names = [f"pseg{number}" for number in range(HOSTS)]

    def ip(*arguments: str, check: bool = True) -> None:
        subprocess.run(["ip", *arguments], check=check, capture_output=True)

    ip("link", "add", "psegbr", "type", "bridge")
    ip("link", "set", "psegbr", "up")
    try:
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}v", "master", "psegbr", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [("ip", "netns", "exec", name) for name in names]
    finally:
        for name in names:
            subprocess.run(f"ip netns pids {name} | xargs -r kill -9", shell=True, check=False, capture_output=True)
            ip("netns", "del", name, check=False)
        ip("link", "del", "psegbr", check=False)


def hosts(scans: Path, scratch: Path, expected: dict[str, str]) -> dict[str, Any]:
    """One of four hosts loses its network half-way, for good."""
    out = scratch / "hosts"
    with network() as on:
        common = ["--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats"]
        for number, host in enumerate(on):
            address = ["--node-ip-address", f"10.77.0.{number + 1}"]
            role = (
                ["--head", "--port", "6379", "--include-dashboard", "false", "--temp-dir", str(scratch / "r")]
                if number == 0
                else ["--address", "10.77.0.1:6379"]
            )
            subprocess.run([*host, *RAY, "start", *role, *address, *common], check=True, capture_output=True)
        options = ("--backend", "onnxruntime", "--cluster", "10.77.0.1:6379")
        told = run(scans, out, *options, before=on[0], half_way=partial(cut_off, HOSTS - 1))
    return told | against(out, expected)


def cut_off(number: int) -> None:
    """Take a host's cable out."""
    subprocess.run(["ip", "link", "set", f"pseg{number}v", "down"], check=True)


def tasks(_: Path, __: Path, ___: dict[str, str]) -> dict[str, Any]:
    """Tasks of nothing, through Ray Data as the client uses it."""
    import ray

    class Nothing:
        def __call__(self, row: dict[str, bytes]) -> list[dict[str, bytes]]:
            return [{"answer": row["jobs"]}] * 2

    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    ray.data.DataContext.get_current().enable_progress_bars = False
    begun = time.perf_counter()
    data = ray.data.from_items([{"jobs": bytes(700)} for _ in range(TASKS)], override_num_blocks=TASKS)
    made = time.perf_counter() - begun
    pool = ray.data.ActorPoolStrategy(min_size=2, max_size=2, max_tasks_in_flight_per_actor=2)
    begun = ends = 0.0
    for count, _row in enumerate(data.flat_map(Nothing, compute=pool, num_cpus=1).iter_rows()):
        ends = time.perf_counter()
        begun = ends if count == 0 else begun
    ray.shutdown()
    return {"tasks": TASKS, "made_ms": 1000 * made / TASKS, "done_a_second": TASKS / (ends - begun)}


def write_copy(series: Path, folder: Path) -> None:
    """The same series once more, as another one of another study."""
    folder.mkdir(parents=True)
    uids = {name: pydicom.uid.generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    for path in series.iterdir():
        file = pydicom.dcmread(path)
        for name, uid in uids.items():
            setattr(file, name, uid)
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        file.save_as(folder / path.name)


def cores(scans: Path, scratch: Path, large: Path | None) -> dict[str, Any]:
    """One core alone; seconds and MB a scan."""
    found = {}
    for name, folder in {"small": scans, "large": large}.items():
        if folder is None:
            continue
        some, out = scratch / f"some-{name}", scratch / f"cores-{name}"
        if name == "small":
            some.mkdir()
            for path in sorted(folder.iterdir())[:40]:
                (some / path.name).symlink_to(path)
        else:
            for copy in range(LARGE_COPIES):
                write_copy(folder, some / f"copy{copy}")
        told = run(some, out, "--backend", "onnxruntime", before=("taskset", "-c", "0"))
        count = sum(told["cases"].values())
        read = sum(path.stat().st_size for path in some.rglob("*") if path.is_file())
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and path.suffix != ".html")
        found[name] = told | {"mb_read": read / count / 1e6, "mb_written": written / count / 1e6}
        print(name, json.dumps(found[name]), flush=True)
    return found


PARTS: dict[str, Callable[[Path, Path, dict[str, str]], dict[str, Any]]] = {
    "speed": speed,
    "workers": workers,
    "head": head,
    "memory": memory,
    "hosts": hosts,
    "tasks": tasks,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of NIfTI scans, some 200")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join([*PARTS, "cores"]), help="parts, with commas between")
    parser.add_argument("--large", type=Path, help="a DICOM series for the part cores")
    arguments = parser.parse_args()
    content: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": about_machine(),
        "ray": versions_of(["ray"]),
        "scans": len(list(arguments.scans.iterdir())),
    }
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    scratch = Path(tempfile.mkdtemp(prefix="pseg", dir="/tmp"))
    try:
        expected: dict[str, str] = {}
        if "speed" not in arguments.only and {"workers", "head", "hosts"} & set(arguments.only.split(",")):
            run(arguments.scans, scratch / "expected", "--backend", "onnxruntime", "--no-report", "--no-pictures")
            expected = masks(scratch / "expected")
        for name in arguments.only.split(","):
            content[name] = (
                cores(arguments.scans, scratch, arguments.large)
                if name == "cores"
                else PARTS[name](arguments.scans, scratch, expected)
            )
            print(name, json.dumps(content[name]), flush=True)
            write_text(json.dumps(content, indent=1) + "\n", arguments.out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
