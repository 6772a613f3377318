"""A worker process that a hostile file has taken over: KIND FILE. It makes the file if it gets its pickle loaded."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from parotid_seg.runtime.pipeline.protocol.framing import HEADER, MAGIC


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (Path(self.path),)


def frame(answer: dict[str, object], array_bytes: int = 0) -> bytes:
    head = msgspec.msgpack.encode(answer)
    return HEADER.pack(MAGIC, len(head), array_bytes) + head


def said(kind: str, file: str) -> bytes:
    harm = pickle.dumps(Harm(file))
    covered = {"type": "cropped", "case": b"s0", "distance_mm": 3.0, "first_row": 0, "first_column": 0}
    return {
        "a pickle": harm,
        "a pickle in a frame": HEADER.pack(MAGIC, len(harm), 0) + harm,
        "a huge head": HEADER.pack(MAGIC, 0xFFFFFFFF, 0),
        "huge arrays": frame(covered | {"shape": [1, 2, 2, 2]}, 1 << 62),
        "a huge scan": frame(covered | {"shape": [1, 4000, 16000, 16000]}),
        "a foreign path": frame(
            {"type": "failed", "case": b"s0", "key": "", "reason": b"see there", "path": b"/etc/passwd"}
        ),
    }[kind]


def main() -> None:
    kind, file = sys.argv[1:]
    if kind == "a child that holds on":
        if os.fork() == 0:
            Path(file).touch()
            time.sleep(60)
    else:
        os.write(1, said(kind, file))
    while os.read(0, 1 << 16):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
