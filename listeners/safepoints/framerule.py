"""How to get from a frame to its caller's: by the call frame information of its function.

For the walkers. LLVM's stack map has a stack size, which is no way to the return address where a
call has pushed arguments, or where the frame is not of one size. The FDE of the function is exact
at every address, and tells where the caller's frame pointer is, which a frame further out may need.

x86-64 alone: there the return address is right below the canonical frame address (CFA).

The format: DWARF 5, 6.4.2 "Call Frame Instructions".
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

from perfmap import FrameRules

from ..ehframe import read_leb128
from ..errors import JITListenerError

__all__ = ["FrameRule", "FunctionRules"]

SP, FP = 7, 6  # DWARF numbers of rsp and rbp
WORD = 8
LARGEST = 1 << 31  # LLVM makes no larger frames
RETURN_ADDRESS = -8  # from the CFA
PUSHED_FP = -16  # from the CFA, of rbp as LLVM always pushes it: first

ADVANCE, OFFSET, RESTORE = 0x40, 0x80, 0xC0  # in the two high bits; below them a delta or register
ADVANCES = {0x02: 1, 0x03: 2, 0x04: 4}  # DW_CFA_advance_loc1 and so on: bytes of the delta
REMEMBER_STATE, RESTORE_STATE = 0x0A, 0x0B
DEF_CFA, DEF_CFA_REGISTER, DEF_CFA_OFFSET, DEF_CFA_EXPRESSION = 0x0C, 0x0D, 0x0E, 0x0F
OFFSET_EXTENDED, RESTORE_EXTENDED, SAME_VALUE = 0x05, 0x06, 0x08
# Those that say nothing of the CFA and rbp, or must not: how many numbers follow.
NUMBERS = {0x00: 0, 0x07: 1, 0x09: 2, 0x14: 2, 0x15: 2, 0x2E: 1}
EXPRESSIONS = (0x10, 0x16)


class FrameRule(NamedTuple):
    """How to find a frame's return address and the frame pointer of its caller."""

    size: int | None
    """Bytes from the stack pointer at the call to the return address; None where it is right above
    what the frame pointer points to."""
    saved_fp: int
    """Where the caller's frame pointer is, in bytes from the return address; 0: still in rbp."""


class Row(NamedTuple):
    """What holds at some addresses of a function."""

    register: int
    """What the CFA is relative to; -1 where an expression gives it."""
    offset: int
    fp: int
    """Where rbp is saved, in bytes from the CFA; 0: nowhere."""


class FunctionRules:
    """The rules of one function.

    Raises JITListenerError for instructions that are malformed or unknown.
    """

    def __init__(self, rules: FrameRules) -> None:
        self._starts: list[int] = []
        self._rows: list[Row] = []
        try:
            initial = self._run(rules.initial, rules, Row(-1, 0, 0), None)
            self._starts, self._rows = [], []
            self._run(rules.rules, rules, initial, initial)
        except (IndexError, ValueError):
            raise JITListenerError("call frame instructions that are cut off") from None

    def at(self, offset: int) -> FrameRule:
        """The rule for the call whose return address is at an offset.

        Raises JITListenerError where there is none that a walker could follow.
        """
        return _rule(self.row(offset))

    def row(self, offset: int) -> Row:
        """What holds there in terms of DWARF."""
        return self._rows[bisect_right(self._starts, offset - 1) - 1]

    def _run(self, code: bytes, rules: FrameRules, row: Row, initial: Row | None) -> Row:
        """Note the rows of instructions that begin with `row`; gives the last."""
        at = place = 0
        remembered: list[Row] = []

        def number(signed: bool = False) -> int:
            nonlocal at
            value, at = read_leb128(code, at, signed=signed)
            return value

        self._note(place, row)
        while at < len(code):
            instruction = code[at]
            at += 1
            high, low = instruction & 0xC0, instruction & 0x3F
            if high == ADVANCE or (not high and low in ADVANCES):
                self._note(place, row)
                size = ADVANCES.get(low, 0) if not high else 0
                delta = int.from_bytes(code[at : at + size], "little") if size else low
                at += size
                place += delta * rules.code_alignment
            elif high == OFFSET or instruction == OFFSET_EXTENDED:
                register = low if high else number()
                offset = number() * rules.data_alignment
                if register == FP:
                    row = row._replace(fp=offset)
            elif high == RESTORE or instruction in (RESTORE_EXTENDED, SAME_VALUE):
                register = low if high else number()
                if register == FP:
                    row = row._replace(
                        fp=initial.fp if initial and instruction != SAME_VALUE else 0
                    )
            elif instruction == REMEMBER_STATE:
                remembered.append(row)
            elif instruction == RESTORE_STATE:
                row = remembered.pop()
            elif instruction == DEF_CFA:
                row = row._replace(register=number(), offset=number())
            elif instruction == DEF_CFA_REGISTER:
                row = row._replace(register=number())
            elif instruction == DEF_CFA_OFFSET:
                row = row._replace(offset=number())
            elif instruction == DEF_CFA_EXPRESSION:
                at += number()
                row = row._replace(register=-1)
            elif instruction in EXPRESSIONS:
                register = number()
                at += number()
                if register == FP:
                    raise JITListenerError("call frame instructions that compute rbp")
            elif instruction in NUMBERS:
                numbers = [number() for _ in range(NUMBERS[instruction])]
                if FP in numbers[:1] and instruction != 0x2E:
                    raise JITListenerError("call frame instructions that do not keep rbp")
            else:
                raise JITListenerError(f"call frame instruction {instruction:#x}")
            if at > len(code):
                raise IndexError
        self._note(place, row)
        return row

    def _note(self, place: int, row: Row) -> None:
        """From `place` on `row` holds."""
        if self._starts and self._starts[-1] == place:
            self._rows[-1] = row
        else:
            self._starts.append(place)
            self._rows.append(row)


@lru_cache
def _rule(row: Row) -> FrameRule:
    saved = row.fp - RETURN_ADDRESS if row.fp else 0
    aligned = row.offset % WORD == row.fp % WORD == 0
    if row.register == SP and aligned and 0 < row.offset < LARGEST and -row.offset <= row.fp <= 0:
        return FrameRule(row.offset + RETURN_ADDRESS, saved)
    if row.register == FP and row.offset == -PUSHED_FP == -row.fp:
        return FrameRule(None, saved)
    raise JITListenerError(
        f"a frame whose return address is found by register {row.register}{row.offset:+}, and rbp"
        f" at {row.fp:+} from there"
    )
