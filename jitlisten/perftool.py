"""The perf that this machine has."""

from __future__ import annotations

import shutil

from listeners.errors import JITListenerError

__all__ = ["perf_tool"]


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
