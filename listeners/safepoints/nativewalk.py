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
from collections.abc import Callable, Sequence
from functools import cache, partial
from struct import Struct, pack
from typing import Any, cast

from ..errors import JITListenerError
from ..events import LoadedObject
from .framerule import FP
from .listener import Safepoints
from .native import compiled
from .safepoint import ObjectSafepoints
from .stackmap import LOCATION, RECORD
from .statepoint import Root, Slot, looks_like_statepoint
from .walk import Anchor, LiveRoot, walk

__all__ = ["NativeWalker"]

ENTRY = Struct("<QqQii")
SLOTS = Struct("<QQ16x")
ROOT = Struct("<ii")
BY_FRAME_POINTER, NOT_UNDERSTOOD = -1, -2
FROM_SP, FROM_FP, CONSTANT = 0, 1, 2
MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: Knuth, TAOCP 3, 6.4
SMALLEST = 8  # log2 of the number of slots

TEXT = f"""
%entry = type {{ i64, i64, ptr, i32, i32 }}

define internal ptr @find(ptr %slots, i64 %address) alwaysinline {{
  %shift = load i64, ptr %slots
  %mask.at = getelementptr i64, ptr %slots, i64 1
  %mask = load i64, ptr %mask.at
  %entries = getelementptr i64, ptr %slots, i64 4
  %product = mul i64 %address, {MULTIPLIER - (1 << 64)}
  %first = lshr i64 %product, %shift
  br label %probe
probe:
  %index = phi i64 [ %first, %0 ], [ %next, %other ]
  %entry = getelementptr %entry, ptr %entries, i64 %index
  %key = load atomic i64, ptr %entry acquire, align 8
  %hit = icmp eq i64 %key, %address
  br i1 %hit, label %found, label %missed
missed:
  %empty = icmp eq i64 %key, 0
  br i1 %empty, label %nowhere, label %other
other:
  %following = add i64 %index, 1
  %next = and i64 %following, %mask
  br label %probe
found:
  ret ptr %entry
nowhere:
  ret ptr null
}}

define i64 @find_entry(ptr %table, i64 %address) {{
  %old = atomicrmw add ptr %table, i64 1 seq_cst
  %slots.at = getelementptr i64, ptr %table, i64 1
  %slots = load atomic ptr, ptr %slots.at seq_cst, align 8
  %entry = call ptr @find(ptr %slots, i64 %address)
  %left = atomicrmw sub ptr %table, i64 1 seq_cst
  %found = ptrtoint ptr %entry to i64
  ret i64 %found
}}

define i64 @idle(ptr %table) {{
  fence seq_cst
  %walks = load atomic i64, ptr %table seq_cst, align 8
  ret i64 %walks
}}

; Puts entries into slots that have room; gives how many were never used before.
define i64 @insert(ptr %slots, ptr %new, i64 %count) {{
  %shift = load i64, ptr %slots
  %mask.at = getelementptr i64, ptr %slots, i64 1
  %mask = load i64, ptr %mask.at
  %entries = getelementptr i64, ptr %slots, i64 4
  br label %each
each:
  %number = phi i64 [ 0, %0 ], [ %number.next, %put ]
  %fresh = phi i64 [ 0, %0 ], [ %fresh.next, %put ]
  %done = icmp eq i64 %number, %count
  br i1 %done, label %end, label %hash
hash:
  %from = getelementptr %entry, ptr %new, i64 %number
  %address = load i64, ptr %from
  %product = mul i64 %address, {MULTIPLIER - (1 << 64)}
  %first = lshr i64 %product, %shift
  br label %probe
probe:
  %index = phi i64 [ %first, %hash ], [ %next, %other ]
  %to = getelementptr %entry, ptr %entries, i64 %index
  %key = load i64, ptr %to
  %free = icmp ule i64 %key, 1
  br i1 %free, label %put, label %other
other:
  %following = add i64 %index, 1
  %next = and i64 %following, %mask
  br label %probe
put:
  %to.rest = getelementptr i64, ptr %to, i64 1
  %from.rest = getelementptr i64, ptr %from, i64 1
  call void @llvm.memcpy.p0.p0.i64(ptr %to.rest, ptr %from.rest, i64 24, i1 false)
  store atomic i64 %address, ptr %to release, align 8
  %unused = icmp eq i64 %key, 0
  %one = zext i1 %unused to i64
  %fresh.next = add i64 %fresh, %one
  %number.next = add i64 %number, 1
  br label %each
end:
  ret i64 %fresh
}}

define void @remove(ptr %slots, ptr %old, i64 %count) {{
  br label %each
each:
  %number = phi i64 [ 0, %0 ], [ %number.next, %next ]
  %done = icmp eq i64 %number, %count
  br i1 %done, label %end, label %one
one:
  %from = getelementptr %entry, ptr %old, i64 %number
  %address = load i64, ptr %from
  %entry = call ptr @find(ptr %slots, i64 %address)
  %gone = icmp eq ptr %entry, null
  br i1 %gone, label %next, label %bury
bury:
  store atomic i64 1, ptr %entry release, align 8
  br label %next
next:
  %number.next = add i64 %number, 1
  br label %each
end:
  ret void
}}

; Whether a return address is in loaded code: the last range that starts before it ends behind.
define internal i1 @is_code(ptr %table, i64 %address) {{
  %code.at = getelementptr i64, ptr %table, i64 2
  %code = load atomic ptr, ptr %code.at seq_cst, align 8
  %count = load i64, ptr %code
  %ranges = getelementptr i64, ptr %code, i64 1
  br label %halve
halve:
  %low = phi i64 [ 0, %0 ], [ %low.next, %compare ]
  %high = phi i64 [ %count, %0 ], [ %high.next, %compare ]
  %more = icmp ult i64 %low, %high
  br i1 %more, label %compare, label %last
compare:
  %sum = add i64 %low, %high
  %middle = lshr i64 %sum, 1
  %middle.at = mul i64 %middle, 2
  %start.at = getelementptr i64, ptr %ranges, i64 %middle.at
  %start = load i64, ptr %start.at
  %before = icmp ult i64 %start, %address
  %above = add i64 %middle, 1
  %low.next = select i1 %before, i64 %above, i64 %low
  %high.next = select i1 %before, i64 %high, i64 %middle
  br label %halve
last:
  %none = icmp eq i64 %low, 0
  br i1 %none, label %outside, label %inside
inside:
  %behind = mul i64 %low, 2
  %end.index = sub i64 %behind, 1
  %end.at = getelementptr i64, ptr %ranges, i64 %end.index
  %end = load i64, ptr %end.at
  %within = icmp ule i64 %address, %end
  ret i1 %within
outside:
  ret i1 false
}}

define i64 @walk(ptr %table, ptr %anchors, ptr %out, i64 %capacity) {{
enter:
  %old = atomicrmw add ptr %table, i64 1 seq_cst
  %slots.at = getelementptr i64, ptr %table, i64 1
  %slots = load atomic ptr, ptr %slots.at seq_cst, align 8
  br label %part

part:
  %anchor = phi ptr [ %anchors, %enter ], [ %outer, %outwards ]
  %part.total = phi i64 [ 0, %enter ], [ %total, %outwards ]
  %inner.end = phi i64 [ 0, %enter ], [ %slot, %outwards ]
  %part.slot = load i64, ptr %anchor
  %fp.at = getelementptr i64, ptr %anchor, i64 1
  %part.fp = load i64, ptr %fp.at
  %ordered = icmp uge i64 %part.slot, %inner.end
  br i1 %ordered, label %frame, label %disorder

frame:
  %slot = phi i64 [ %part.slot, %part ], [ %caller.slot, %step ]
  %fp = phi i64 [ %part.fp, %part ], [ %caller.fp, %step ]
  %total = phi i64 [ %part.total, %part ], [ %new.total, %step ]
  %slot.ptr = inttoptr i64 %slot to ptr
  %return = load i64, ptr %slot.ptr
  %entry = call ptr @find(ptr %slots, i64 %return)
  %unknown = icmp eq ptr %entry, null
  br i1 %unknown, label %leave, label %found

found:
  %sp = add i64 %slot, 8
  %size.at = getelementptr %entry, ptr %entry, i64 0, i32 1
  %size = load i64, ptr %size.at
  %roots.at = getelementptr %entry, ptr %entry, i64 0, i32 2
  %roots = load ptr, ptr %roots.at
  %shape.at = getelementptr %entry, ptr %entry, i64 0, i32 3
  %shape = load i32, ptr %shape.at
  %saved.at = getelementptr %entry, ptr %entry, i64 0, i32 4
  %saved = load i32, ptr %saved.at
  %number = lshr i32 %shape, 1
  %count = zext i32 %number to i64
  %new.total = add i64 %total, %count
  %no.room = icmp ugt i64 %new.total, %capacity
  %no.roots = icmp eq i64 %count, 0
  %skip = or i1 %no.room, %no.roots
  br i1 %skip, label %move, label %write
write:
  %at = mul i64 %total, 2
  %target = getelementptr i64, ptr %out, i64 %at
  %form = trunc i32 %shape to i1
  br i1 %form, label %tagged, label %plain

plain:
  %p.index = phi i64 [ 0, %write ], [ %p.next, %plain ]
  %p.at = getelementptr i64, ptr %roots, i64 %p.index
  %p.pair = load i64, ptr %p.at
  %p.low = trunc i64 %p.pair to i32
  %p.base = sext i32 %p.low to i64
  %p.derived = ashr i64 %p.pair, 32
  %p.base.address = add i64 %sp, %p.base
  %p.derived.address = add i64 %sp, %p.derived
  %p.double = mul i64 %p.index, 2
  %p.to = getelementptr i64, ptr %target, i64 %p.double
  store i64 %p.base.address, ptr %p.to
  %p.to.derived = getelementptr i64, ptr %p.to, i64 1
  store i64 %p.derived.address, ptr %p.to.derived
  %p.next = add i64 %p.index, 1
  %p.more = icmp ult i64 %p.next, %count
  br i1 %p.more, label %plain, label %move, !llvm.loop !0

tagged:
  %t.index = phi i64 [ 0, %write ], [ %t.next, %tagged ]
  %twice = mul i64 %count, 2
  %t.at = getelementptr i32, ptr %roots, i64 %t.index
  %t.value = load i32, ptr %t.at
  %t.wide = sext i32 %t.value to i64
  %t.tag = and i64 %t.wide, 3
  %t.offset = and i64 %t.wide, -4
  %t.is.sp = icmp eq i64 %t.tag, {FROM_SP}
  %t.from = select i1 %t.is.sp, i64 %sp, i64 %fp
  %t.sum = add i64 %t.from, %t.offset
  %t.is.null = icmp eq i64 %t.tag, {CONSTANT}
  %t.address = select i1 %t.is.null, i64 0, i64 %t.sum
  %t.to = getelementptr i64, ptr %target, i64 %t.index
  store i64 %t.address, ptr %t.to
  %t.next = add i64 %t.index, 1
  %t.more = icmp ult i64 %t.next, %twice
  br i1 %t.more, label %tagged, label %move

move:
  %fixed = icmp sge i64 %size, 0
  br i1 %fixed, label %by.size, label %other
by.size:
  %sized = add i64 %sp, %size
  br label %caller
other:
  %by.fp = icmp eq i64 %size, {BY_FRAME_POINTER}
  %pointed = add i64 %fp, 8
  %upwards = icmp uge i64 %pointed, %sp
  %followed = and i1 %by.fp, %upwards
  br i1 %followed, label %caller, label %stuck
caller:
  %caller.slot = phi i64 [ %sized, %by.size ], [ %pointed, %other ]
  %kept = icmp eq i32 %saved, 0
  br i1 %kept, label %step, label %restore
restore:
  %saved.wide = sext i32 %saved to i64
  %saved.place = add i64 %caller.slot, %saved.wide
  %saved.ptr = inttoptr i64 %saved.place to ptr
  %restored = load i64, ptr %saved.ptr
  br label %step
step:
  %caller.fp = phi i64 [ %fp, %caller ], [ %restored, %restore ]
  br label %frame

leave:
  %in.code = call i1 @is_code(ptr %table, i64 %return)
  br i1 %in.code, label %stuck, label %outwards
outwards:
  %outer.at = getelementptr i64, ptr %anchor, i64 2
  %outer = load ptr, ptr %outer.at
  %last = icmp eq ptr %outer, null
  br i1 %last, label %finish, label %part
finish:
  %left = atomicrmw sub ptr %table, i64 1 seq_cst
  ret i64 %total

disorder:
  br label %stuck
stuck:
  %stuck.slot = phi i64 [ %slot, %other ], [ %slot, %leave ], [ %part.slot, %disorder ]
  %failed.at = getelementptr i64, ptr %anchors, i64 3
  store i64 %stuck.slot, ptr %failed.at
  %left.too = atomicrmw sub ptr %table, i64 1 seq_cst
  ret i64 -1
}}

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
!0 = distinct !{{!0, !1, !2}}
!1 = !{{!"llvm.loop.vectorize.enable", i1 false}}
!2 = !{{!"llvm.loop.unroll.disable"}}
"""


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
        self._code: Any = None
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        """Where each object has code, by its key."""
        self._entries: dict[int, tuple[bytes, Any]] = {}
        """Its entries and the memory of their roots."""
        self._count = self._used = 0
        """How many entries there are, and how many slots are not as new."""
        self._retired: list[Any] = []
        """Memory that walks which began before may still read."""
        self._replace_slots(0)
        self._replace_code()
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
        self._replace_code()

    def freeing(self, obj: LoadedObject) -> None:
        """For `Safepoints`: an object is about to be freed."""
        self._ranges.pop(obj.key, None)
        entries, roots = self._entries.pop(obj.key, (b"", None))
        if entries:
            count = len(entries) // ENTRY.size
            self._count -= count
            self._functions.remove(self._table.slots, entries, count)
            self._retired.append(roots)
        self._replace_code()

    def _replace_slots(self, count: int) -> None:
        """A new hash table for that many entries and as many more, with all there are."""
        bits = max(SMALLEST, (4 * count - 1).bit_length())
        self._capacity = 1 << bits
        slots = (ctypes.c_uint64 * (SLOTS.size + ENTRY.size * self._capacity // 8))()
        SLOTS.pack_into(slots, 0, 64 - bits, self._capacity - 1)
        self._used = 0
        for entries, _ in self._entries.values():
            self._used += self._functions.insert(slots, entries, len(entries) // ENTRY.size)
        self._retired.append(self._slots)
        self._slots = slots
        self._table.slots = ctypes.addressof(slots)

    def _replace_code(self) -> None:
        ranges = sorted(place for places in self._ranges.values() for place in places)
        words = [word for place in ranges for word in place]
        code = (ctypes.c_uint64 * (len(words) + 1))(len(ranges), *words)
        self._retired.append(self._code)
        self._code = code
        self._table.code = ctypes.addressof(code)
        if not self._functions.idle(self.table_address):
            self._retired.clear()


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
        found = safepoint.roots
        tagged = any(slot is None or slot.register == FP for root in found for slot in root)
        if size is not None and any(
            slot and slot.register == FP for root in found for slot in root
        ):
            raise JITListenerError("a root relative to rbp, which is not its frame pointer")
        for root in found:
            roots += _root(root)
    except JITListenerError:
        return NOT_UNDERSTOOD, offset, 0, 0
    return (
        BY_FRAME_POINTER if size is None else size,
        offset,
        2 * len(found) + tagged,
        saved,
    )


def _root(root: Root) -> bytes:
    return pack("<ii", *map(_word, root))


def _word(slot: Slot | None) -> int:
    if slot is None:
        return CONSTANT
    return slot.offset + (FROM_FP if slot.register == FP else FROM_SP)
