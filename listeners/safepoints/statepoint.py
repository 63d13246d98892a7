"""What the locations of a statepoint's record mean: its roots, and what it is to resume with.

For collectors, so nothing is guessed: what cannot be a root is an error, because a root that is
skipped is an object lost. The locations, in this order:

    calling convention, flags, number of deopt values     constants
    the deopt values
    a (base, derived) pair for each live reference        in memory, or a constant: null
    the allocas of "gc-live"                              direct

How many pairs there are is not recorded: the allocas are the direct locations at the end, and what
is between is pairs. A pair of k pointers' size holds k pointers. How large an alloca is, is not
recorded: it holds one.

The format: https://llvm.org/docs/Statepoints.html, "Stack Map Format"; where allocas are: LLVM's
lib/CodeGen/SelectionDAG/StatepointLowering.cpp.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import JITListenerError
from .registers import frame_registers, register_name
from .stackmap import Location, LocationKind, Record

__all__ = ["Root", "Slot", "Statepoint", "decode_statepoint", "looks_like_statepoint", "resolved"]

POINTER = 8
FLAGS = 3  # all there are: StatepointFlags in llvm/IR/Statepoint.h
META = 3
_PLACES = {
    LocationKind.REGISTER: "in a register",
    LocationKind.DIRECT: "that is the address of an alloca",
}
_CONSTANTS = (LocationKind.CONSTANT, LocationKind.CONSTANT_INDEX)
_SIGN = 1 << 63


class Slot(NamedTuple):
    """A place in the frame that holds a reference."""

    register: int
    """The DWARF number of the stack or the frame pointer."""
    offset: int
    """From what that register holds at the call, in bytes."""


class Root(NamedTuple):
    """A reference that is live across the call, and the object it points into.

    A collector moves the object that `base` points to, and adds to `derived` what it has added to
    `base`. The same slot twice, where the reference is to the object's start. None stands for a
    constant, which points to nothing that moves.
    """

    base: Slot | None
    derived: Slot | None


class Statepoint(NamedTuple):
    """A statepoint's record, decoded."""

    calling_convention: int
    """LLVM's number of it: 0 is C's."""
    flags: int
    """1: a GC transition; 2: deopt values are needed at the call only."""
    deopt: tuple[Location, ...]
    """The values of its deopt bundle; constants are in place."""
    pairs: tuple[tuple[Location, Location], ...]
    """Base and derived location, in the order of the record; pairs may be there twice."""
    allocas: tuple[Location, ...]
    """Those of its "gc-live" bundle: each is a reference. LLVM does not record their size."""
    roots: tuple[Root, ...]
    """Every reference of `pairs` and `allocas`, once; a pair of constants is none."""


def resolved(location: Location, constants: tuple[int, ...]) -> Location:
    """The location with the constant that it gives the index of.

    Raises JITListenerError where there is no such constant.
    """
    if location.kind is not LocationKind.CONSTANT_INDEX:
        return location
    if not 0 <= location.offset < len(constants):
        raise JITListenerError(f"constant {location.offset} of {len(constants)}")
    value = constants[location.offset]
    value -= (value & _SIGN) << 1
    return Location(LocationKind.CONSTANT, location.size, 0, value)


def looks_like_statepoint(record: Record) -> bool:
    """Whether a record begins as those of statepoints do; those of others may, too."""
    meta = record.locations[:META]
    if len(meta) < META or any(
        location.kind is not LocationKind.CONSTANT or location.size != POINTER for location in meta
    ):
        return False
    convention, flags, count = (location.offset for location in meta)
    return convention >= 0 and 0 <= flags <= FLAGS and 0 <= count <= len(record.locations) - META


def decode_statepoint(record: Record, constants: tuple[int, ...], machine: int) -> Statepoint:
    """What a statepoint's record means, `constants` being those of its map.

    Raises JITListenerError, with the number of the location, for what no statepoint has: a root in
    a register, half a pair, a size that is no multiple of a pointer's.
    """
    if not looks_like_statepoint(record):
        raise JITListenerError("its locations are not those of a statepoint")
    calling_convention, flags, count = (location.offset for location in record.locations[:META])
    found = record.locations[META:]
    deopt = []
    for number, location in enumerate(found[:count], META + 1):
        try:
            deopt.append(resolved(location, constants))
        except JITListenerError as error:
            raise JITListenerError(f"location {number}: {error}") from None
    end = len(found)
    while end > count and found[end - 1].kind is LocationKind.DIRECT:
        end -= 1
    if (end - count) % 2:
        raise JITListenerError(f"{end - count} locations for pairs of base and derived pointer")
    pairs = tuple(zip(found[count:end:2], found[count + 1 : end : 2], strict=True))
    allocas = found[end:]

    usable = frame_registers(machine)
    roots: dict[Root, None] = {}
    number = META + count
    for base, derived in pairs:
        slots = []
        for location in (base, derived):
            number += 1
            slots.append(_slots(location, LocationKind.INDIRECT, usable, machine, number))
        if _is_constant(base):
            slots[0] = [None] * len(slots[1])
        elif _is_constant(derived):
            slots[1] = [None] * len(slots[0])
        if len(slots[0]) != len(slots[1]):
            raise JITListenerError(
                f"location {number}: {derived.size} bytes of pointers derived from {base.size}"
            )
        for root in map(Root._make, zip(*slots, strict=True)):
            if root != (None, None):
                roots[root] = None
    for location in allocas:
        number += 1
        if location.size != POINTER:
            raise JITListenerError(
                f"location {number}: the address of an alloca, {location.size} bytes"
            )
        (slot,) = _slots(location, LocationKind.DIRECT, usable, machine, number)
        roots[Root(slot, slot)] = None
    return Statepoint(calling_convention, flags, tuple(deopt), pairs, allocas, tuple(roots))


def _is_constant(location: Location) -> bool:
    return location.kind in _CONSTANTS


def _slots(
    location: Location, kind: LocationKind, usable: tuple[int, int], machine: int, number: int
) -> list[Slot | None]:
    """The slots of the pointers that a root's location of this kind holds."""
    if _is_constant(location):
        return [None]
    if location.kind is not kind:
        raise JITListenerError(f"location {number}: a root {_PLACES[location.kind]}")
    if not location.size or location.size % POINTER:
        raise JITListenerError(f"location {number}: {location.size} bytes of pointers")
    if location.register not in usable:
        raise JITListenerError(
            f"location {number}: a root relative to {register_name(machine, location.register)},"
            " which holds neither stack pointer nor frame pointer"
        )
    if location.offset % POINTER:
        raise JITListenerError(f"location {number}: a root at {location.offset:+}, not aligned")
    places = range(location.offset, location.offset + location.size, POINTER)
    return [Slot(location.register, offset) for offset in places]
