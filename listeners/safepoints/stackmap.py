"""The section `.llvm_stackmaps`: what is live where, in LLVM's words; version 3 of the format.

For whoever needs the compiler's own record of a call site or a point in the code: a collector, a
deoptimiser, what patches calls. A linked image may hold several maps, one after the other. Reading
finds where each record begins; what it holds is decoded when somebody asks for it, because a
program has many records and looks at few.

    header     <BBHIII   version 3, 0, 0, functions, constants, records
    function   <QQQ      address, stack size, record count; the records follow in this order
    constant   <Q
    record     <QIHH     id, offset from the function, flags, locations; 8-aligned
    location   <BBHHHi   kind, 0, size, DWARF register, 0, offset or constant or index of a constant
    live-outs  <HH       0, their count, in front of it a pad to 8 bytes
    live-out   <HBB      DWARF register, 0, size; behind the last a pad to 8 bytes

The format: https://llvm.org/docs/StackMaps.html, "Stack Map Format".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import cache, partial
from struct import Struct
from typing import Any, NamedTuple, cast

from ..errors import JITListenerError

__all__ = [
    "DYNAMIC",
    "LiveOut",
    "Location",
    "LocationKind",
    "MappedFunction",
    "Record",
    "StackMaps",
]

HEADER = Struct("<BBHIII")
FUNCTION = Struct("<QQQ")
CONSTANT = Struct("<Q")
RECORD = Struct("<QIHH")
LOCATION = Struct("<BBHHHi")
LIVE_OUTS = Struct("<HH")
LIVE_OUT = Struct("<HBB")

VERSION = 3
DYNAMIC = (1 << 64) - 1
"""The stack size of a function whose frame is not of one size: it has a frame pointer."""


class LocationKind(IntEnum):
    """Where a value is."""

    REGISTER = 1
    """In the register."""
    DIRECT = 2
    """It is the address register + offset: that of an alloca."""
    INDIRECT = 3
    """In memory at register + offset."""
    CONSTANT = 4
    """It is the offset."""
    CONSTANT_INDEX = 5
    """It is the constant with the offset as its index in the map's table."""


class Location(NamedTuple):
    """Where a value is, as in the record."""

    kind: LocationKind
    size: int
    """Of the value, in bytes."""
    register: int
    """Its DWARF number."""
    offset: int


class LiveOut(NamedTuple):
    """A register that is live behind a patchpoint."""

    register: int
    """Its DWARF number."""
    size: int
    """In bytes."""


class Record(NamedTuple):
    """What is recorded of one point in the code."""

    id: int
    offset: int
    """From the start of the function: of a stackmap the point itself, of a patchpoint the start of
    its bytes, of a statepoint the return address of its call."""
    flags: int
    """Reserved by LLVM."""
    locations: tuple[Location, ...]
    live_outs: tuple[LiveOut, ...]


class MappedFunction(NamedTuple):
    """A function that has records."""

    address: int
    stack_size: int
    """In bytes, without the return address, with a pushed frame pointer; or DYNAMIC."""
    first: int
    """The index of its first record in the section."""
    records: int
    """How many it has."""
    constants: tuple[int, ...]
    """Those of its map, unsigned."""


