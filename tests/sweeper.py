"""Removes the map files that a test process and the programs it starts leave in /tmp.

    sweeper.py PID

perf needs `/tmp/perf-PID.map` after the end of its process, so programs leave it there, and a later
process of the same number seems to have made it. Whose a file is can be told only when it is made:
it is noted if that is process PID or a descendant. What has been noted is removed at each byte on
standard input, and at its end, which comes with the end of the process.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path

# inotify(7): the name is the last field of an event, padded with zeros; linux/inotify.h
IN_CREATE = 0x100
MAP_FILE = re.compile(rb"perf-(\d+)\.map\0")


def watch_tmp() -> int:
    """A file descriptor that tells of each file made in /tmp."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(0)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, b"/tmp", IN_CREATE) < 0:
        raise OSError(ctypes.get_errno(), "cannot watch /tmp")
    return descriptor


def descends(pid: int, ancestor: int) -> bool:
    with suppress(OSError):
        while pid > 1:
            if pid == ancestor:
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def main() -> None:
    ancestor = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, which ends the tests
    events = watch_tmp()
    print("watching", flush=True)
    noted: dict[Path, int] = {}  # the file's inode, for others may have made another one since
    running = True
    while running:
        ready, _, _ = select.select([events, sys.stdin.fileno()], [], [])
        if events in ready:
            for pid in map(int, MAP_FILE.findall(os.read(events, 1 << 16))):
                if descends(pid, ancestor):
                    with suppress(FileNotFoundError):
                        path = Path(f"/tmp/perf-{pid}.map")
                        noted[path] = path.lstat().st_ino
        else:
            running = bool(os.read(sys.stdin.fileno(), 1))
            for path, inode in noted.items():
                with suppress(FileNotFoundError):
                    if path.lstat().st_ino == inode:
                        path.unlink()
            noted.clear()


if __name__ == "__main__":
    main()
