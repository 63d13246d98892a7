"""What tests of the map file share."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from perfmap import read_map

ROOT = Path(__file__).parent.parent
CODE = 0x7F00_0000_0000


def names(path: Path) -> list[str]:
    return [entry.name for entry in read_map(path)]


def open_in(directory: Path) -> list[Path]:
    """The files in a directory, deleted ones too, that this process has open, once a descriptor."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself, and those of other threads
            found.append(descriptor.readlink())
    return [path for path in found if path.parent == directory]


def run(program: str, *arguments: str) -> str:
    """What a Python program prints that uses the map file of its own process."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
