"""The section `.gcc_except_table`: where each call goes on when it throws.

For runtimes with exceptions of their own, and for who explains an exception. A function's
language-specific data (LSDA) has a table of its call sites, each with landing pad and action; the
actions name the types that are caught. Which LSDA is whose, the function's FDE tells.

    header       landing pads' start, its encoding first; encoding and uleb128 offset of the types;
                 encoding and uleb128 size of the call sites
    call site    start, size, landing pad: offsets from the function, or the landing pads' start;
                 uleb128 action, from 1
    action       sleb128 filter, sleb128 offset of the next from here, 0 for none
    type         filter n is the nth before the end of the types, a pointer; 0 catches all

A filter of 0 is a cleanup; -n lists the allowed types: those numbers from byte n - 1 behind the
types on, uleb128, up to a 0.

The format: "Exception Handling Tables", https://itanium-cxx-abi.github.io/cxx-abi/exceptions.pdf;
encodings: Linux Standard Base Core Specification 5.0, 10.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import error as StructError
from typing import NamedTuple

from ..ehframe import ABSOLUTE, OMITTED, PC_RELATIVE, POINTER_FORMATS, read_leb128
from ..errors import JITListenerError

__all__ = ["EXCEPT_TABLE", "Action", "CallSite", "read_lsda"]

EXCEPT_TABLE = ".gcc_except_table"
ULEB128, INDIRECT = 0x01, 0x80
ADDRESSES = (1 << 64) - 1
MOST = 16  # actions and types for each byte of the section: more go in circles, made to harm


class Action(NamedTuple):
    """What a landing pad is entered for, tried in order."""

    filter: int
    """What the landing pad gets as selector: 0 for a cleanup, positive for a type that is caught,
    negative for a list of types, all but which are caught."""
    types: tuple[str | None, ...]
    """The symbol of the type, or of each of the list; None catches all."""


class CallSite(NamedTuple):
    """A range of code whose exceptions have one handler."""

    function: int
    """The function's address."""
    start: int
    """Its address."""
    end: int
    """The address behind it."""
    landing_pad: int | None
    """Its address; None where the exception goes on to the caller."""
    actions: tuple[Action, ...]
    """Empty for a cleanup alone."""


def read_lsda(
    content: bytes | bytearray, address: int, offset: int, function: int, symbols: Mapping[int, str]
) -> list[CallSite]:
    """The call sites of the LSDA at an offset of a relocated section that lies at `address`.

    `symbols` names what the section's relocations refer to, by their offsets.

    Raises JITListenerError, with the offset, for what is malformed or of unknown encoding.
    """
    try:
        return _Reader(bytes(content), address, offset, function, symbols).call_sites
    except (IndexError, StructError):
        raise _error(offset, f"that of the function at {function:#x} is cut off") from None


class _Reader:
    def __init__(
        self, content: bytes, address: int, offset: int, function: int, symbols: Mapping[int, str]
    ) -> None:
        self._content, self._address, self._start, self._symbols = content, address, offset, symbols
        self._left = MOST * len(content)
        if offset < 0:
            raise IndexError
        landing_pads = function
        encoding, at = content[offset], offset + 1
        if encoding != OMITTED:
            landing_pads, at = self._pointer(encoding, at)
        self._type_encoding, at = content[at], at + 1
        self._types = None
        if self._type_encoding != OMITTED:
            distance, at = read_leb128(content, at)
            self._types = at + distance
        encoding, at = content[at], at + 1
        size, at = read_leb128(content, at)
        self._actions = end = at + size
        if end > len(content):
            raise IndexError
        self.call_sites: list[CallSite] = []
        while at < end:
            first, at = self._number(encoding, at)
            length, at = self._number(encoding, at)
            pad, at = self._number(encoding, at)
            action, at = read_leb128(content, at)
            actions = self._chain(end + action - 1) if action else ()
            start = function + first & ADDRESSES
            self.call_sites.append(
                CallSite(
                    function,
                    start,
                    start + length,
                    landing_pads + pad & ADDRESSES if pad else None,
                    actions,
                )
            )
        if at != end:
            raise IndexError

    def _chain(self, at: int) -> tuple[Action, ...]:
        found: list[Action] = []
        while True:
            if at < self._actions:
                raise IndexError
            self._spend()
            number, following = read_leb128(self._content, at, signed=True)
            distance, _ = read_leb128(self._content, following, signed=True)
            found.append(Action(number, self._caught(number)))
            if not distance:
                return tuple(found)
            at = following + distance

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _error(self._start, "actions that go in a circle")

    def _caught(self, number: int) -> tuple[str | None, ...]:
        if number >= 0:
            return (self._type(number),) if number else ()
        if self._types is None:
            raise _error(self._start, f"filter {number}, and no types")
        at = self._types - number - 1
        names: list[str | None] = []
        while True:
            self._spend()
            index, at = read_leb128(self._content, at)
            if not index:
                return tuple(names)
            names.append(self._type(index))

    def _type(self, number: int) -> str | None:
        """The symbol of a type; None for a null pointer."""
        if self._types is None:
            raise _error(self._start, f"type {number} of none")
        form = POINTER_FORMATS.get(self._type_encoding & 0x0F)
        if form is None or self._type_encoding & 0x70 not in (ABSOLUTE, PC_RELATIVE):
            raise self._unknown(self._type_encoding)
        at = self._types - number * form.size
        if at < self._start:
            raise IndexError
        (value,) = form.unpack_from(self._content, at)
        name = self._symbols.get(at)
        if name is None and value:
            return hex(value + (self._address + at if self._type_encoding & PC_RELATIVE else 0))
        # Position-independent code refers to a pointer of this name.
        return name.removeprefix("DW.ref.") if name else None

    def _pointer(self, encoding: int, at: int) -> tuple[int, int]:
        if encoding & INDIRECT or encoding & 0x70 not in (ABSOLUTE, PC_RELATIVE):
            raise self._unknown(encoding)
        value, end = self._number(encoding & 0x0F, at)
        return value + (self._address + at if encoding & PC_RELATIVE else 0), end

    def _number(self, encoding: int, at: int) -> tuple[int, int]:
        if encoding == ULEB128:
            return read_leb128(self._content, at)
        form = POINTER_FORMATS.get(encoding)
        if form is None:
            raise self._unknown(encoding)
        return form.unpack_from(self._content, at)[0], at + form.size

    def _unknown(self, encoding: int) -> JITListenerError:
        return _error(self._start, f"what is encoded as {encoding:#x}")


def _error(offset: int, what: str) -> JITListenerError:
    return JITListenerError(f"{EXCEPT_TABLE}, language-specific data at offset {offset:#x}: {what}")
