"""Mapping a file over machine code that has been made at run time.

To perf, and to all else that reads mappings, code in anonymous memory is nameless. A file that
holds the very bytes of the code's pages can be mapped over them: the program runs on, and tools
find the file. What the file should hold besides is its maker's affair.

Only pages that are private, anonymous, readable, executable and not writable are covered: nobody
writes those but a debugger. Whoever makes the code must not change it meanwhile.

**No thread notices.** `mmap` with MAP_FIXED takes the old pages away and puts the new ones there
under the write lock of the process's memory map. A thread that runs this code meanwhile misses its
page, waits for that lock in the page fault, finds the new mapping and executes the same instruction
from the same bytes. What may fail is tried first: the file has been mapped elsewhere and compared,
permission and the number of mappings are checked by the kernel before it takes anything away.
`mremap` of a finished mapping would do as well, but no PERF_RECORD_MMAP comes of it.
Source: mmap_region() in mm/vma.c, do_user_addr_fault() in arch/x86/mm/fault.c of Linux.
"""

from __future__ import annotations

import ctypes
import resource
from bisect import insort
from contextlib import suppress
from itertools import pairwise
from mmap import MAP_ANONYMOUS, PAGESIZE, PROT_EXEC, PROT_READ
from pathlib import Path

from perfmap.errors import PerfMapError
from perfmap.memory import (
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_POPULATE,
    PROT_NONE,
    map_free,
    map_private,
    mapping_at,
    mappings,
)

__all__ = ["Annex", "Headroom", "check_code", "cover"]

REACH = (1 << 31) - PAGESIZE
RESERVED_AT_ONCE = 1 << 20
STACK = 64 << 20  # bytes below a stack that are left to it


# What can be covered


def check_code(start: int, end: int, mine: bool = False) -> None:
    """Raises PerfMapError where the memory from `start` to `end` is not to be covered.

    With `mine`, files that were mapped over it before may be there.
    """
    address = start
    while address < end:
        mapping = mapping_at(address)
        if mapping is None:
            raise PerfMapError("pages of the code are not mapped")
        if mapping.access != "rx":
            what = "shared" if "s" in mapping.access else "writable, or not executable"
            raise PerfMapError(f"pages of the code are {what}")
        if not (mapping.anonymous or mine):
            path = next((m.name for m in mappings() if m.start <= address < m.end), "")
            raise PerfMapError(
                f"pages of the code are mapped from a file in {str(Path(path).parent)!r} already:"
                " by another CodeImages (one is enough), or by the engine itself"
            )
        address = mapping.end


class Headroom:
    """How many more mappings this process may have; a quarter of vm.max_map_count is left to it.

    Beyond that limit a program's own mappings fail. Counting takes a while where there are many, so
    that is done now and then.
    """

    def __init__(self) -> None:
        self._until_count = 0
        self._left = 0

    def check(self) -> None:
        """Before each file that is mapped. Raises PerfMapError if the limit is near."""
        if self._until_count == 0:
            most = int(Path("/proc/sys/vm/max_map_count").read_text())
            used = Path("/proc/self/maps").read_bytes().count(b"\n")
            self._left = most * 3 // 4 - used
            self._until_count = max(self._left // 16, 50)
        self._until_count -= 1
        if self._left <= 0:
            raise PerfMapError("the process has nearly vm.max_map_count mappings: raise that")


# Covering


def cover(start: int, pages: bytes, file: int, offset: int) -> None:
    """Map `file` from `offset` on over the code at `start`, which the file has as `pages`.

    Raises PerfMapError if the code is not `pages` any more, or the file cannot be mapped; all is as
    before then.
    """
    # Not earlier: in between, a debugger may have set or removed breakpoints.
    if ctypes.string_at(start, len(pages)) != pages:
        raise PerfMapError("the code changes while it is copied")
    flags = MAP_FIXED | MAP_POPULATE
    try:
        map_private(start, len(pages), PROT_READ | PROT_EXEC, flags, file, offset)
    except OSError as error:
        raise PerfMapError(f"the file cannot be mapped over code: {error.strerror}") from error


class Annex:
    """Address space for pages that go with code: above it and within 2 GiB, as unwinders need it.

    It is reserved a mebibyte at once, without access, and stays reserved. Like a stack's, the space
    is taken where the kernel has left a gap, the highest one: there it looks last, or never, for
    what the program maps.
    """

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []  # address and size, sorted

    def take(self, size: int, start: int, end: int) -> int:
        """The address of `size` bytes for the code from `start` to `end`, nothing there yet.

        `size` is in whole pages. Raises PerfMapError if there is no room.
        """
        for number, (address, free) in enumerate(self._free):
            if address >= end and address + size <= start + REACH and free >= size:
                self._free[number : number + 1] = (
                    [(address + size, free - size)] if free > size else []
                )
                return address
        for reserved in (max(size, RESERVED_AT_ONCE), size):
            for address in _gaps(reserved, end, start + REACH):
                if self._reserve(address, reserved):
                    return self.take(size, start, end)
        raise PerfMapError("no room for frames in the 2 GiB above the code")

    def _reserve(self, address: int, size: int) -> bool:
        if not map_free(address, size, PROT_NONE, MAP_NORESERVE):
            return False
        insort(self._free, (address, size))
        return True

    def fill(self, address: int, size: int, file: int, offset: int) -> None:
        """Map `file` from `offset` on at `address`, which was taken. Raises PerfMapError."""
        try:
            map_private(address, size, PROT_READ | PROT_EXEC, MAP_FIXED, file, offset)
        except OSError as error:
            raise PerfMapError(f"the file cannot be mapped: {error.strerror}") from error

    def give_back(self, address: int, size: int) -> None:
        """What was taken is free again."""
        with suppress(OSError):  # at the limit of mappings; then the file stays, until next time
            map_private(address, size, PROT_NONE, MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED)
        insort(self._free, (address, size))
        joined: list[tuple[int, int]] = []
        for start, free in self._free:
            if joined and sum(joined[-1]) == start:
                joined[-1] = joined[-1][0], joined[-1][1] + free
            else:
                joined.append((start, free))
        self._free = joined


def _gaps(size: int, low: int, high: int) -> list[int]:
    """Addresses between `low` and `high` where `size` bytes are free, the highest gap's first."""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    below_stack = high if stack == resource.RLIM_INFINITY else max(stack, STACK)
    found = []
    for mapping, above in pairwise(mappings()):
        start, end = max(low, mapping.end), min(high, above.start)
        if above.name == "[stack]":
            end -= below_stack
        if mapping.name != "[heap]" and end - start >= size:
            found.append(start)
    return found[::-1]
