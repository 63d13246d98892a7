"""The walker that LLVM compiles: a thread's roots in a few nanoseconds a frame.

For collectors, in Python or in JIT'd code. It gives what `walk` gives, from a table of all loaded
statepoints that is packed for it. The table is changed while threads walk: a walk that is under way
sees what was there before or what is there now, and the memory it may still see is kept until no
walk is under way.

    table      i64 walks under way, ptr slots, ptr code
    slots      i64 shift, i64 mask, 16 bytes unused, entries: a hash table with linear probing
    entry      i64 return address, or 0: never used, 1: no longer; i64 frame size, or -1: by the
               frame pointer, -2: not understood; ptr roots; i32 2 * their number + 1 if relative
               to both pointers; i32 where the caller's frame pointer is, from the return address
    root       i32 base, i32 derived: offsets from the stack pointer; in the other form the two low
               bits tell: 0 from the stack pointer, 1 from the frame pointer, 2 a constant
    code       i64 number of ranges; i64 start, i64 end, by address
    anchor     i64 slot, i64 frame pointer, ptr next anchor further out, i64 where a walk has failed
"""

from __future__ import annotations

import ctypes
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from struct import Struct, pack
from struct import error as StructError
from typing import Any, cast

from ..errors import JITListenerError
from ..events import LoadedObject
from .framerule import FP
from .listener import Safepoints
from .native import compiled
from .safepoint import ObjectSafepoints
from .stackmap import LOCATION, RECORD
from .statepoint import Slot, looks_like_statepoint
from .walk import Anchor, LiveRoot, walk

__all__ = ["NativeWalker"]

ENTRY = Struct("<QqQii")
SLOTS = Struct("<QQ16x")
BY_FRAME_POINTER, NOT_UNDERSTOOD = -1, -2
FROM_SP, FROM_FP, CONSTANT = 0, 1, 2
SMALLEST = 8  # log2 of the number of slots

TEXT = Path(__file__).with_name("walker.ll").read_text()

_live_root = cast(Callable[[Any], LiveRoot], partial(tuple.__new__, LiveRoot))


class _Table(ctypes.Structure):
    _fields_ = (
        ("walks", ctypes.c_uint64),
        ("slots", ctypes.c_uint64),
        ("code", ctypes.c_uint64),
    )


class _Anchor(ctypes.Structure):
    _fields_ = (
        ("slot", ctypes.c_uint64),
        ("fp", ctypes.c_uint64),
        ("outer", ctypes.c_uint64),
        ("failed", ctypes.c_uint64),
    )


class _Functions:
    """What is compiled."""

    def __init__(self) -> None:
        self._engine = engine = compiled(TEXT)
        pointer, number = ctypes.c_void_p, ctypes.c_int64

        def function(name: str, result: Any, *parameters: Any) -> Any:
            return ctypes.CFUNCTYPE(result, *parameters)(engine.get_function_address(name))

        self.walk_address: int = engine.get_function_address("walk")
        self.walk = function("walk", number, pointer, pointer, pointer, number)
        self.find = function("find_entry", number, pointer, ctypes.c_uint64)
        self.idle = function("idle", number, pointer)
        self.insert = function("insert", number, pointer, pointer, number)
        self.remove = function("remove", None, pointer, pointer, number)


_functions = cache(_Functions)


