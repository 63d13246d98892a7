"""JIT'd code of a process we did not start, or of a core file: what `list`, `map`, `dump` and
`symbolize` look at.

It is read from the lists that engines keep for debuggers. The process is neither stopped nor
changed, and llvmlite is not needed here.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import gdbjit
from listeners.errors import JITListenerError
from listeners.events import LoadedObject
from listeners.symfile import registered_object
from perfmap import PerfMapError

__all__ = ["Registered", "look", "registered", "who"]

MODULES = {"list": ".listing", "map": ".mapping"}  # list.py would hide Python's own in the package


@dataclass(frozen=True)
class Registered:
    """An object in the list of an engine."""

    library: str
    """Path of the file whose descriptor it is in."""
    entry: int
    """Address of its entry."""
    image_size: int
    """Bytes of what is registered."""
    obj: LoadedObject

    @property
    def engine(self) -> str:
        """The name of the file whose descriptor it is in."""
        return Path(self.library).name


def look(parser: ArgumentParser, options: Namespace) -> int:
    """Do what the command line asks for; gives the exit status."""
    if options.command == "symbolize":
        try:
            options.pid = int(options.words.pop(0)) if options.words and not options.core else None
            options.addresses = {word: int(word, 16) for word in options.words}
        except ValueError as error:
            parser.error(f"symbolize: {error}")
    if (options.pid is None) == (options.core is None):
        parser.error(f"{options.command}: give the number of a process, or --core FILE")
    work = import_module(MODULES.get(options.command, f".{options.command}"), __package__)
    try:
        status: int = work.main(options)
        sys.stdout.flush()
        return status
    except (gdbjit.GDBJITError, JITListenerError, PerfMapError) as error:
        print(f"jitlisten {options.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads has seen enough, and Python is not to try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def who(options: Namespace) -> str:
    """What the user has asked to look at."""
    return f"core file {options.core!r}" if options.core else f"process {options.pid}"


def registered(options: Namespace) -> Iterator[Registered]:
    """What all engines there have registered, in load order of the engines, oldest first.

    Raises GDBJITError if it cannot be read, or if there is nothing to read.
    """
    descriptors = (
        gdbjit.descriptors(core=options.core) if options.core else gdbjit.descriptors(options.pid)
    )
    if not descriptors:
        raise gdbjit.GDBJITError(
            f"{who(options)}: no JIT: no file loaded there has the symbol __jit_debug_descriptor"
        )
    count = 0
    for descriptor in descriptors:
        for entry, image in descriptor.images():
            count += 1
            obj = registered_object(descriptor, image)
            yield Registered(descriptor.library, entry.address, entry.size, obj)
    if not count:
        engines = ", ".join(Path(descriptor.library).name for descriptor in descriptors)
        raise gdbjit.GDBJITError(f"{who(options)}: no JIT'd code now: {engines} has no object")
