"""Starts the node, and lets it listen and segment until it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

from parotid_seg.files import is_real_folder, locked, make_folder
from parotid_seg.node.inbox import Inbox
from parotid_seg.node.ledger import Ledger
from parotid_seg.node.listen_options import ListenOptions, Routine
from parotid_seg.node.reception import Reception
from parotid_seg.node.send import Outbox
from parotid_seg.node.work import Segment, Work
from parotid_seg.wording import Say

POLL_S = 0.2
GRACE_S = 10.0
"""Seconds for associations that are open when the node stops."""
EXPIRY_S = 3600.0


def listen(
    options: ListenOptions,
    segment: Segment,
    *,
    settings: str = "",
    say: Say = lambda _: None,
    stop: threading.Event | None = None,
) -> int:
    """Receive series from other nodes, segment them and send the results, until SIGTERM, SIGINT or `stop`.

    Series are segmented one at a time, in the calling thread. The first signal stops the node after the present series;
    the second stops it at once, and the next node in the same folder segments the series again.

    Args:
        options: see `ListenOptions`.
        segment: see `work.Segment`.
        settings: see `work.Work`.
        say: called with one line for each event, from several threads.
        stop: another way to stop it, because signals only reach a main thread.

    Returns:
        The exit status: 130 after SIGINT, else 0.

    Raises:
        InputError: before anything is received, if the port cannot be listened on.
        OutputError: before anything is received, if the folder cannot be written to, or another node uses it.
    """
    with _private():
        make_folder(options.out)
        with locked(options.out / ".lock", options.out), warnings.catch_warnings(), _Signals() as signals:
            warnings.simplefilter("ignore")  # pydicom's warnings contain data from files
            node = _Node(options, segment, settings, _careful(say))
            with contextlib.suppress(KeyboardInterrupt):  # a second signal
                node.run(lambda: signals.number != 0 or (stop is not None and stop.is_set()))
            return 130 if signals.number == signal.SIGINT else 0


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Make all files written meanwhile, also by child processes, readable to this user only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


class _Node:
    def __init__(self, options: ListenOptions, segment: Segment, settings: str, say: Say) -> None:
        self._options, self._say = options, say
        self._inbox = Inbox(options.out / "inbox", options.quiet_s)
        ledger = Ledger(options.out / "state")
        self._work = Work(options, self._inbox, ledger, segment, self._deliver, say, settings)
        self._outbox = None
        if options.send_to is not None:
            self._outbox = Outbox(
                options.send_to, options.ae_title, self._work.results, ledger, self._work.delivered, say
            )
        for folder in (self._inbox.folder, ledger.folder, self._work.results):  # they may have been there before
            if is_real_folder(folder):
                folder.chmod(0o700)
        self._reception = Reception(options, self._inbox, say)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Segment series until the node is stopped."""
        over = threading.Event()
        threads = [_Thread(self._reception.serve, lambda: stopping() or over.is_set())]
        if self._outbox is not None:
            threads.append(_Thread(self._outbox.run, over.is_set))
        self._work.recover()
        self._introduce()
        for thread in threads:
            thread.start()
        try:
            self._work_until(stopping, threads)
        except KeyboardInterrupt:
            self._say(Routine("stopped at once; the series in work is done after a restart"))
        finally:
            over.set()
            self._reception.close(GRACE_S if stopping() else 0.0)
            for thread in threads:
                thread.join(GRACE_S)
            if self._outbox is not None:
                self._outbox.close()
        self._say(Routine("stopped"))

    def _work_until(self, stopping: Callable[[], bool], threads: list[_Thread]) -> None:
        next_expiry = 0.0
        while not stopping():
            series = self._inbox.take()
            if series is not None:
                self._work.do(series)
                continue
            if time.monotonic() >= next_expiry:
                self._work.expire()
                next_expiry = time.monotonic() + EXPIRY_S
            for thread in threads:
                thread.check()
            time.sleep(POLL_S)

    def _deliver(self, series: str) -> None:
        if self._outbox is not None:
            self._outbox.add(series)

    def _introduce(self) -> None:
        options = self._options
        sends = f"results go to {options.send_to}" if options.send_to else "results are kept"
        place = f"{f'[{options.host}]' if ':' in options.host else options.host}:{options.port}"
        self._say(Routine(f"{options.ae_title} listens on {place}; {sends}; all in {options.out}"))
        if not options.allowed:
            self._say("warning: nobody may connect, no AE title is allowed (--allow)")
        if options.exposed:
            warning = (
                f"warning: {options.host} can be reached from other machines; DICOM neither checks who connects "
                "(anybody can take an allowed AE title) nor encrypts. Let a firewall or a TLS proxy do that."
            )
            self._say(Routine(warning))


class _Thread(threading.Thread):
    """A thread that must not end by itself while the node works."""

    def __init__(self, run: Callable[[Callable[[], bool]], None], stopping: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self._body, self._stopping = run, stopping
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._body(self._stopping)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise the exception that ended the thread (a bug), if there is one."""
        if self._error is not None:
            raise self._error


class _Signals:
    """Handle SIGTERM and SIGINT while a block runs: the first is recorded, the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


def _careful(say: Say) -> Say:
    """Print lines without control characters, one at a time; a closed output does not stop the node."""
    turn = threading.Lock()

    def line(text: str) -> None:
        clean = "".join(c if c.isprintable() else "?" for c in text)
        with turn, contextlib.suppress(OSError):
            say(Routine(clean) if isinstance(text, Routine) else clean)

    return line
