"""Patchpoints: call sites that are rewritten while threads run them.

For inline caches, switches that cost nothing when off, code that is replaced by a better one. A
patchpoint is so many bytes of code of which LLVM has recorded where they begin (`emit.patchpoint`).
`Patchpoints` puts into each a single instruction of five bytes that lies in one aligned word of
eight, and from then on changes it by one store: whoever runs it sees the old one or the new one.

What a patchpoint is filled with at first does not lie so. It is arranged once, when the object is
announced, before anybody can run it.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from mmap import PAGESIZE, PROT_EXEC, PROT_READ, PROT_WRITE

from perfmap.memory import map_free, mappings

from ..errors import JITListenerError
from ..events import Function, JITEventListener, LoadedObject
from ..objectfile import EM_X86_64
from ..order import in_order
from .relocated import RelocatedObject
from .safepoint import STACKMAPS, ObjectSafepoints, Safepoint

__all__ = ["Patchpoint", "Patchpoints"]

CALL, JUMP = 0xE8, 0xE9
INSTRUCTION = 5
WORD = 8
# Intel's manual, volume 2B, NOP: the recommended forms, by their length.
NOPS = (
    b"",
    b"\x90",
    b"\x66\x90",
    b"\x0f\x1f\x00",
    b"\x0f\x1f\x40\x00",
    b"\x0f\x1f\x44\x00\x00",
    b"\x66\x0f\x1f\x44\x00\x00",
    b"\x0f\x1f\x80\x00\x00\x00\x00",
    b"\x0f\x1f\x84\x00\x00\x00\x00\x00",
)
# What LLVM emits, X86MCInstLower.cpp: LowerPATCHPOINT and emitNop.
_FILLED = re.compile(
    rb"(?:\x49\xbb(?P<target>.{8})\x41\xff\xd3)?"
    rb"(?:[\x66\x2e]*(?:\x90|\x0f\x1f(?:\x00|\x40.|\x44..|\x80.{4}|\x84.{5})))*",
    re.DOTALL,
)
_LONGEST = 64
"""More bytes of a patchpoint than these are left as they are."""

STUB = b"\xff\x25\x00\x00\x00\x00"  # jmp *(%rip), and the target
STUB_SIZE = 16
_REACH = (1 << 31) - (1 << 16)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class Patchpoint:
    """A place in loaded code that calls a function, jumps somewhere, or does nothing.

    What changes it can be called from any thread, at any time; it takes tens of microseconds. It
    raises JITListenerError, and changes nothing, if the code has been freed, or if the place cannot
    be changed by one store: of fewer than nine bytes not all can.
    """

    def __init__(self, safepoint: Safepoint, end: int, stubs: _Stubs) -> None:
        self.id = safepoint.id
        self.address = safepoint.address
        self.function: Function | None = safepoint.function
        """The function it is in; None if that has no symbol."""
        self.target: int | None = None
        """What it calls or jumps to; None if it does nothing."""
        self.freed = False
        """Whether the code has been freed."""
        self._place = safepoint.place
        self._stubs = stubs
        start = safepoint.address
        at = start + WORD * (start % WORD > WORD - INSTRUCTION) & -WORD
        self._at = max(start, at)
        """Where the instruction begins, that is in one word as a whole."""
        self._problem = ""
        code = ctypes.string_at(start, end - start)
        filled = _FILLED.match(code)
        size = filled.end() if filled else 0
        if self._at + INSTRUCTION > start + size:
            self._problem = (
                f"no {INSTRUCTION} of its {size} bytes lie in one aligned word: give it 9 or more"
            )
            return
        if filled and filled["target"]:
            self.target = int.from_bytes(filled["target"], "little")
        front = self._at - start
        arranged = NOPS[front] + self._instruction(CALL, self.target)
        left = size - len(arranged)
        arranged += b"".join(NOPS[min(left - at, 8)] for at in range(0, left, 8))
        if arranged != code[:size]:
            with _writable(start, size):
                ctypes.memmove(start, arranged, size)

    def __repr__(self) -> str:
        return f"<Patchpoint {self.id} at {self.address:#x}, {self._place}>"

    def call(self, target: int) -> None:
        """From now on call the function at the address `target`, with the arguments given."""
        self._patch(CALL, target)

    def jump(self, target: int) -> None:
        """From now on go on at the address `target`."""
        self._patch(JUMP, target)

    def skip(self) -> None:
        """From now on do nothing."""
        self._patch(CALL, None)

    def _patch(self, opcode: int, target: int | None) -> None:
        # Code images copy pages of code and put the copy in their place when they hear of code.
        with in_order():
            if self.freed:
                raise JITListenerError(f"{self!r}: its code has been freed")
            if self._problem:
                raise JITListenerError(f"{self!r}: {self._problem}")
            instruction = self._instruction(opcode, target)
            word = self._at & -WORD
            content = bytearray(ctypes.string_at(word, WORD))
            content[self._at - word : self._at - word + INSTRUCTION] = instruction
            with _writable(word, WORD):
                ctypes.c_uint64.from_address(word).value = int.from_bytes(content, "little")
            self.target = target

    def _instruction(self, opcode: int, target: int | None) -> bytes:
        if target is None:
            return NOPS[INSTRUCTION]
        end = self._at + INSTRUCTION
        if not -(1 << 31) <= target - end < 1 << 31:
            target = self._stubs.stub(end, target)
        return bytes((opcode,)) + (target - end).to_bytes(4, "little", signed=True)


class Patchpoints(JITEventListener):
    """The patchpoints of the loaded objects, on x86-64.

    Attach it before the code runs: it arranges the bytes of a site that no thread may be running.
    A site whose patchpoint has a target calls that, others do nothing, until they are changed.

    An object for another machine is reported by a JITListenerError, as one that is malformed.
    """

    def __init__(self) -> None:
        self._sites: dict[int, list[Patchpoint]] = {}
        """By the object's key, in the order of the table."""
        self._stubs = _Stubs()

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        if not any(section.name == STACKMAPS for section in obj.sections):
            return
        safepoints = ObjectSafepoints(RelocatedObject(obj))
        if safepoints.machine != EM_X86_64:
            raise JITListenerError(
                f"{obj!r}: code of machine {safepoints.machine} cannot be patched, only x86-64's"
            )
        starts = sorted(set(safepoints.maps.addresses))
        ends = dict(pairwise(starts))
        found = self._sites[obj.key] = []
        for safepoint in safepoints:
            if safepoint.kind == "patchpoint" and safepoint.function:
                start, function = safepoint.address, safepoint.function
                end = min(
                    start + _LONGEST,
                    function.address + function.size,
                    ends.get(start, start + _LONGEST),
                )
                found.append(Patchpoint(safepoint, end, self._stubs))

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        for site in self._sites.pop(obj.key, ()):
            site.freed = True

    def __iter__(self) -> Iterator[Patchpoint]:
        """All of them, by object in the order of loading."""
        for sites in list(self._sites.values()):
            yield from sites

    def by_id(self, id: int) -> list[Patchpoint]:
        """Those with an id, which several may have."""
        return [site for site in self if site.id == id]

    def at(self, address: int) -> Patchpoint | None:
        """The one that begins at an address; None if there is none."""
        return next((site for site in self if site.address == address), None)


