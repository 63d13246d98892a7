"""The lines of a map file, made of entries and read back.

One line a function, ``START SIZE name``, hexadecimal without prefix; the name is the rest of the
line. Source: tools/perf/Documentation/jit-interface.txt and dso__load_perf_map() in
tools/perf/util/symbol.c of Linux.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from itertools import pairwise
from typing import NamedTuple

from perfmap.errors import PerfMapError
from perfmap.namedfile import opened
from perfmap.names import shown

__all__ = ["Line", "MapEntry", "fields_of", "last_ones", "line_of", "read_map"]

_ADDRESS_SPACE = 1 << 64
_LONGEST_LINE = 1 << 20  # bytes; what has more is not a map file
_LINE = re.compile(rb"(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) (.+)", re.DOTALL)

Line = tuple[int, int, bytes]  # first address, address after the last, the line


class MapEntry(NamedTuple):
    """A range of code and its name: an address, a size in bytes, a name."""

    address: int
    size: int
    name: str


def read_map(path: str | os.PathLike[str]) -> list[MapEntry]:
    """The entries of a map file, in the order of its lines; empty lines are skipped.

    A ``0x`` prefix is accepted, as perf does. Bytes of a name that are not UTF-8 come as
    ``\\xNN``. Raises `PerfMapError` for a file that cannot be read, and for a line that is not
    ``START SIZE name``.
    """
    entries = []
    with opened(path, "map file") as file:
        lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
        for number, line in enumerate(lines, 1):
            if line == b"\n":
                continue
            fields = fields_of(line)
            if fields is None or len(line) == _LONGEST_LINE:
                raise PerfMapError(
                    f"{str(path)!r}, line {number}: {line[:60]!r} is not 'START SIZE name' "
                    "with both numbers in hexadecimal: give a map file, or remove the line"
                )
            start, size, name = fields
            entries.append(MapEntry(start, size, name.decode(errors="backslashreplace")))
    return entries


def fields_of(line: bytes) -> tuple[int, int, bytes] | None:
    """Address, size and name in a line; None where it is not one of a map file."""
    fields = _LINE.fullmatch(line.removesuffix(b"\n"))
    return fields and (int(fields[1], 16), int(fields[2], 16), fields[3])


def line_of(address: int, size: int, name: str) -> Line:
    """The line of an entry, in a form that perf resolves and a terminal survives.

    Raises `PerfMapError` for what is not in a 64-bit address space.
    """
    end = address + (size or 1)
    if address < 0 or size < 0 or end > _ADDRESS_SPACE:
        raise PerfMapError(
            f"{name!r}, {size} bytes at {address:#x}, is not in a 64-bit address space: "
            "give the load address of the code and its size"
        )
    text = shown(name)
    if len(text) < 3:
        text += b"()"  # perf skips names of one and two bytes
    return address, end, b"%x %x %b\n" % (address, end - address, text)


def last_ones(lines: list[Line]) -> list[Line]:
    """`lines` by address; of those that overlap, the last one."""
    by_address = sorted(lines)
    if all(one[1] <= other[0] for one, other in pairwise(by_address)):
        return by_address
    kept: list[Line] = []
    for start, end, line in reversed(lines):
        index = bisect_left(kept, (end,))
        if not index or kept[index - 1][1] <= start:
            kept.insert(index, (start, end, line))
    return kept
