"""Which memory perf takes for whose: the code of functions, and the rules of their frames."""

from __future__ import annotations

import mmap
import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from perfmap.callframes import SMALLEST_DISTANCE, FrameRules, behind, size_of

__all__ = ["JITCode", "Places"]

FARTHEST = 1 << 15  # bytes from code to rules: so many are written, and by perf again
_EXECUTABLE = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ ..x", re.MULTILINE)


class JITCode(NamedTuple):
    """A function, as perf is to show it."""

    address: int
    code: bytes
    name: str
    lines: Sequence[tuple[int, str, int]] = ()
    """Where code of a source line begins: address, file, line; by address, line 0 for none."""
    frame: FrameRules | None = None
    """How to unwind it; None where a frame pointer has to do."""


class Places:
    """The ranges that are taken; no two of them overlap."""

    def __init__(self) -> None:
        self._ends: dict[int, tuple[int, int]] = {}  # by start, with the function that it is of
        self._starts: list[int] = []  # sorted
        self._rules: dict[int, int] = {}  # start of the rules, by address of the function

    def take(self, functions: Sequence[JITCode]) -> list[int | None]:
        """Take the places of functions, given by address, that are loaded together.

        Gives how far from the place behind its code each one's rules are to be: as near as they
        can without another's code or rules between, save those of the functions that follow here:
        these are loaded after it. None if there is no room, or no rules.
        """
        for function in functions:
            self._drop_overlapped(function.address, function.address + len(function.code))
        mappings: list[int] | None = None
        distances: list[int | None] = []
        rules: dict[int, tuple[int, int]] = {}
        taken: list[tuple[int, int]] = []  # by the functions that follow, the first of them last
        for address, code, _, _, frame in reversed(functions):
            distances.append(None)
            end = address + behind(len(code))
            mine = (address, address + len(code))
            if frame is not None:
                need = size_of(frame)
                distance, above = 0, len(taken)
                while above and end + distance + need > taken[above - 1][0]:
                    above -= 1
                    beyond = taken[above][1] - end
                    distance = max(distance, behind(beyond), SMALLEST_DISTANCE)
                stop = end + distance + need
                limit = self._next_start(end)
                if stop > _page_end(end):
                    if mappings is None:
                        mappings = _executable_mappings()
                    index = bisect_left(mappings, end)
                    limit = min([limit, *mappings[index : index + 1]])
                if stop <= limit and distance <= FARTHEST:
                    distances[-1] = distance
                    del taken[above:]
                    rules[address] = end + distance, stop
                    mine = (address, stop)
            taken.append(mine)
        for function in functions:
            self._add(function.address, function.address + len(function.code), function.address)
        for address, (start, stop) in rules.items():
            self._rules[address] = start
            self._add(start, stop, address)
        distances.reverse()
        return distances

    def free(self, addresses: Iterable[int]) -> None:
        """The functions at `addresses` and their rules are gone."""
        for address in addresses:
            for start in (address, self._rules.pop(address, -1)):
                # Another function may have come to where the rules were.
                if self._ends.get(start, (0, 0))[1] == address:
                    self._drop(start)

    def are_free(self, start: int, stop: int) -> bool:
        """Whether nothing is between two addresses."""
        return self._next_start(start) >= stop

    def _next_start(self, address: int) -> int:
        index = bisect_left(self._starts, address)
        return self._starts[index] if index < len(self._starts) else 1 << 64

    def _add(self, start: int, stop: int, function: int) -> None:
        self._drop_overlapped(start, stop)  # by one that was loaded together with this one
        self._ends[start] = stop, function
        insort(self._starts, start)

    def _drop(self, start: int) -> None:
        del self._ends[start]
        del self._starts[bisect_left(self._starts, start)]

    def _drop_overlapped(self, start: int, stop: int) -> None:
        index = bisect_left(self._starts, start)
        if index and self._ends[self._starts[index - 1]][0] > start:
            index -= 1
        while index < len(self._starts) and self._starts[index] < stop:
            self._drop(self._starts[index])


def _page_end(address: int) -> int:
    return address + -address % mmap.PAGESIZE


def _executable_mappings() -> list[int]:
    """Where the mappings of code begin: what perf knows of them is not to be taken from it."""
    try:
        text = Path("/proc/self/maps").read_bytes()
    except OSError:
        return []
    return [int(start, 16) for start in _EXECUTABLE.findall(text)]
