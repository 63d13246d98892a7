"""perf's map file: names for code that no file on disk holds.

perf, and most sampling profilers after it, look up an address in anonymous executable memory
of process PID in ``/tmp/perf-PID.map``. One line a function, ``START SIZE name``, hexadecimal
without prefix; the name is the rest of the line. The file has no time dimension: it is read
once, when the report is made, so it has to hold what is true at the end of the recording.
Source: tools/perf/Documentation/jit-interface.txt and dso__load_perf_map() in
tools/perf/util/symbol.c of Linux.

For whoever makes machine code at run time, with LLVM or without.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from bisect import bisect_left, insort
from collections.abc import Iterable
from functools import partial
from itertools import pairwise, starmap
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from perfmap.errors import PerfMapError
from perfmap.forks import follow_forks
from perfmap.sharedfile import SharedFile, process_start
from perfmap.turns import Turns

_ADDRESS_SPACE = 1 << 64
_LONGEST_NAME = 4096  # bytes; perf keeps a name's length in 16 bits
_LONGEST_LINE = 1 << 20  # bytes; what has more is not a map file
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LINE = re.compile(rb"(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) (.+)", re.DOTALL)

_Line = tuple[int, int, bytes]  # first address, address after the last, the line
_address_of, _text_of = itemgetter(0), itemgetter(2)


class MapEntry(NamedTuple):
    """A range of code and its name: an address, a size in bytes, a name."""

    address: int
    size: int
    name: str


def read_map(path: str | os.PathLike[str]) -> list[MapEntry]:
    """The entries of a map file, in the order of its lines; empty lines are skipped.

    A ``0x`` prefix is accepted, as perf does. Bytes of a name that are not UTF-8 come as
    ``\\xNN``. Raises `PerfMapError` for a file that cannot be read, and for a line that is not
    ``START SIZE name``.
    """
    entries = []
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PerfMapError(f"{str(path)!r} is not a regular file: give a map file")
            lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
            for number, line in enumerate(lines, 1):
                if line == b"\n":
                    continue
                fields = _LINE.fullmatch(line.removesuffix(b"\n"))
                if fields is None or len(line) == _LONGEST_LINE:
                    raise PerfMapError(
                        f"{str(path)!r}, line {number}: {line[:60]!r} is not 'START SIZE name' "
                        "with both numbers in hexadecimal: give a map file, or remove the line"
                    )
                start, size, name = fields.groups()
                text = name.decode(errors="backslashreplace")
                entries.append(MapEntry(int(start, 16), int(size, 16), text))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PerfMapError(f"cannot read {str(path)!r}: {reason}; give a map file") from error
    return entries


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would wait for its writer


def _line(address: int, size: int, name: str) -> _Line:
    """The line of an entry, in a form that perf resolves and a terminal survives."""
    end = address + (size or 1)
    if address < 0 or size < 0 or end > _ADDRESS_SPACE:
        raise PerfMapError(
            f"{name!r}, {size} bytes at {address:#x}, is not in a 64-bit address space: "
            "give the load address of the code and its size"
        )
    if not name.isprintable():
        name = _UNPRINTABLE.sub("?", name)
    text = name.encode() or b"[unnamed]"
    if len(text) > _LONGEST_NAME:
        text = text[: _LONGEST_NAME - 3].decode(errors="ignore").encode() + b"..."
    elif len(text) < 3:
        text += b"()"  # perf skips names of one and two bytes
    return address, end, b"%x %x %b\n" % (address, end - address, text)


def _last_ones(lines: list[_Line]) -> list[_Line]:
    """`lines` by address; of those that overlap, the last one."""
    by_address = sorted(lines)
    if all(one[1] <= other[0] for one, other in pairwise(by_address)):
        return by_address
    kept: list[_Line] = []
    for start, end, line in reversed(lines):
        index = bisect_left(kept, (end,))
        if not index or kept[index - 1][1] <= start:
            kept.insert(index, (start, end, line))
    return kept


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
        lines = list(starmap(_line, entries))
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

    def _add(self, lines: list[_Line]) -> None:
        if self._refusal is not None:
            raise PerfMapError(f"cannot add to {str(self.path)!r}: {self._refusal}")
        file = self._open()
        if overlapped := self._overlapped(lines):
            file.blank(self._forget(overlapped))
        if len(lines) > 1:
            lines = _last_ones(lines)
        self._write(file, lines)
        order, addresses = self._order, list(map(_address_of, lines))
        first = bisect_left(order, addresses[0])
        if first == len(order) or order[first] > addresses[-1]:  # as the functions of one object
            order[first:first] = addresses
        else:
            for address in addresses:
                insort(order, address)

    def _write(self, file: SharedFile, lines: list[_Line]) -> None:
        offset = file.write(b"".join(map(_text_of, lines)))
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
        self._file = SharedFile(self.path, process_start() if self._of_this_process else None)
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

    def _overlapped(self, lines: list[_Line]) -> set[int]:
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
