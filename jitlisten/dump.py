"""`jitlisten dump`: the JIT'd code of a process or of a core file as ELF files, for any tool.

A file is linked for the addresses where the code runs, with symbols, debug information and the
bytes that were in memory. `objdump -d`, gdb's `symbol-file` and `add-symbol-file` need no more.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from perfmap.names import in_file_name

from .command import carry_out, complain
from .outside import Registered, Target, chosen_target, target_parser

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Write the files that the command line asks for; gives the exit status."""
    parser = target_parser("dump", "Write JIT'd code as ELF files, and their paths to stdout.")
    parser.add_argument(
        "-o", "--output", metavar="DIR", default=".", help="where to write; default: here"
    )
    options = parser.parse_args(arguments)
    target = chosen_target(parser, options.pid, options.core)
    return carry_out("dump", lambda: _dump(target, Path(options.output)))


def _dump(target: Target, directory: Path) -> int:
    def write(found: Registered) -> None:
        image, functions = found.obj.image(), found.obj.functions
        name = in_file_name(found.obj.name, 80)
        address = functions[0].address if functions else found.entry
        path = directory / f"{name}-{address:x}.elf"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        except OSError as error:
            raise _CannotWriteError(f"{str(path)!r}: {error.strerror}") from error
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")  # a path is any bytes

    try:
        _, problems = target.look(write)
    except _CannotWriteError as error:
        problems = [str(error)]
    return complain("dump", problems)


class _CannotWriteError(Exception):
    """There is no use in going on."""
