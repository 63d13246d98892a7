"""`jitlisten clean`: removes the files that profiled programs have left for perf.

Code images and jitdumps outlive their program, because perf reads them afterwards; a report made
after this has no names. A directory of a run goes when the program and all that it has forked have
ended: they hold a lock on it. A daemon that has closed all its files has lost the lock, so one of
which any process has a file mapped stays, too.

Python's own dumps, of -X perf_jit, are in /tmp, and so is what perf inject makes of them: a file
for each function. They go when the process has ended whose number they have.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import sys
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path

from perfmap.dumpfile import runs_directory

from .command import carry_out

__all__ = ["main"]

PYTHONS = re.compile(r"jit-(\d+)\.dump|jitted-(\d+)-\d+\.so")
MOMENT = 60  # seconds in which a new directory may still be empty


def main(arguments: list[str]) -> int:
    """Remove what ended programs have left, and say how much; gives the exit status."""
    ArgumentParser(
        prog="jitlisten clean",
        description="Remove the files that ended programs have left for perf.",
        allow_abbrev=False,
    ).parse_args(arguments)
    return carry_out("clean", _clean)


def _clean() -> int:
    runs = runs_directory()
    mapped = _mapped(runs)
    status = 0
    for parent, pattern, remove in (
        (runs, "jit-listeners-*", lambda path: [] if path.name in mapped else _remove_run(path)),
        (Path("/tmp"), "jit*-*", _remove_file),
    ):
        sizes: list[int] = []
        for path in parent.glob(pattern):
            try:
                sizes += remove(path)
            except OSError as error:
                print(f"jitlisten clean: {error.filename}: {error.strerror}", file=sys.stderr)
                status = 1
        print(f"{len(sizes)} removed from {parent}: {sum(sizes) / 1e6:.1f} MB")
    return status


def _remove_run(directory: Path) -> list[int]:
    """Remove the directory of a run that has ended; gives its size in bytes. Raises OSError."""
    if _is_locked(directory) or _is_new(directory):
        return []
    occupied = sum(path.lstat().st_blocks for path in directory.iterdir()) * 512
    shutil.rmtree(directory)
    return [occupied]


def _remove_file(path: Path) -> list[int]:
    """Remove a file of ours that is of an ended Python; gives its size in bytes. Raises OSError."""
    match = PYTHONS.fullmatch(path.name)
    if not match or Path(f"/proc/{match[1] or match[2]}").exists():
        return []
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return []
    path.unlink()
    return [found.st_blocks * 512]


def _mapped(parent: Path) -> set[str]:
    """The directories in `parent` of which a process that we may look into has a file mapped."""
    found: set[str] = set()
    pattern = re.compile(re.escape(os.fsencode(parent)) + rb"/([^/\n]+)/")
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended, or is another user's
            found.update(map(os.fsdecode, pattern.findall(maps.read_bytes())))
    return found


def _is_locked(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_new(directory: Path) -> bool:
    """Whether it may be about to be locked."""
    return not any(directory.iterdir()) and time.time() - directory.stat().st_mtime < MOMENT
