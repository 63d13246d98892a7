"""The stack of JIT'd code, frame by frame, from a call that is a safepoint: the readable walker.

Code that is stopped at a safepoint has called something, and the word that holds the return address
of that call is an anchor: all frames that led there follow from it. Where Python was called and has
called JIT'd code again, the stack is in parts, with an anchor each.

A frame at a call that is not a safepoint has unknown roots, so that is an error. A part ends with
the first return address that is in no loaded code: whoever has called into it. So `Safepoints` must
hear every engine whose code may be on the stack: code it does not know is taken for that caller. If
that is so where a part begins, it has heard the wrong engine or none, and that is an error, too.

`nativewalk` does the same fast, and is tested against this one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

from ..errors import JITListenerError
from .framerule import FP, SP
from .listener import Safepoints
from .safepoint import Safepoint

__all__ = ["Anchor", "Frame", "LiveRoot", "read_word", "walk", "write_word"]

WORD = 8
USER_SPACE = 1 << 47  # bytes: Linux on x86-64, with four levels of page tables
NOT_IN_SLOTS = -USER_SPACE | WORD - 1
"""The bits that no address of a slot has."""
# The process's memory as one array: much faster to read than a ctypes object for each word.
_words = memoryview((ctypes.c_uint64 * (USER_SPACE // WORD)).from_address(0)).cast("B").cast("Q")


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
        registers = {SP: self.sp}
        if self.safepoint.frame_rule.size is None:
            registers[FP] = self.fp
        try:
            return [
                _live_root(
                    (
                        registers[base[0]] + base[1] if base else 0,
                        registers[derived[0]] + derived[1] if derived else 0,
                    )
                )
                for base, derived in self.safepoint.roots
            ]
        except KeyError:
            raise JITListenerError(
                f"{self.safepoint!r}: a root relative to rbp, which is not its frame pointer"
            ) from None


# NamedTuple's own constructors run Python code for each; these do not.
_frame = cast(Callable[[Any], Frame], partial(tuple.__new__, Frame))
_live_root = cast(Callable[[Any], LiveRoot], partial(tuple.__new__, LiveRoot))


def read_word(address: int) -> int:
    """The 8 bytes at an address of this process, as an unsigned number.

    Raises JITListenerError for an address that is not aligned or not of user space (47 bits). Where
    nothing is mapped, this ends the process.
    """
    return _words[_index(address)]


def write_word(address: int, value: int) -> None:
    """Write an unsigned number as the 8 bytes at an address of this process.

    Raises JITListenerError for an address that is not aligned or not of user space (47 bits). Where
    nothing is mapped, this ends the process.
    """
    _words[_index(address)] = value


def _index(address: int) -> int:
    """Where the word at an address is among all words."""
    if address & NOT_IN_SLOTS:
        raise JITListenerError(
            f"no slot can be at {address:#x}: they are at multiples of {WORD} below {USER_SPACE:#x}"
        )
    return address >> 3


def walk(safepoints: Safepoints, anchors: Iterable[Anchor]) -> Iterator[Frame]:
    """The frames of a thread, from the innermost one out; `anchors` are its parts in that order.

    The thread must stay where it is. Raises JITListenerError at a call in loaded code that is not a
    safepoint, at an anchor whose call is in no code that `safepoints` have heard of, at a frame
    whose caller cannot be found, and where the anchors are not of one stack.
    """
    end = 0
    for first, fp in anchors:
        slot = first
        if slot < end:
            raise JITListenerError(f"an anchor at {slot:#x} inside the part that ends at {end:#x}")
        while (safepoint := safepoints.lookup(return_address := read_word(slot))) is not None:
            sp = slot + WORD
            yield _frame((safepoint, sp, fp))
            size, saved_fp = safepoint.frame_rule
            slot = fp + WORD if size is None else sp + size
            if slot < sp or slot & NOT_IN_SLOTS:
                raise JITListenerError(
                    f"{safepoint!r}: a frame pointer {fp:#x} that is not further out on its stack"
                )
            if saved_fp:
                fp = read_word(slot + saved_fp)
        function = safepoints.code_name(return_address - 1)
        if function is not None:
            raise JITListenerError(
                f"the frame of {function}, which returns to {return_address:#x}: its call is not"
                " a safepoint"
            )
        if slot == first:
            raise JITListenerError(
                f"the call of the anchor at {slot:#x} returns to {return_address:#x}, in no code"
                " that these Safepoints have heard of: attach them to the engine whose code it is"
            )
        end = slot
