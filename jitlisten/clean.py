"""`jitlisten clean`: removes the files that profiled programs have left for perf.

Code images and jitdumps outlive their program, because perf reads them afterwards; a report made
after this has no names. A directory of a run goes when its program, which holds a lock on it, has
ended. A daemon that has closed all its files has lost the lock: so the processes whose numbers the
files have in their names are asked, too, whether they have one of them mapped.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

from perfmap.dumpfile import runs_directory

from .outside import carry_out

__all__ = ["main"]

# jit-PID.dump; NAME-PID-UNIQUE.so; jitted-PID-NUMBER.so, which perf inject writes
PROCESS = re.compile(r"jit-(\d+)\.dump|.*-(\d+)-[^-]*\.so")
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
    removed = size = failed = 0
    for directory in parent.glob("jit-listeners-*"):
        try:
            files = list(os.scandir(directory))
            if _is_in_use(directory, [file.name for file in files]):
                continue
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


def _is_in_use(directory: Path, names: list[str]) -> bool:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    if not names:
        return time.time() - directory.stat().st_mtime < MOMENT
    found = [match for name in names if (match := PROCESS.fullmatch(name))]
    return any(_has_mapped(int(match[1] or match[2]), directory) for match in found)


def _has_mapped(pid: int, directory: Path) -> bool:
    try:
        return os.fsencode(directory) + b"/" in Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:  # it has ended, or is another user's
        return False
