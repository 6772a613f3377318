"""A node in a process of its own, to be killed. It notes what it does."""

import sys
import time
from pathlib import Path

from parotid_seg.commands.terminal import print_error
from parotid_seg.node.listen_options import ListenOptions, Peer
from parotid_seg.node.server import listen
from parotid_seg.node.work import Segmented
from tests.node.peers import fake_segment


def main(port: int, out: Path, archive_port: int, seconds: float, quiet_s: float) -> None:
    def segment(folder: Path, results: Path) -> Segmented:
        note(f"begun {folder.name}")
        time.sleep(seconds)
        segmented = fake_segment(folder, results)
        note(f"ended {folder.name}")
        return segmented

    def note(text: str) -> None:
        with Path(f"{out}.calls").open("a") as file:
            file.write(f"{text}\n")

    options = ListenOptions(
        port=port,
        out=out,
        allowed=("TESTER",),
        send_to=Peer("ARCHIVE", "127.0.0.1", archive_port),
        quiet_s=quiet_s,
        spare_mib=1,
    )
    sys.exit(listen(options, segment, say=print_error))