class StackMaps:
    """The maps of a relocated section: its functions, and its records by their index.

    `positions` are the records' offsets in the section, `addresses` those they are about.

    Raises JITListenerError, with the offset, for what is cut off or not of version 3, and later, by
    what decodes a record, for a kind of location that is not known.
    """

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = bytes(content)
        self.functions: list[MappedFunction] = []
        self.positions: list[int] = []
        self.addresses: list[int] = []
        at = 0
        while at < len(content):
            at = self._scan(at)
        self._firsts = [function.first for function in self.functions]

    def __len__(self) -> int:
        return len(self.positions)

    def _scan(self, start: int) -> int:
        """Find the records of the map at an offset; gives the end of it."""
        content = self.content
        if len(content) - start < HEADER.size:
            raise _error(start, "a header that is cut off")
        version, reserved, zero, functions, constants, records = HEADER.unpack_from(content, start)
        if version != VERSION or reserved or zero:
            raise _error(start, f"a stack map of version {version}: 3 is read")
        table = start + HEADER.size
        values: int = table + functions * FUNCTION.size
        at: int = values + constants * CONSTANT.size
        if at > len(content):
            raise _error(
                start, f"{functions} functions and {constants} constants: {len(content):#x} bytes"
            )
        known = tuple(value for (value,) in CONSTANT.iter_unpack(content[values:at]))
        found = 0
        for index, (address, stack_size, count) in enumerate(
            FUNCTION.iter_unpack(content[table:values])
        ):
            if count > records - found:
                raise _error(
                    table + index * FUNCTION.size,
                    f"the function at {address:#x} has {count} records of {records - found} left",
                )
            self.functions.append(
                MappedFunction(address, stack_size, len(self.positions), count, known)
            )
            at = self._scan_records(address, count, at)
            found += count
        if found != records:
            raise _error(start, f"{records} records, of which {records - found} have no function")
        return at

    def _scan_records(self, address: int, count: int, at: int) -> int:
        """Find a function's records, the first at offset `at`; gives the end of the last."""
        content, end = self.content, len(self.content)
        found_position, found_address = self.positions.append, self.addresses.append
        # Mostly a record is of the shape of the one before: one unpacking shows that it is.
        unpack, size = _shape(expected := 0)
        for _ in range(count):
            if at + size > end:
                unpack, size = _shape(expected := 0)
                if at + size > end:
                    raise _record_error(at, address, "it is cut off")
            offset, locations, live_outs = unpack(content, at)
            if locations != expected:
                unpack, size = _shape(expected := locations)
                if at + size > end:
                    raise _record_error(at, address, f"its {locations} locations are cut off")
                offset, locations, live_outs = unpack(content, at)
            found_position(at)
            found_address(address + offset)
            at += size
            if live_outs:
                at += LIVE_OUT.size * live_outs + 3 & -8
                if at > end:
                    raise _record_error(
                        at, address, f"at offset {offset:#x}: its {live_outs} live-outs are cut off"
                    )
        return at

    def function(self, index: int) -> MappedFunction:
        """The function that has the record of an index."""
        return self.functions[bisect_right(self._firsts, index) - 1]

    def record(self, index: int) -> Record:
        """The record of an index, as it is in the section."""
        content, at = self.content, self.positions[index]
        identity, offset, flags, count = RECORD.unpack_from(content, at)
        place = at + RECORD.size
        end = place + count * LOCATION.size
        try:
            locations = [
                _location((_KINDS[kind, zero, reserved], size, register, value))
                for kind, zero, size, register, reserved, value in LOCATION.iter_unpack(
                    content[place:end]
                )
            ]
        except KeyError as error:
            kind, *zeros = error.args[0]
            raise _record_error(
                place,
                self.function(index).address,
                f"at offset {offset:#x}: a location of unknown kind {kind}, {zeros} for zeros",
            ) from None
        place = (end + 7 & -8) + LIVE_OUTS.size
        (live_outs,) = _SHORT.unpack_from(content, place - 2)
        found = LIVE_OUT.iter_unpack(content[place : place + live_outs * LIVE_OUT.size])
        live = tuple(LiveOut(register, size) for register, _, size in found)
        return Record(identity, offset, flags, tuple(locations), live)

    def ids(self) -> list[int]:
        """The ids of the records, unsigned."""
        return [self.id(index) for index in range(len(self))]

    def id(self, index: int) -> int:
        """The id of the record of an index, unsigned."""
        (found,) = CONSTANT.unpack_from(self.content, self.positions[index])
        return cast(int, found)

    def records(self) -> Iterator[tuple[MappedFunction, Record]]:
        """All records with their functions, in the order of the section."""
        for function in self.functions:
            for index in range(function.first, function.first + function.records):
                yield function, self.record(index)


_KINDS = {(kind.value, 0, 0): kind for kind in LocationKind}  # with the fields that must be 0
# NamedTuple's own constructor runs Python code for each; this does not.
_location = cast(Callable[[Any], Location], partial(tuple.__new__, Location))
_SHORT = Struct("<H")


@cache
def _shape(locations: int) -> tuple[Callable[[bytes, int], tuple[int, int, int]], int]:
    """Of a record with so many locations and no live-outs: what unpacks it, and its size.

    Unpacked are the offset and the numbers of locations and live-outs.
    """
    pad = locations * LOCATION.size % 8
    form = Struct(f"<8xI2xH{locations * LOCATION.size + pad}x2xH4x")
    return cast(Callable[[bytes, int], tuple[int, int, int]], form.unpack_from), form.size


def _error(at: int, what: str) -> JITListenerError:
    return JITListenerError(f".llvm_stackmaps, offset {at:#x}: {what}")


def _record_error(at: int, function: int, what: str) -> JITListenerError:
    return _error(at, f"a record of the function at {function:#x}: {what}")
