"""`jitlisten clean`: removes the files that profiled programs have left for perf.

Code images and jitdumps outlive their program, because perf reads them afterwards; a report made
after this has no names. A directory of a run goes when all processes have ended whose numbers its
files have in their names.
"""

from __future__ import annotations

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
    if not names:
        return time.time() - directory.stat().st_mtime < MOMENT
    found = [match for name in names if (match := PROCESS.fullmatch(name))]
    return any(Path(f"/proc/{match[1] or match[2]}").exists() for match in found)