class NativeWalker:
    """Walks stacks as `walk` does, compiled; it lives as long as the Safepoints.

    JIT'd code calls the function at `walk_address`:

        i64 walk(ptr table, ptr anchors, ptr out, i64 capacity)

    with `table_address`; the innermost anchor, { i64 slot, i64 frame pointer, ptr anchor further
    out or null, i64 }; and room for so many roots, { i64 base slot, i64 derived slot } each, 0 for
    a constant. It gives their number, of which none beyond `capacity` were written, or -1 where
    `walk` would raise: then the anchor's last word is the slot where that was.
    """

    def __init__(self, safepoints: Safepoints) -> None:
        self._safepoints = safepoints
        functions = _functions()
        self.walk_address = functions.walk_address
        self._functions = functions

        self._table = _Table()
        self.table_address = ctypes.addressof(self._table)
        self._slots: Any = None
        self._code = array("Q", (0,))
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        """Where each object has code, by its key."""
        self._entries: dict[int, tuple[bytes, Any]] = {}
        """Its entries and the memory of their roots."""
        self._count = self._used = 0
        """How many entries there are, and how many slots are not as new."""
        self._retired: list[Any] = []
        """Memory that walks which began before may still read."""
        self._replace_slots(0)
        self._replace_code(self._code)
        safepoints.watch(self)

    def roots(self, anchors: Sequence[Anchor]) -> list[LiveRoot]:
        """The roots of all frames of a thread, from the innermost one out, as `walk` has them.

        Raises JITListenerError as `walk` does.
        """
        if not anchors:
            return []
        chain = (_Anchor * len(anchors))()
        for index, (slot, fp) in enumerate(anchors):
            outer = ctypes.addressof(chain) + ctypes.sizeof(_Anchor) * (index + 1)
            chain[index] = _Anchor(slot, fp, outer if index + 1 < len(anchors) else 0, 0)
        capacity = 1024
        while True:
            out = (ctypes.c_uint64 * (2 * capacity))()
            count = self._functions.walk(self.table_address, chain, out, capacity)
            if count < 0:
                raise self._failure(anchors, chain[0].failed)
            if count <= capacity:
                words = memoryview(out).cast("B").cast("Q")[: 2 * count].tolist()
                return list(map(_live_root, zip(words[::2], words[1::2], strict=True)))
            capacity = count

    def knows(self, return_address: int) -> bool:
        """Whether the table has a statepoint with that return address."""
        return bool(self._functions.find(self.table_address, return_address))

    def _failure(self, anchors: Sequence[Anchor], slot: int) -> JITListenerError:
        try:
            for frame in walk(self._safepoints, anchors):
                _ = frame.roots
        except JITListenerError as error:
            return error
        return JITListenerError(f"the stack has changed at {slot:#x} while it was walked")

    # From the listener, one at a time

    def loaded(
        self, obj: LoadedObject, code: list[tuple[int, int]], found: ObjectSafepoints | None
    ) -> None:
        """For `Safepoints`: an object is loaded."""
        self._ranges[obj.key] = code
        if found:
            entries, roots = _packed(found)
            self._entries[obj.key] = entries, roots
            count = len(entries) // ENTRY.size
            self._count += count
            if 2 * (self._used + count) > self._capacity:
                self._replace_slots(self._count)
            else:
                self._used += self._functions.insert(self._table.slots, entries, count)
        changed = self._code[:]
        for place in code:
            at = _place(changed, place)
            changed[at:at] = array("Q", place)
            changed[0] += 1
        self._replace_code(changed)

    def freeing(self, obj: LoadedObject) -> None:
        """For `Safepoints`: an object is about to be freed."""
        changed = self._code[:]
        for place in self._ranges.pop(obj.key, ()):
            at = _place(changed, place)
            del changed[at : at + 2]
            changed[0] -= 1
        entries, roots = self._entries.pop(obj.key, (b"", None))
        if entries:
            count = len(entries) // ENTRY.size
            self._count -= count
            self._functions.remove(self._table.slots, entries, count)
            self._retired.append(roots)
        self._replace_code(changed)

    def _replace_slots(self, count: int) -> None:
        """A new hash table with all entries there are, which has room for `count` and as many."""
        bits = max(SMALLEST, (4 * count - 1).bit_length())
        self._capacity = 1 << bits
        slots = (ctypes.c_uint64 * ((SLOTS.size + ENTRY.size * self._capacity) // 8))()
        SLOTS.pack_into(slots, 0, 64 - bits, self._capacity - 1)
        self._used = 0
        for entries, _ in self._entries.values():
            self._used += self._functions.insert(slots, entries, len(entries) // ENTRY.size)
        self._retired.append(self._slots)
        self._slots = slots
        self._table.slots = ctypes.addressof(slots)

    def _replace_code(self, code: array[int]) -> None:
        self._retired.append(self._code)
        self._code = code
        self._table.code, _ = code.buffer_info()
        if not self._functions.idle(self.table_address):
            self._retired.clear()


def _place(code: array[int], place: tuple[int, int]) -> int:
    """Where a range is among the ranges of code, or belongs."""
    at = bisect_left(range(1, len(code), 2), place, key=lambda at: (code[at], code[at + 1]))
    return 1 + 2 * at


def _packed(safepoints: ObjectSafepoints) -> tuple[bytes, Any]:
    """The entries of an object's statepoints, and the memory their roots are in.

    Records are mostly of few shapes: each is decoded once.
    """
    maps = safepoints.maps
    content = maps.content
    shapes: dict[Any, tuple[int, int, int, int] | None] = {}
    roots = bytearray()
    rows: list[tuple[int, tuple[int, int, int, int]]] = []
    for mapped in maps.functions:
        try:
            rules = safepoints.function_rules(mapped.address)
        except JITListenerError:
            rules = None
        for index in range(mapped.first, mapped.first + mapped.records):
            at = maps.positions[index]
            locations = content[at + 14] + content[at + 15] * 256
            end = at + RECORD.size + locations * LOCATION.size
            row = rules.row(maps.addresses[index] - mapped.address) if rules else None
            key = content[at + RECORD.size : end], row, len(mapped.constants)
            try:
                shape = shapes[key]
            except KeyError:
                shape = shapes[key] = _shape(safepoints, index, roots)
            if shape:
                rows.append((maps.addresses[index], shape))
    memory = (ctypes.c_char * max(len(roots), 8)).from_buffer(roots.ljust(8, b"\0"))
    start = ctypes.addressof(memory)
    return b"".join(
        [
            ENTRY.pack(address, size, start + offset, form, saved)
            for address, (size, offset, form, saved) in rows
        ]
    ), memory


def _shape(
    safepoints: ObjectSafepoints, index: int, roots: bytearray
) -> tuple[int, int, int, int] | None:
    """Frame size, offset of the roots, which are added, their number and form, and the place of the
    caller's frame pointer; None if the record is no statepoint's."""
    offset = len(roots)
    try:
        if not looks_like_statepoint(safepoints.record(index)):
            return None
        safepoint = safepoints[index]
        size, saved = safepoint.frame_rule
        slots = [slot for root in safepoint.roots for slot in root]
        by_fp = any(slot and slot.register == FP for slot in slots)
        if by_fp and size is not None:
            return NOT_UNDERSTOOD, offset, 0, 0  # rbp is not its frame pointer
        words = pack(f"<{len(slots)}i", *map(_word, slots))
    except (JITListenerError, StructError):
        return NOT_UNDERSTOOD, offset, 0, 0
    roots += words
    tagged = by_fp or None in slots
    return BY_FRAME_POINTER if size is None else size, offset, len(slots) + tagged, saved


def _word(slot: Slot | None) -> int:
    if slot is None:
        return CONSTANT
    return slot.offset + (FROM_FP if slot.register == FP else FROM_SP)
