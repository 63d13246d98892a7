"""JIT'd code of a process we did not start, or of a core file: what `list`, `map`, `dump` and
`symbolize` look at, and `stackmap`.

It is read from the lists that engines keep for debuggers. The process is neither stopped nor
changed, and llvmlite is not needed here.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import gdbjit
from listeners.errors import JITListenerError
from listeners.events import LoadedObject
from listeners.symfile import registered_object

__all__ = [
    "NothingLoaded",
    "Registered",
    "Target",
    "chosen_target",
    "process_number",
    "target_parser",
]

LLVMLITE = "libllvmlite.so"

T = TypeVar("T")


class NothingLoaded(gdbjit.GDBJITError):
    """The process or core file can be read, and has no JIT'd code."""


@dataclass(frozen=True)
class Registered:
    """An object in the list of an engine."""

    library: str
    """Path of the file whose descriptor it is in; of several, the first one in load order."""
    entry: int
    """Address of its entry."""
    image_size: int
    """Bytes of what is registered."""
    obj: LoadedObject

    @property
    def engine(self) -> str:
        """The name of the file whose descriptor it is in."""
        return Path(self.library).name


@dataclass(frozen=True)
class Target:
    """What is looked at: the process `pid`, or else the file `core`."""

    pid: int | None
    core: str | None

    def __str__(self) -> str:
        return f"process {self.pid}" if self.core is None else f"core file {self.core!r}"

    def registered(self) -> Iterator[Registered]:
        """What all engines there have registered, in load order of the engines, oldest first.

        What is in the lists of several, as after `jitlisten run --gdb-all`, is that of the first.
        Raises GDBJITError if it cannot be read, or if there is nothing to read.
        """
        descriptors = gdbjit.descriptors(self.pid, core=self.core)
        if not descriptors:
            raise NothingLoaded(
                f"{self}: no JIT: no file loaded there has the symbol __jit_debug_descriptor"
            )
        before: set[bytes] = set()  # digests of the images in the lists that have been read
        count = 0
        for descriptor in descriptors:
            here: set[bytes] = set()
            for entry, image in descriptor.images():
                count += 1
                if len(descriptors) > 1:
                    here.add(digest := sha256(image).digest())
                    if digest in before:
                        continue
                obj = registered_object(descriptor, image)
                yield Registered(descriptor.library, entry.address, entry.size, obj)
            before |= here
        if not count:
            engines = ", ".join(Path(descriptor.library).name for descriptor in descriptors)
            problem = f"{self}: no JIT'd code now: {engines} has no object"
            if LLVMLITE in engines:
                problem += " (LLVM does not list what JITLink links; `jitlisten run --gdb` does)"
            raise NothingLoaded(problem)

    def look(self, into: Callable[[Registered], T]) -> tuple[list[T], list[str]]:
        """What `into` makes of each object; and why some cannot be read, of which it raised
        JITListenerError.

        Raises GDBJITError as `registered` does, if there is nothing to say of any object.
        """
        found: list[T] = []
        problems: list[str] = []
        try:
            for registered in self.registered():
                try:
                    found.append(into(registered))
                except JITListenerError as error:
                    problems.append(f"the object of the entry at {registered.entry:#x}: {error}")
        except gdbjit.GDBJITError as error:
            if not (found or problems):
                raise
            problems.append(str(error))
        return found, [f"{self}: {problem}" for problem in problems]


def target_parser(command: str, description: str) -> ArgumentParser:
    """A command line with a target; `chosen_target` tells which."""
    parser = ArgumentParser(
        prog=f"jitlisten {command}", description=description, allow_abbrev=False
    )
    parser.add_argument(
        "pid", nargs="?", type=process_number, metavar="PID", help="number of a process"
    )
    parser.add_argument("--core", metavar="FILE", help="a core file, not a process")
    return parser


def process_number(text: str) -> int:
    """A word of the command line. Raises ArgumentTypeError if it is no number."""
    if not re.fullmatch(r"-?[0-9]+", text):
        raise ArgumentTypeError(f"{text!r} is no number of a process")
    return int(text)


def chosen_target(parser: ArgumentParser, pid: int | None, core: str | None) -> Target:
    """The one that the command line names; ends the command if it is not exactly one."""
    if (pid is None) == (core is None):
        parser.error("give the number of a process, or --core FILE")
    return Target(pid, core)
