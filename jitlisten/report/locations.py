"""What the places in a call chain are: kind of code, function, source line.

perf says which file is mapped at an address, and a name. That file tells what kind of code it is;
of JIT code it has the source lines and the inlined functions, too.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from listeners.demangle import demangle
from listeners.errors import JITListenerError
from perfmap.names import printable

from .codefiles import CodeFile, Function, Place, is_code_file, kept
from .samples import Call

__all__ = ["NAMELESS", "UNKNOWN", "Frame", "Kind", "Location", "Locator"]

PYTHON = re.compile(r"py::(.*?):(.*)", re.DOTALL)  # `py::FUNCTION:FILE`, CPython 3.12 and newer
# Memory that is of no file. perf calls it by the map file that it looks into for names.
ANONYMOUS = re.compile(r"/tmp/perf-\d+\.map|//anon|/memfd:.*|/dev/zero.*|\[(anon:|heap|stack).*")
USER = re.compile(r"\[(vdso|vsyscall|uprobes).*\]")
MODULE = re.compile(r"\[.*\]|.*\.ko(\.\w+)?|(.*/)?vmlinux[^/]*|bpf_prog_.*")
INTERPRETER = re.compile(r"(.*/)?(libpython3[^/]*\.so[^/]*|python(3(\.\d+)?[a-z]*)?)")
CUT_OFF = (1 << 64) - 1  # what libunwind reads where the recorded part of the stack ends
KERNEL_HALF = 1 << 63  # where a 64-bit kernel's addresses begin


class Kind(Enum):
    """What code a frame is of."""

    JIT = "JIT"
    PYTHON = "Python"  # the interpreter's own code, too, where the time of Python's functions goes
    NATIVE = "native"
    KERNEL = "kernel"


class Frame(NamedTuple):
    """A function as it stands in a call chain."""

    kind: Kind
    name: str
    file: str
    """The source file of JIT and Python functions, as far as known; of others the library."""
    inlined: bool = False
    """Whether its code is part of its caller's."""

    @property
    def is_interpreter(self) -> bool:
        """Whether it is a function of the interpreter, rather than one written in Python."""
        return self.kind is Kind.PYTHON and INTERPRETER.fullmatch(self.file) is not None


class Location(NamedTuple):
    """A place in the code of a frame."""

    frame: Frame
    function: Frame
    """The function whose machine code it is: another one if `frame` is inlined."""
    address: int = 0
    """In the file `dso` of JIT code; 0 in other code."""
    dso: str = ""
    """As perf calls it; empty if it is not JIT code."""
    file: str = ""
    """Of the source; empty if it is not known."""
    line: int = 0
    """0 if it is not known."""


UNKNOWN = "[unknown]"
NAMELESS = Frame(Kind.JIT, UNKNOWN, "")
"""JIT code of which nothing is known."""
TRUNCATED = Frame(Kind.NATIVE, "[truncated]", "[truncated]")
"""Where a call chain begins that perf could not follow to its end."""


class Locator:
    """Finds out where the calls of a recording are."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """Which files of JIT code are malformed, and how."""
        self.missing: list[str] = []
        """Those that cannot be opened: there are neither names nor lines of what is in them."""
        self._files: dict[str, CodeFile | None] = {}
        self._without_lines: set[str] = set()

    def locate(self, call: Call, is_innermost: bool) -> list[Location]:
        """Where a call is: one location, and one for each function inlined there, outermost first.

        The address of a call that is not innermost is the one it returns to.
        """
        kind = _kind(call)
        if call.address == CUT_OFF:
            return [Location(TRUNCATED, TRUNCATED)]
        if kind is not Kind.JIT:
            unnamed = f"[{call.dso.rpartition('/')[2].strip('[]')}]"
            frame = Frame(kind, call.name or unnamed, call.dso)
            return [Location(frame, frame)]
        if match := PYTHON.fullmatch(call.name):
            frame = Frame(Kind.PYTHON, match[1] or UNKNOWN, match[2])
            return [Location(frame, frame)]
        file = self.code_file(call.dso)
        found = file.find(call.address, call.offset) if file else None
        if not file or not found:
            name = printable(demangle(call.name))
            frame = Frame(kind, name, "") if name else NAMELESS
            return [Location(frame, frame, call.address, call.dso)]
        function, address = found
        if not is_innermost and address > function.address:
            address -= 1
        source, places = self._look_up(file, call.dso, function, address)
        frame = Frame(kind, function.name, source)
        return [
            Location(
                Frame(kind, place.inlined, place.file, True) if place.inlined else frame,
                *(frame, address, call.dso, place.file, place.line),
            )
            for place in places
        ]

    def _look_up(
        self, file: CodeFile, dso: str, function: Function, address: int
    ) -> tuple[str, tuple[Place, ...]]:
        """The function's source file, and what is at the address."""
        if dso not in self._without_lines:
            try:
                source, places = file.source_file(function), file.places(address)
                return printable(source), tuple(
                    place._replace(file=printable(place.file)) for place in places
                )
            except JITListenerError as error:
                self.problems.append(f"{dso}: {error}")
                self._without_lines.add(dso)
        return "", (Place("", "", 0),)

    def code_file(self, dso: str) -> CodeFile | None:
        """The file of JIT code that perf calls `dso`; None if it is none, or cannot be read."""
        if dso not in self._files:
            self._files[dso] = None
            if is_code_file(dso):
                try:
                    self._files[dso] = CodeFile(kept(dso))
                except OSError:
                    self.missing.append(dso)
                except JITListenerError as error:
                    self.problems.append(str(error))
        return self._files[dso]


def _kind(call: Call) -> Kind:
    """The kind of code; JIT for all that is generated, Python's trampolines, too."""
    dso = call.dso
    if dso == "[unknown]":
        return Kind.KERNEL if call.address >= KERNEL_HALF else Kind.NATIVE
    if ANONYMOUS.fullmatch(dso) or is_code_file(dso):
        return Kind.JIT
    if MODULE.fullmatch(dso) and not USER.fullmatch(dso):
        return Kind.KERNEL
    return Kind.PYTHON if INTERPRETER.fullmatch(dso) else Kind.NATIVE
