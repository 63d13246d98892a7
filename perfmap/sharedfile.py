"""Lines of ours in a file that other writers append to at any moment.

CPython's ``-X perf`` (3.12 and later) writes its own lines into the map file of the process,
from any thread and without a lock we could take. So nothing here reads, changes and rewrites
the file, truncates it while it is in use, or replaces it. Lines are appended, a batch with
one ``write``; the descriptor's offset then tells where they are. A line that has to go is
overwritten in place with newlines, which readers of a map file skip, and such a hole is used
again for later lines, so that loading and unloading does not make the file grow.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from perfmap.errors import PerfMapError

CLOCK_GRAIN = 0.1  # seconds; file times and process starts are counted in coarse ticks
DELETION_NOTICED = 0.1  # seconds; looking at the file costs more than writing a line to it


class SharedFile:
    """An open file (made if need be, mode 0600) and what we know of our bytes in it.

    A symbolic link, a file of another user and one with a second hard link are refused, as is
    what is not a regular file. The lines of a file that was last written before the time `since`,
    when the process that it names began, are emptied: they are a dead process's of the same pid.

    Whatever a method raises is a `PerfMapError`; none of its bytes is in the file then. What
    someone else put in the place of our bytes is never overwritten.
    """

    def __init__(self, path: Path, since: float | None) -> None:
        self._path = path
        self._opened: list[int] = []
        self._holes = _Holes()
        problem, remedy = None, "remove what is there"
        try:
            problem = self._open(since)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            if getattr(error, "errno", None) == errno.EROFS or not os.path.lexists(path):
                # perf looks for a map file in one place alone, for images and dumps anywhere.
                remedy = "make its directory one that can be written, use code images or a jitdump"
        if problem is not None:
            for descriptor in self._opened:
                os.close(descriptor)
            self._opened.clear()
            raise PerfMapError(
                f"cannot use {str(path)!r}: {problem}; {remedy}, or choose another path"
            )

    def _open(self, since: float | None) -> str | None:
        common = os.O_NOFOLLOW | os.O_CLOEXEC
        # Two descriptors: on Linux, pwrite through one with O_APPEND appends.
        for flags in (os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND):
            self._opened.append(os.open(self._path, flags | common, 0o600))
        self._editing, self._appending = self._opened
        self._status = status = os.fstat(self._editing)
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if status.st_uid != os.geteuid():
            return f"it belongs to user {status.st_uid}, not to {os.geteuid()}"
        if status.st_nlink != 1:
            return f"it has {status.st_nlink} hard links, not one"
        if not os.path.samestat(status, os.fstat(self._appending)):
            return "it was replaced while it was being opened"
        self._looked = time.monotonic()
        self._end = 0
        if not status.st_size:
            return None
        if since is not None and status.st_mtime < since - CLOCK_GRAIN:
            os.ftruncate(self._editing, 0)
        elif os.pread(self._editing, 1, status.st_size - 1) != b"\n":
            os.write(self._appending, b"\n")
            self._end = os.lseek(self._appending, 0, os.SEEK_CUR)
        return None

    def is_current(self) -> bool:
        """Whether the descriptors are still ours and the file has not been deleted.

        Daemons close every descriptor there is, whose numbers then mean other files: these are not
        at the offset where our last append ended. What cleans /tmp deletes the file; that is
        noticed after a tenth of a second.
        """
        try:
            if os.lseek(self._appending, 0, os.SEEK_CUR) != self._end:
                return False
            now = time.monotonic()
            if now - self._looked < DELETION_NOTICED:
                return True
            status = os.fstat(self._editing)
        except OSError:
            return False
        self._looked = now
        return os.path.samestat(status, self._status) and status.st_nlink == 1

    def write(self, data: bytes) -> int:
        """Write a batch of lines, into a hole or at the end of the file; gives its offset."""
        size = len(data)
        hole = self._holes.take(size)
        try:
            if hole is not None and os.pread(self._editing, size, hole) == b"\n" * size:
                count = os.pwrite(self._editing, data, hole)
                offset = hole
            else:
                count = os.write(self._appending, data)
                # The kernel leaves the offset at the end of what this very call wrote.
                self._end = os.lseek(self._appending, 0, os.SEEK_CUR)
                offset = self._end - count
        except OSError as error:
            raise self._failure(error.strerror) from error
        if count < size:
            self.blank([(offset, data[:count])])
            raise self._failure(f"it took {count} of {size} bytes")
        return offset

    def blank(self, written: list[tuple[int, bytes]]) -> None:
        """Overwrite lines with newlines, given as (offset, line)."""
        runs: list[tuple[int, list[bytes]]] = []
        end = -1
        for offset, line in sorted(written):
            if offset != end:
                runs.append((offset, []))
            runs[-1][1].append(line)
            end = offset + len(line)
        for offset, lines in runs:
            old = b"".join(lines)
            try:
                if os.pread(self._editing, len(old), offset) != old:
                    continue
                count = os.pwrite(self._editing, b"\n" * len(old), offset)
                if count < len(old):
                    os.pwrite(self._editing, old[:count], offset)
                    raise self._failure(f"it took {count} of {len(old)} bytes at {offset:#x}")
            except OSError as error:
                raise self._failure(error.strerror) from error
            self._holes.add(offset, offset + len(old))

    def find(self, lines: Collection[bytes]) -> dict[bytes, int]:
        """The offsets of those of `lines` that are in the file."""
        return {line: offset for offset, line in self.lines() if line in lines}

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line of the file, whoever wrote it, and its offset."""
        offset = 0
        try:
            with os.fdopen(self._editing, "rb", closefd=False) as file:
                file.seek(0)
                for line in file:
                    yield offset, line
                    offset += len(line)
        except OSError as error:
            raise self._failure(error.strerror) from error

    def close(self) -> None:
        opened, self._opened = self._opened, []
        for descriptor in opened:
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), self._status):
                    os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def _failure(self, reason: str | None) -> PerfMapError:
        return PerfMapError(
            f"cannot write {str(self._path)!r}: {reason}; "
            "make room on its file system, or raise the limit on file sizes"
        )


class _Holes:
    """Byte ranges that are ours and hold newlines only; no two of them touch."""

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}  # by start
        self._starts: dict[int, int] = {}  # by end
        self._by_size: list[tuple[int, int]] = []  # (size, start), sorted

    def add(self, start: int, end: int) -> None:
        if start in self._starts:
            start = self._starts[start]
            self._pop(start)
        if end in self._ends:
            end = self._pop(end)
        self._ends[start] = end
        self._starts[end] = start
        insort(self._by_size, (end - start, start))

    def take(self, size: int) -> int | None:
        """The start of `size` bytes out of the smallest hole that has them."""
        index = bisect_left(self._by_size, (size, 0))
        if index == len(self._by_size):
            return None
        room, start = self._by_size.pop(index)
        del self._starts[self._ends.pop(start)]
        if size < room:
            self.add(start + size, start + room)
        return start

    def _pop(self, start: int) -> int:
        end = self._ends.pop(start)
        del self._starts[end]
        del self._by_size[bisect_left(self._by_size, (end - start, start))]
        return end


def process_start(pid: int | None = None) -> float:
    """When this process or process `pid` began, in seconds of the clock that stamps files."""
    stat = Path(f"/proc/{'self' if pid is None else pid}/stat")
    fields = stat.read_bytes().rpartition(b")")[2].split()
    ticks = int(fields[19])  # field 22, starttime, counted from boot: proc_pid_stat(5)
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + ticks / os.sysconf("SC_CLK_TCK")
