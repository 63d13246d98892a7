"""The stack of JIT'd code, frame by frame, from a call that is a safepoint: the readable walker.

Code that is stopped at a safepoint has called something, and the word that holds the return address
of that call is an anchor: all frames that led there follow from it. Where Python was called and has
called JIT'd code again, the stack is in parts, with an anchor each.

A frame at a call that is not a safepoint has unknown roots, so that is an error. A part ends with
the first return address that is in no loaded code: whoever has called into it.

`nativewalk` does the same fast, and is tested against this one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import JITListenerError
from .framerule import SP
from .listener import Safepoints
from .safepoint import Safepoint
from .statepoint import Slot

__all__ = ["Anchor", "Frame", "LiveRoot", "read_word", "walk", "write_word"]

_word = ctypes.c_uint64.from_address
WORD = 8


class Anchor(NamedTuple):
    """Where a thread has left JIT'd code."""

    slot: int
    """The address of the word that holds the return address of the call."""
    fp: int
    """The frame pointer at the call."""


class LiveRoot(NamedTuple):
    """A root in a frame: the addresses of its slots, 0 for a constant."""

    base: int
    derived: int


class Frame(NamedTuple):
    """A frame of a function that is stopped at a safepoint."""

    safepoint: Safepoint
    sp: int
    """The stack pointer at the call."""
    fp: int
    """The frame pointer at the call; where the function keeps none, whatever rbp holds."""

    @property
    def roots(self) -> list[LiveRoot]:
        """Where its roots are, in the order of the safepoint's.

        Raises JITListenerError where the safepoint's locations are not understood.
        """
        return [
            LiveRoot(self._address(base), self._address(derived))
            for base, derived in self.safepoint.roots
        ]

    def _address(self, slot: Slot | None) -> int:
        if slot is None:
            return 0
        if slot.register == SP:
            return self.sp + slot.offset
        if self.safepoint.frame_rule.size is not None:
            raise JITListenerError(
                f"{self.safepoint!r}: a root relative to rbp, which is not its frame pointer"
            )
        return self.fp + slot.offset

    @property
    def caller(self) -> Anchor:
        """Where its return address is, and its caller's frame pointer.

        Raises JITListenerError where that cannot be found.
        """
        size, saved_fp = self.safepoint.frame_rule
        slot = self.fp + WORD if size is None else self.sp + size
        if slot < self.sp:
            raise JITListenerError(f"{self.safepoint!r}: a frame pointer {self.fp:#x} below it")
        return Anchor(slot, read_word(slot + saved_fp) if saved_fp else self.fp)


def read_word(address: int) -> int:
    """The 8 bytes at an address of this process, as an unsigned number."""
    return _word(address).value


def write_word(address: int, value: int) -> None:
    """Write 8 bytes at an address of this process."""
    _word(address).value = value


def walk(safepoints: Safepoints, anchors: Iterable[Anchor]) -> Iterator[Frame]:
    """The frames of a thread, from the innermost one out; `anchors` are its parts in that order.

    The thread must stay where it is. Raises JITListenerError at a call in loaded code that is not a
    safepoint, at a frame whose caller cannot be found, and where the anchors are not of one stack.
    """
    end = 0
    for slot, fp in anchors:
        if slot < end:
            raise JITListenerError(f"an anchor at {slot:#x} inside the part that ends at {end:#x}")
        while True:
            return_address = read_word(slot)
            safepoint = safepoints.lookup(return_address)
            if safepoint is None:
                function = safepoints.function_at(return_address - 1)
                if function is not None:
                    raise JITListenerError(
                        f"the frame of {function}, which returns to {return_address:#x}: its call"
                        " is not a safepoint"
                    )
                break
            frame = Frame(safepoint, slot + WORD, fp)
            yield frame
            slot, fp = frame.caller
        end = slot
