"""`jitlisten dump`: the JIT'd code of a process or of a core file as ELF files, for any tool.

A file is linked for the addresses where the code runs, with symbols, debug information and the
bytes that were in memory. `objdump -d`, gdb's `symbol-file` and `add-symbol-file` need no more.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path

from listeners.errors import JITListenerError

from .outside import registered, who

__all__ = ["main"]

NOT_IN_NAMES = re.compile(r"[^\w.+-]+")


def main(options: Namespace) -> int:
    """Write a file for each object that there is, and its path to stdout; gives the status."""
    directory = Path(options.output)
    failed = 0
    for found in registered(options):
        try:
            image, functions = found.obj.image(), found.obj.functions
            name = NOT_IN_NAMES.sub("_", found.obj.name)[:80]
        except JITListenerError as error:
            problem = f"the object of the entry at {found.entry:#x}: {error}"
            print(f"jitlisten dump: {who(options)}: {problem}", file=sys.stderr)
            failed += 1
            continue
        address = functions[0].address if functions else found.entry
        path = directory / f"{name}-{address:x}.elf"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        except OSError as error:
            print(f"jitlisten dump: {str(path)!r}: {error.strerror}", file=sys.stderr)
            return 1
        print(path)
    return 1 if failed else 0
