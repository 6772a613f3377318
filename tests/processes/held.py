"""What processes hold of the machine."""

import contextlib
import os
import threading
from pathlib import Path
from typing import IO


def held() -> tuple[int, int, int]:
    """Open descriptors, threads and child processes of this process."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), len(children)


def holders(pipe: IO[str]) -> list[str]:
    """Other processes that have this pipe open: number and command line of each."""
    inode, found = os.fstat(pipe.fileno()).st_ino, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if any(each.stat().st_ino == inode for each in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().decode(errors="backslashreplace").replace("\0", " ")
                found.append(f"{process.name} ({words.strip()})")
    return [each for each in found if not each.startswith(f"{os.getpid()} ")]
