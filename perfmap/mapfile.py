"""perf's map file: names for code that no file on disk holds.

perf, and most sampling profilers after it, look up an address in anonymous executable memory
of process PID in ``/tmp/perf-PID.map``. The file has no time dimension: it is read once, when
the report is made, so it has to hold what is true at the end of the recording.

For whoever makes machine code at run time, with LLVM or without.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left, insort
from collections.abc import Iterable
from functools import partial
from operator import itemgetter
from pathlib import Path

from perfmap.errors import PerfMapError
from perfmap.forks import follow_forks
from perfmap.maplines import Line, last_ones, line_of
from perfmap.sharedfile import SharedFile, process_start
from perfmap.turns import Turns

_address_of, _text_of = itemgetter(0), itemgetter(2)


class MapFile:
    """The map file of this process, of process `pid`, or a file at `path`.

    It is made at the first `add` (mode 0600) and stays after `close`, because perf reads it
    when the program has ended. CPython's ``-X perf`` may write to it at the same time. A
    symbolic link, a file of another user or one with a second hard link is refused; lines
    that a dead process of the same number left in this process's file are emptied.

    Safe across threads, and when a finalizer comes back to it in the middle of a call: no call
    ever waits for another. One that is made while another is at work is done by that other
    before it returns; an error it meets then cannot be raised and is logged (``perfmap``).

    A forked child names the code it has inherited in a file of its own. With `path`, or the
    `pid` of another process, the file stays with the process that made the object: the child's
    copy refuses to add.

    Methods raise `PerfMapError`. After an error of the file system nothing of the batch is in
    the file, and the object goes on working.
    """

    path: Path  #: the file; in a forked child the child's own

    def __init__(self, pid: int | None = None, path: str | os.PathLike[str] | None = None) -> None:
        if sys.platform != "linux":
            raise PerfMapError("perf and its map files exist on Linux only: use it there")
        if pid is not None and path is not None:
            raise PerfMapError("MapFile takes a pid or a path, not both: leave one out")
        self._of_this_process = path is None and pid in (None, os.getpid())
        self.path = _map_path(pid) if path is None else Path(path)
        self._file: SharedFile | None = None
        self._refusal: str | None = None
        self._turns = Turns()
        # By address: the end, the line, its offset in the file, where it is.
        self._live: dict[int, tuple[int, bytes, int | None]] = {}
        self._order: list[int] = []  # the addresses of _live, sorted; no two ranges overlap
        follow_forks(self)

    def add(self, address: int, size: int, name: str) -> None:
        """Name the `size` bytes of code at `address`; see `add_all`."""
        self.add_all([(address, size, name)])

    def add_all(self, entries: Iterable[tuple[int, int, str]]) -> None:
        """Write entries (address, size in bytes, name) in one batch.

        Entries of this object that a new one overlaps go; of those in the batch that overlap,
        the last one stays. So that perf shows every entry, a size of 0 is written as 1, an empty
        name as ``[unnamed]``, a name of one or two bytes with ``()`` after it. Control
        characters and lone surrogates become ``?``; a name is cut at 4,096 bytes. Names are
        shown as they are: demangle them first.
        """
        lines = [line_of(address, size, name) for address, size, name in entries]
        if lines:
            self._turns.perform(partial(self._add, lines))

    def remove(self, address: int) -> None:
        """Take back the entry that starts at `address`; see `remove_all`."""
        self.remove_all([address])

    def remove_all(self, addresses: Iterable[int]) -> None:
        """Take back the entries that start at `addresses`.

        One that is not there is no error: a later entry may have taken its place.
        """
        self._turns.perform(partial(self._remove, list(addresses)))

    def close(self) -> None:
        """Close the file; its lines stay. To add after this is an error."""
        self._turns.perform(partial(self._release, "it is closed: make a new MapFile"))

    def __enter__(self) -> MapFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _add(self, lines: list[Line]) -> None:
        if self._refusal is not None:
            raise PerfMapError(f"cannot add to {str(self.path)!r}: {self._refusal}")
        file = self._file
        if file is None or not file.is_current():
            file = self._open_again()
        new = last_ones(lines) if len(lines) > 1 else lines
        order, live = self._order, self._live
        gap = bisect_left(order, new[-1][1])
        # As with the functions of one object: none overlaps another, and nothing is among them.
        plain = len(new) == len(lines) and (not gap or live[order[gap - 1]][0] <= new[0][0])
        if not plain and (overlapped := self._overlapped(lines)):
            file.blank(self._forget(overlapped))
        self._write(file, new)
        if plain:
            order[gap:gap] = map(_address_of, new)
        else:
            for address, _, _ in new:
                insort(order, address)

    def _write(self, file: SharedFile, lines: list[Line]) -> None:
        offset = file.write(lines[0][2] if len(lines) == 1 else b"".join(map(_text_of, lines)))
        for address, end, line in lines:
            self._live[address] = end, line, offset
            offset += len(line)

    def _remove(self, addresses: list[int]) -> None:
        if any(address in self._live for address in addresses):
            self._open().blank(self._forget(addresses))

    def _release(self, refusal: str) -> None:
        self._refusal = refusal
        self._close_file()
        self._live.clear()
        self._order.clear()

    def start_child(self) -> None:
        """In a forked child: leave the parent's file, name what is inherited in our own."""
        self._turns.start_child()
        self._close_file()
        self._order = sorted(self._live)  # another thread may have been in the middle of it
        if not self._of_this_process:
            self._turns = Turns()  # what was under way is the parent's to write
            self._release("it belongs to the process that made it: make a MapFile in this one")
            return
        self.path = _map_path()
        if self._live:
            self._turns.perform(self._open_again)

    def _open(self) -> SharedFile:
        if self._file is None or not self._file.is_current():
            return self._open_again()
        return self._file

    def _open_again(self) -> SharedFile:
        self._close_file()
        try:
            since = process_start() if self._of_this_process else None
        except OSError as error:
            raise PerfMapError(
                f"cannot use {str(self.path)!r}: cannot read when this process began: "
                f"{error.strerror}; mount /proc, or raise the limit on open files"
            ) from error
        self._file = SharedFile(self.path, since)
        if self._live:
            # After a fork, CPython can have copied the parent's file here, our lines with it
            # (PyUnstable_CopyPerfMapFile, 3.13).
            found = self._file.find({line for _, line, _ in self._live.values()})
            missing = []
            for address, (end, line, _) in self._live.items():
                self._live[address] = end, line, found.get(line)
                if line not in found:
                    missing.append((address, end, line))
            self._write(self._file, missing)
        return self._file

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _overlapped(self, lines: list[Line]) -> set[int]:
        """The addresses of entries that have a byte in common with one of `lines`."""
        order = self._order
        found = set()
        for start, end, _ in lines:
            index = bisect_left(order, start)
            if index and self._live[order[index - 1]][0] > start:
                found.add(order[index - 1])
            while index < len(order) and order[index] < end:
                found.add(order[index])
                index += 1
        return found

    def _forget(self, addresses: Iterable[int]) -> list[tuple[int, bytes]]:
        """Drop entries; gives offset and line of those that are in the file."""
        gone = sorted({address for address in addresses if address in self._live})
        first, last = bisect_left(self._order, gone[0]), bisect_left(self._order, gone[-1]) + 1
        if last - first == len(gone):
            del self._order[first:last]
        else:
            for address in gone:
                del self._order[bisect_left(self._order, address)]
        lines = [self._live.pop(address) for address in gone]
        return [(offset, line) for _, line, offset in lines if offset is not None]


def _map_path(pid: int | None = None) -> Path:
    # The number in the process's own pid namespace: that is where perf looks.
    return Path(f"/tmp/perf-{os.getpid() if pid is None else pid}.map")
