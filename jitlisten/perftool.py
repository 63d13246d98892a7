"""The perf that this machine has, what it says, and what its recordings have from us."""

from __future__ import annotations

import os
import shutil
from typing import IO

from listeners.errors import JITListenerError

__all__ = ["STARTER", "messages", "perf_tool"]

STARTER = "jitlisten start"
"""What a process is called that `jitlisten record` has made, until it becomes the program: as many
characters as the kernel has room for."""


def perf_tool() -> str:
    """The path of perf.

    Raises JITListenerError if there is none.
    """
    path = shutil.which("perf")
    if path is None:
        raise JITListenerError(
            "there is no perf: apt-get install linux-perf (Ubuntu: linux-tools-generic)"
        )
    return path


def messages() -> IO[str]:
    """A file for what perf says; there may be no directory for one."""
    return os.fdopen(os.memfd_create("perf"), "w+", errors="replace")
