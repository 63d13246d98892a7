"""The map file of a process that does not write one itself, where perf looks for it.

perf looks in the mount namespace of the process, for the number that the process has in its own pid
namespace. Source: thread__find_map() and nsinfo__init() in tools/perf/util of Linux.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from perfmap.errors import PerfMapError
from perfmap.maplines import Line, fields_of, last_ones, line_of
from perfmap.sharedfile import SharedFile, process_start

__all__ = ["write_map"]


def write_map(pid: int, entries: Iterable[tuple[int, int, str]]) -> Path:
    """Name code of process `pid` in its map file: entries are (address, size in bytes, name).

    Gives the file's path as this process sees it. A line that is there already stays as it is; one
    that overlaps an entry and says something else goes; all others are kept, but for those which a
    dead process of the same number has left. Names are written as `MapFile.add_all` writes them.

    The file belongs to the user of the process. For that, root takes on this user's rights while it
    writes: in a program of one thread.

    Raises PerfMapError if there is no such process or no right to write there.
    """
    lines = last_ones([line_of(*entry) for entry in entries])
    try:
        user, group, number = _status(pid)
        start = process_start(pid)
    except OSError as error:
        raise PerfMapError(f"process {pid}: there is no such process (any more)") from error
    path = Path(f"/proc/{pid}/root/tmp/perf-{number}.map")
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PerfMapError(f"cannot open {str(path.parent)!r}: {error.strerror}") from error
    # Not through root again, for which the user may not have the right.
    here = Path(f"/proc/self/fd/{directory}", path.name)
    try:
        with _as_user(user, group):
            file = SharedFile(here, since=start)
            try:
                _update(file, lines)
            finally:
                file.close()
    except PerfMapError as error:
        raise PerfMapError(str(error).replace(str(here), str(path))) from error
    finally:
        os.close(directory)
    return path


def _status(pid: int) -> tuple[int, int, int]:
    """User and group of a process, and its number in the innermost pid namespace; proc(5)."""
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    numbers = fields.get("NSpid", str(pid)).split()
    return int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1]), int(numbers[-1])


@contextmanager
def _as_user(user: int, group: int) -> Iterator[None]:
    own = os.geteuid(), os.getegid()
    if own[0] or not user:
        yield
        return
    with ExitStack() as undo:
        try:
            for change, old, new in ((os.setegid, own[1], group), (os.seteuid, own[0], user)):
                change(new)
                undo.callback(change, old)
        except OSError as error:  # a container may withhold the capability
            raise PerfMapError(
                f"cannot write as user {user}: {error.strerror}; run as that user"
            ) from error
        yield


def _update(file: SharedFile, lines: list[Line]) -> None:
    ends = [end for _, end, _ in lines]
    starts = [start for start, _, _ in lines]
    missing = dict.fromkeys(line for _, _, line in lines)
    stale = []
    for offset, text in file.lines():
        if text in missing:
            del missing[text]
        elif fields := fields_of(text):
            start, size, _ = fields
            if bisect_right(ends, start) < bisect_left(starts, start + size):
                stale.append((offset, text))
    file.blank(stale)
    if missing:
        file.write(b"".join(missing))
