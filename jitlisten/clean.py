"""`jitlisten clean`: removes the files that profiled programs have left for perf.

Code images and jitdumps outlive their program, because perf reads them afterwards; a report made
after this has no names. A directory of a run goes when the program and all that it has forked have
ended: they hold a lock on it. A daemon that has closed all its files has lost the lock, so one of
which any process has a file mapped stays, too.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path

from perfmap.dumpfile import runs_directory

from .outside import carry_out

__all__ = ["main"]

MOMENT = 60  # seconds in which a new directory may still be empty


def main(arguments: list[str]) -> int:
    """Remove the directories of ended runs, and say how many; gives the exit status."""
    ArgumentParser(
        prog="jitlisten clean",
        description="Remove the files that ended programs have left for perf.",
        allow_abbrev=False,
    ).parse_args(arguments)
    return carry_out("clean", _clean)


def _clean() -> int:
    parent = runs_directory()
    mapped = _mapped(parent)
    removed = size = failed = 0
    for directory in parent.glob("jit-listeners-*"):
        try:
            if directory.name in mapped or _is_locked(directory) or _is_new(directory):
                continue
            files = list(os.scandir(directory))
            occupied = sum(file.stat(follow_symlinks=False).st_blocks for file in files) * 512
            shutil.rmtree(directory)
        except OSError as error:
            print(f"jitlisten clean: {error.filename}: {error.strerror}", file=sys.stderr)
            failed += 1
            continue
        removed += 1
        size += occupied
    print(f"{removed} removed from {parent}: {size / 1e6:.1f} MB")
    return 1 if failed else 0


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
