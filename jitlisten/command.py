"""What commands have in common: their errors, their output, their exit status."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable

import gdbjit
from listeners.errors import JITListenerError
from perfmap import PerfMapError

__all__ = ["carry_out", "complain"]


def complain(command: str, problems: Iterable[str]) -> int:
    """Say what could not be done; gives the exit status."""
    status = 0
    for problem in problems:
        print(f"jitlisten {command}: {problem}", file=sys.stderr)
        status = 1
    return status


def carry_out(command: str, work: Callable[[], int]) -> int:
    """Do what was asked for; gives the exit status: that of `work`, or 1 with a line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may not have all that is shown
        sys.stdout.reconfigure(errors="replace")
    try:
        status = work()
        sys.stdout.flush()
        return status
    except (gdbjit.GDBJITError, JITListenerError, PerfMapError) as error:
        print(f"jitlisten {command}: {error}", file=sys.stderr)
    except OSError as error:  # of stdout; Python is not to try again at its end
        if not isinstance(error, BrokenPipeError):  # who reads has seen enough
            print(f"jitlisten {command}: cannot write: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
