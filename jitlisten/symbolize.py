"""`jitlisten symbolize`: what function and line of JIT'd code an address is in.

Without addresses on the command line it copies stdin to stdout, and puts behind each address of
JIT'd code what is there: `0x7f3a10002010 (steps+0x10 at collatz.tiny:8)`. A hexadecimal number of
six or more digits is taken for an address, with 0x in front or without, as in logs and backtraces.
"""

from __future__ import annotations

import io
import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from bisect import bisect_right

import gdbjit
from listeners.errors import JITListenerError
from listeners.events import Function, LoadedObject
from perfmap.names import printable

from .command import carry_out, complain
from .outside import Target, chosen_target, process_number

__all__ = ["main"]

ADDRESS = re.compile(r"(?<![\w.])(?:0[xX])?([0-9a-fA-F]{6,16})(?![\w.])")
PAUSE = 1.0  # seconds at least between two looks at a running process


def main(arguments: list[str]) -> int:
    """Explain the addresses of the command line or of stdin; gives the exit status."""
    parser = ArgumentParser(
        prog="jitlisten symbolize",
        usage="jitlisten symbolize [-h] (PID | --core FILE) [ADDRESS ...]",
        description="Say what function and line of JIT'd code addresses are in.",
        allow_abbrev=False,
    )
    parser.add_argument("--core", metavar="FILE", help="a core file, not a process")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ADDRESS",
        help="a hexadecimal number; without any, those in the text on stdin are explained",
    )
    options = parser.parse_args(arguments)
    words = options.words
    pid = None
    if words and not options.core:
        try:
            pid = process_number(words.pop(0))
        except ArgumentTypeError as error:
            parser.error(str(error))
    addresses = [(word, _address(parser, word)) for word in words]
    target = chosen_target(parser, pid, options.core)
    return carry_out("symbolize", lambda: _symbolize(target, addresses))


def _address(parser: ArgumentParser, word: str) -> int:
    try:
        return int(word, 16)
    except ValueError:
        parser.error(f"{word!r} is no hexadecimal number")


def _symbolize(target: Target, addresses: list[tuple[str, int]]) -> int:
    code = _Code(target)
    for word, address in addresses:
        print(word, code.place(address) or "??")
    if not addresses:
        for stream in (sys.stdin, sys.stdout):  # a log may have bytes of any encoding
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="surrogateescape")
        for line in sys.stdin or ():  # it may be closed
            sys.stdout.write(ADDRESS.sub(code.explained, line))
            sys.stdout.flush()
    return complain("symbolize", code.problems)


class _Code:
    """The functions of a process or core; of a process that runs, read again for new addresses."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._read()

    def _read(self) -> None:
        read, self.problems = self._target.look(lambda found: (found.obj, found.obj.functions))
        found = [
            (function.address, function, obj) for obj, functions in read for function in functions
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
        return printable(f"{function.demangled}+{address - function.address:#x}{line}")

    def explained(self, match: re.Match[str]) -> str:
        """An address of a text, with what is there behind it."""
        address = int(match[1], 16)
        if self._find(address) is None and time.monotonic() - self._when > PAUSE:
            try:
                self._read()
            except gdbjit.GDBJITError:
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
