"""Segments series from the inbox, one at a time and each once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parotid_seg.errors import EXHAUSTED, MachineError, OutputError, ParotidSegError
from parotid_seg.files import NO_ROOM, is_real_folder, make_folder, make_folder_in, remove_orphans
from parotid_seg.node.inbox import Inbox
from parotid_seg.node.ledger import DONE, FAILED, INCOMPLETE, REFUSED, SENT, STARTED, Ledger, SeriesRecord, sync_folder
from parotid_seg.node.listen_options import ListenOptions, Routine
from parotid_seg.wording import Say

PARTIAL = ".partial-"
"""Prefix of an incomplete folder of results; a series' name follows, see `short_hash`."""
INCOMPLETE_RESULTS = re.compile(rf"{re.escape(PARTIAL)}[0-9a-f]{{16}}")
MOST_DEATHS = 3
"""How often the node may die while segmenting a series; then the series is not tried again."""
RETRY_S = 60.0
"""Seconds to wait after results could not be written, or a resource of the machine was exhausted."""


@dataclass(frozen=True)
class Segmented:
    """The result of a series.

    Attributes:
        files: DICOM files to send, in the given folder.
        reason: why there are none, one line without patient data; else empty.
        note: remark on the result, one line without patient data.
        failed: which parts of the series have no result and why, one line without patient data; else empty.
    """

    files: tuple[Path, ...] = ()
    reason: str = ""
    note: str = ""
    failed: str = ""


Segment = Callable[[Path, Path], Segmented]
"""Segments a series: (its folder of DICOM files, an empty folder for results) -> `Segmented`.

A ParotidSegError also means failure, except OutputError and MachineError, after which the series is tried again later.
"""


