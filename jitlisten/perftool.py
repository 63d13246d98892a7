"""The perf that this machine has, and what it says."""

from __future__ import annotations

import os
import shutil
from typing import IO

from listeners.errors import JITListenerError

__all__ = ["messages", "perf_tool"]


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
