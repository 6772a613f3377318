"""The working half of a node without a network, and a clock that tests set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from parotid_seg.node.inbox import Inbox
from parotid_seg.node.ledger import Ledger
from parotid_seg.node.listen_options import ListenOptions
from parotid_seg.node.work import Segmented, Work

QUIET_S = 10.0


class Clock:
    """Stands for the module `time` in the inbox: time passes when a test says so, however slow the machine is."""

    now = 1000.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now

    @classmethod
    def sleep(cls, seconds: float) -> None:
        cls.now += seconds


class Bench:
    """The working half of a node; `restarted` is the next one in the same folder."""

    def __init__(
        self, out: Path, segment: Callable[..., Any] | None = None, settings: str = "", **options: Any
    ) -> None:
        self.options = ListenOptions(104, out, quiet_s=QUIET_S, **options)
        self.inbox, self.ledger = Inbox(out / "inbox", QUIET_S), Ledger(out / "state")
        self.lines: list[str] = []
        self.calls: list[list[str]] = []
        self.outgoing: list[str] = []
        self.segment = segment or self.write
        self.work = Work(
            self.options, self.inbox, self.ledger, self.call, self.outgoing.append, self.lines.append, settings
        )
        self.work.recover()

    def call(self, folder: Path, out: Path) -> Segmented:
        self.calls.append(sorted(path.read_text() for path in folder.iterdir()))
        return self.segment(folder, out)

    @staticmethod
    def write(folder: Path, out: Path) -> Segmented:
        (out / "result.dcm").write_text(" ".join(sorted(path.read_text() for path in folder.iterdir())))
        return Segmented((out / "result.dcm",))

    def receive(self, *contents: str, sender: str = "one", series: str = "1.2") -> str:
        """Objects whose instance UID follows from the first letter of their content."""
        for content in contents:
            path = self.inbox.new_path()
            file = path.open("xb")
            file.write(content.encode())
            name = self.inbox.place(file, path, series, str(ord(content[0])), sender)
        self.inbox.left(sender)
        return name

    def run(self) -> list[str]:
        """Do whatever is ready."""
        Clock.sleep(QUIET_S * 1.5)
        done = []
        while (series := self.inbox.take()) is not None:
            self.work.do(series)
            done.append(series)
        return done

    def status(self, series: str) -> str:
        return self.ledger.get(series).status

    def result(self, series: str) -> str:
        (name,) = self.ledger.get(series).results
        return (self.work.results / series / name).read_text()

    def restarted(self, **options: Any) -> Bench:
        return Bench(self.options.out, **options)
