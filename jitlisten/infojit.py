"""`info jit`, a command for gdb: the JIT'd objects that it knows, and their functions.

gdb runs this file, also on a core file or a remote target: `source FILE`, or from the shell

    gdb -x "$(python -m jitlisten.infojit)" …

since outside gdb it prints its own path. gdb's Python needs to be 3.10 or newer.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import partial

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

try:
    import gdb
except ImportError:
    print(os.path.abspath(__file__))  # noqa: PTH100
    raise SystemExit(0) from None

sys.path.append(ROOT)  # for this import only: what else is there is for another Python
try:
    from listeners.errors import JITListenerError
    from listeners.events import LoadedObject
    from listeners.symfile import read_symfile
finally:
    sys.path.remove(ROOT)

ROW = re.compile(r"^\s*0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+(\d+)\s*$", re.MULTILINE)


class InfoJIT(gdb.Command):  # type: ignore[misc]
    """List JIT'd objects and their functions.
    Usage: info jit [REGEXP]

    With REGEXP, only functions whose names match it, and the objects that have such."""

    def __init__(self) -> None:
        super().__init__("info jit", gdb.COMMAND_STATUS)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        try:
            pattern = re.compile(argument)
        except re.error as error:
            raise gdb.GdbError(f"Invalid regexp: {error}") from None
        blocks = list(blocks_of(pattern))
        if not blocks:
            gdb.write(
                f"No JIT'd function matches {argument!r}.\n" if argument else "No JIT'd code.\n"
            )
        gdb.write("\n".join(blocks))


def blocks_of(pattern: re.Pattern[str]) -> Iterator[str]:
    """What there is to say of each object."""
    inferior = gdb.selected_inferior()
    for entry, address, size in ROW.findall(gdb.execute("maint info jit", to_string=True)):
        lines = [f"Object at 0x{address}, {size} bytes, entry 0x{entry}:"]
        functions = []
        try:
            image = bytes(inferior.read_memory(int(address, 16), int(size)))
            obj = LoadedObject(partial(read_symfile, image), inferior.read_memory)
            functions = [each for each in obj.functions if pattern.search(each.demangled)]
            for section in obj.sections:
                end = section.address + section.size
                lines.append(f"  {section.address:#018x} - {end:#018x} is {section.name}")
        except (gdb.MemoryError, JITListenerError) as error:
            lines.append(f"  Cannot be read: {error}")
        for function in functions:
            place = gdb.find_pc_line(function.address)
            where = f" at {place.symtab.filename}:{place.line}" if place.symtab else ""
            lines.append(f"  {function.address:#018x}  {function.demangled}{where}")
        if functions or not pattern.pattern:
            yield "\n".join(lines) + "\n"


InfoJIT()
