"""OCaml's frametable: roots by return address, as LLVM's printer for `gc "ocaml"` writes them.

llvmlite has no such printer linked in; this reads objects that were made elsewhere. The table is at
the symbol `caml…__frametable` in the object's data. ocamlopt's own has a count of 8 bytes and
debug information behind the roots, and is not read.

    table        <H    number of call sites; each at a multiple of 8
    call site    <QHH  return address, frame size, roots
    root         <H    offset from the stack pointer

The format: LLVM's lib/CodeGen/AsmPrinter/OcamlGCPrinter.cpp.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from ..errors import JITListenerError

__all__ = ["FRAMETABLE", "FrameDescriptor", "read_frametable"]

FRAMETABLE = "__frametable"
COUNT = Struct("<H")
CALL_SITE = Struct("<QHH")
ALIGNMENT = 8


class FrameDescriptor(NamedTuple):
    """The roots at a call site."""

    return_address: int
    frame_size: int
    """Bytes from the stack pointer to the return address."""
    roots: tuple[int, ...]
    """Their offsets from the stack pointer, in bytes."""


def read_frametable(content: bytes | bytearray, offset: int) -> list[FrameDescriptor]:
    """The table at an offset of a relocated section.

    Raises JITListenerError, with the offset, for what is cut off.
    """
    found: list[FrameDescriptor] = []
    at = offset
    try:
        (count,) = COUNT.unpack_from(content, at)
        at = at + COUNT.size + ALIGNMENT - 1 & -ALIGNMENT
        for _ in range(count):
            return_address, frame_size, roots = CALL_SITE.unpack_from(content, at)
            offsets = Struct(f"<{roots}H").unpack_from(content, at + CALL_SITE.size)
            found.append(FrameDescriptor(return_address, frame_size, offsets))
            at = at + CALL_SITE.size + roots * COUNT.size + ALIGNMENT - 1 & -ALIGNMENT
    except StructError:
        raise JITListenerError(
            f"{FRAMETABLE} at {offset:#x}, offset {at:#x}: a call site that is cut off"
        ) from None
    return found
