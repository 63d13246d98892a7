"""`jitlisten symbolize`: what function and line of JIT'd code an address is in.

Without addresses on the command line it copies stdin to stdout, and puts behind each address of
JIT'd code what is there: `0x7f3a10002010 (steps+0x10 at collatz.tiny:8)`. A hexadecimal number of
six or more digits is taken for an address, with 0x in front or without, as in logs and backtraces.
"""

from __future__ import annotations

import re
import sys
import time
from argparse import Namespace
from bisect import bisect_right

import gdbjit
from listeners.errors import JITListenerError
from listeners.events import Function, LoadedObject

from .outside import registered

__all__ = ["main"]

ADDRESS = re.compile(r"(?<![\w.])(?:0[xX])?([0-9a-fA-F]{6,16})(?![\w.])")
PAUSE = 1.0  # seconds at least between two looks at a running process


def main(options: Namespace) -> int:
    """Print what is at the addresses, or what they are in stdin; gives the exit status."""
    code = _Code(options)
    for word, address in options.addresses.items():
        print(word, code.place(address) or "??")
    if not options.addresses:
        for line in sys.stdin:
            sys.stdout.write(ADDRESS.sub(code.explained, line))
            sys.stdout.flush()
    return 0


class _Code:
    """The functions of a process or core; of a process that runs, read again for new addresses."""

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._read()

    def _read(self) -> None:
        found = [
            (function.address, function, entry.obj)
            for entry in registered(self._options)
            for function in entry.obj.functions
        ]
        self._functions = sorted(found, key=lambda each: each[0])
        self._when = time.monotonic()

    def place(self, address: int) -> str | None:
        """Function, offset and, if they are known, file and line; None if it is not JIT'd code."""
        found = self._find(address)
        if found is None:
            return None
        function, obj = found
        line = _line(obj, address)
        return f"{function.demangled}+{address - function.address:#x}{line}"

    def explained(self, match: re.Match[str]) -> str:
        """An address of a text, with what is there behind it."""
        address = int(match[1], 16)
        if self._find(address) is None and time.monotonic() - self._when > PAUSE:
            try:
                self._read()
            except (gdbjit.GDBJITError, JITListenerError):
                self._when = float("inf")  # it has ended: what is known of it stays so
        place = self.place(address)
        return f"{match[0]} ({place})" if place else match[0]

    def _find(self, address: int) -> tuple[Function, LoadedObject] | None:
        at = bisect_right(self._functions, address, key=lambda each: each[0]) - 1
        if at < 0:
            return None
        start, function, obj = self._functions[at]
        return (function, obj) if address < start + function.size else None


def _line(obj: LoadedObject, address: int) -> str:
    try:
        lines = obj.lines()
    except JITListenerError:  # unloaded since, or without lines that can be read
        return ""
    at = bisect_right(lines, address, key=lambda line: line.address) - 1
    return f" at {lines[at].file}:{lines[at].line}" if at >= 0 and lines[at].line else ""
