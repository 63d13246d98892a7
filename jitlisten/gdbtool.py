"""The gdb that this machine has: whether it sees the descriptor of libllvmlite.

That one is a local symbol. gdb 15 looks up exported ones alone; earlier versions and gdb 16 look up
both (numba/numba#9817).
"""

from __future__ import annotations

import re

from .checks import run

__all__ = ["VERSION", "asks_for_all", "sees_exported_only"]

VERSION = r"^GNU gdb .*?(\d+)(\.\d[\w.-]*)\s*$"
"""In what `gdb --version` prints: the major version, and the rest of it."""


def asks_for_all(gdb: str = "gdb") -> bool:
    """Whether everything must be registered where this gdb sees it; not if there is none."""
    return sees_exported_only(run(gdb, "--version").stdout)


def sees_exported_only(said: str) -> bool:
    """Whether this is the version of a gdb that does not see local descriptors."""
    version = re.search(VERSION, said, re.MULTILINE)
    return version is not None and version[1] == "15"