class _Stubs:
    """Jumps to far targets, near the code that needs them. They are never freed or changed, for
    threads may be anywhere."""

    def __init__(self) -> None:
        self._made: dict[int, list[int]] = {}
        """Stubs by target."""
        self._free: list[int] = []
        """Room for more."""

    def stub(self, near: int, target: int) -> int:
        """The address of a jump to `target` that can be reached from `near`."""
        for stub in self._made.get(target, ()):
            if abs(stub - near) < _REACH:
                return stub
        places = (place for place in self._free if abs(place - near) < _REACH)
        place = next(places, None)
        if place is None:
            page = _page_near(near)
            self._free += range(page, page + PAGESIZE, STUB_SIZE)
            place = page
        self._free.remove(place)
        with _writable(place, STUB_SIZE):
            ctypes.memmove(place, STUB + target.to_bytes(8, "little"), len(STUB) + 8)
        self._made.setdefault(target, []).append(place)
        return place


def _page_near(address: int) -> int:
    """A new page of memory, as near to `address` as there is room."""
    edges = [PAGESIZE * 16]
    for mapping in mappings():
        edges += mapping[:2]
    gaps = [g for g in zip(edges[::2], edges[1::2], strict=False) if g[1] - g[0] >= PAGESIZE]
    places = [end - PAGESIZE if end <= address else start for start, end in gaps]
    for place in sorted(places, key=lambda place: abs(place - address)):
        if abs(place - address) >= _REACH:
            break
        if map_free(place, PAGESIZE, PROT_READ | PROT_EXEC):
            return place
    raise JITListenerError(
        f"no page of memory is free within two gigabytes of the code at {address:#x}: call a"
        " function that is nearer"
    )


@contextmanager
def _writable(address: int, size: int) -> Iterator[None]:
    """The code there can be written, and run, meanwhile."""
    start = address & -PAGESIZE
    size = (address + size + PAGESIZE - 1 & -PAGESIZE) - start
    _protect(start, size, PROT_READ | PROT_WRITE | PROT_EXEC)
    try:
        yield
    finally:
        _protect(start, size, PROT_READ | PROT_EXEC)


def _protect(start: int, size: int, protection: int) -> None:
    if _libc.mprotect(start, size, protection):
        raise JITListenerError(
            f"code at {start:#x} cannot be made writable: {os.strerror(ctypes.get_errno())};"
            " the system may forbid memory that is writable and executable"
        )