class Work:
    """Segments one series after the other.

    Args:
        options, inbox, ledger: the node's.
        segment: see `Segment`.
        deliver: called with a series whose result is ready to be sent.
        say: called with one line for each event.
        settings: what results depend on besides the slices; results of other settings are made again.

    Raises:
        OutputError: if the folder of results cannot be made or written to, or is a link.
    """

    def __init__(
        self,
        options: ListenOptions,
        inbox: Inbox,
        ledger: Ledger,
        segment: Segment,
        deliver: Callable[[str], None],
        say: Say,
        settings: str = "",
    ) -> None:
        self.results = make_folder_in(options.out, "results")
        self._settings = settings
        self._options, self._inbox, self._ledger = options, inbox, ledger
        self._segment, self._deliver, self._say = segment, deliver, say
        make_folder(self.results)

    def recover(self) -> None:
        """Continue the work of an earlier node: series that were received and not segmented, or segmented and not
        sent."""
        remove_orphans(self._ledger.folder)
        for partial in self.results.glob(f"{PARTIAL}*"):
            if INCOMPLETE_RESULTS.fullmatch(partial.name) and is_real_folder(partial):
                shutil.rmtree(partial, ignore_errors=True)
        for series in self._inbox.all_series():
            record, times = self._ledger.get(series), self._inbox.times(series)
            if record is not None and record.status == STARTED:
                record = replace(record, deaths=record.deaths + 1)
                self._ledger.put(series, record)
            recorded_times = {name: found.mtime_ns for name, found in record.slices.items()} if record else {}
            if record is not None and record.status == STARTED:
                self._inbox.expect(series)
            elif any(recorded_times.get(name) != at for name, at in times.items()):
                self._inbox.expect(series, self._options.quiet_s)  # its sender will probably continue
            elif record and (record.status == SENT or (record.status == DONE and self._options.send_to is None)):
                self.delivered(series)
        for series in self._ledger:
            record = self._ledger.get(series)
            if record is not None and record.status in (DONE, REFUSED) and self._options.send_to is not None:
                self._deliver(series)

    def do(self, series: str) -> None:
        """Segment a series taken from the inbox."""
        result_only_kept = False
        try:
            result_only_kept = self._segment_if_needed(series) and self._options.send_to is None
        except (OSError, OutputError, MachineError) as error:
            why = "" if isinstance(error, MachineError) else ", files cannot be read or written"
            self._say(f"series {series}: put off{why}: {error}")
            if (record := self._ledger.get(series)) is not None and record.status == STARTED:
                self._ledger.forget(series)  # it is not in work: the end of this node is no death
            self._inbox.expect(series, RETRY_S)
        finally:
            self._inbox.finish(series)
        if result_only_kept:
            self.delivered(series)

    def delivered(self, series: str) -> None:
        """Remove the received slices of a series whose result has been delivered."""
        if not self._options.keep_received:
            self._inbox.remove(series)

    def expire(self) -> None:
        """Remove the slices of failed series to which nothing was added for a long time."""
        oldest_ns = time.time_ns() - int(self._options.keep_failed_days * 86400e9)
        for series in self._inbox.all_series():
            record = self._ledger.get(series)
            written = self._inbox.times(series).values()
            if (
                record is None
                or record.status not in (FAILED, INCOMPLETE, REFUSED)
                or max(written, default=0) > oldest_ns
            ):
                continue
            if self._inbox.remove(series):
                self._say(f"series {series}: {record.status}, and its slices are old and are removed ({record.reason})")

    def _segment_if_needed(self, series: str) -> bool:
        """Segment a series if necessary; returns whether it has its result."""
        slices = self._inbox.slices(series)
        if not slices:
            return False
        record = self._ledger.get(series)
        if record is not None and record.status != STARTED:
            known = {(name, each.sha256) for name, each in record.slices.items()}
            added = [name for name, each in slices.items() if (name, each.sha256) not in known]
            missing = [name for name in record.slices if name not in slices]
            same = not added and record.settings == self._settings
            if same and record.status in (DONE, SENT, REFUSED) and self._is_whole(series, record):
                part = f", {len(slices)} of its {len(record.slices)} slices" if missing else ""
                self._say(Routine(f"series {series}: received again unchanged{part}, is not segmented again"))
                self._record_done(series, replace(record, slices=record.slices | slices))
                return True
            if missing:
                reason = (
                    f"{len(missing)} slices that were received before are removed by now; "
                    f"found {len(slices)}, expected the whole series again; if it has fewer slices now, remove its "
                    "entries in state and inbox, and send it again"
                )
                self._ledger.put(series, replace(record, status=INCOMPLETE, reason=reason))
                self._say(f"series {series}: not segmented: {reason}")
                return False
        deaths = record.deaths if record is not None and record.status == STARTED else 0
        return self._segment_series(series, SeriesRecord(STARTED, slices, deaths=deaths, settings=self._settings))

    def _record_done(self, series: str, record: SeriesRecord) -> None:
        """Record that a series has its result."""
        self._ledger.put(series, replace(record, status=DONE, reason=""))
        if self._options.send_to is not None:
            self._deliver(series)

    def _segment_series(self, series: str, record: SeriesRecord) -> bool:
        if record.deaths >= MOST_DEATHS:
            self._fail(series, record, f"the node died {record.deaths} times while it was at it")
            return False
        self._ledger.put(series, record)
        self._say(Routine(f"series {series}: {len(record.slices)} slices, segmenting"))
        begun = time.perf_counter()
        scratch = self.results / f"{PARTIAL}{series}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            segmented = self._try_to_segment(series, scratch)
            if segmented.reason:
                self._fail(series, record, segmented.reason)
                return False
            names = self._keep(series, segmented.files, scratch)
        except KeyboardInterrupt:  # the next node continues it, and `recover` must not count this as a death
            with contextlib.suppress(OutputError):
                self._ledger.put(series, replace(record, deaths=record.deaths - 1))
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if segmented.failed:
            self._say(f"series {series}: a part of it cannot be segmented: {' '.join(segmented.failed.split())}")
        note = f"; {segmented.note}" if segmented.note else ""
        self._say(Routine(f"series {series}: done in {time.perf_counter() - begun:.1f} s{note}"))
        self._record_done(series, replace(record, results=names))
        return True

    def _try_to_segment(self, series: str, scratch: Path) -> Segmented:
        try:
            segmented = self._segment(self._inbox.path_of(series), scratch)
            complete = segmented.files and all(
                path.is_relative_to(scratch) and path.is_file() for path in segmented.files
            )
            return segmented if segmented.reason or complete else Segmented(reason="there is no result")
        except (OutputError, MachineError):
            raise
        except OSError as error:
            if error.errno in {*NO_ROOM, *EXHAUSTED}:
                raise
            return Segmented(reason=f"unexpected {type(error).__name__} ({error.strerror})")
        except ParotidSegError as error:
            return Segmented(reason=str(error))
        except MemoryError:
            return Segmented(reason="there is not enough memory for it")
        except Exception as error:  # a bug; its text may quote files
            last_call = traceback.extract_tb(error.__traceback__)[-1]
            return Segmented(
                reason=f"unexpected {type(error).__name__} in {Path(last_call.filename).name}:{last_call.lineno}"
            )

    def _keep(self, series: str, files: tuple[Path, ...], scratch: Path) -> tuple[str, ...]:
        """Make a complete result the series' result, replacing an older one."""
        names = tuple(str(path.relative_to(scratch)) for path in files)
        for path in sorted(scratch.rglob("*")):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            else:
                sync_folder(path)
        sync_folder(scratch)
        final = self.results / series
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
        sync_folder(self.results)
        return names

    def _fail(self, series: str, record: SeriesRecord, reason: str) -> None:
        reason = " ".join(reason.split())
        self._ledger.put(series, replace(record, status=FAILED, reason=reason, deaths=0))
        self._say(f"series {series}: cannot be segmented: {reason}")

    def _is_whole(self, series: str, record: SeriesRecord) -> bool:
        return all((self.results / series / name).is_file() for name in record.results)
