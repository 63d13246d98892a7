"""The section `.note.gc`: roots by call site, as LLVM's printer for `gc "erlang"` writes them.

llvmlite has no such printer linked in; this reads objects that were made elsewhere (by HiPE, or by
llc). The section is not loaded, and its addresses are of 32 bits: relocations tell the real ones.

    function        at a multiple of 8: <H number of safepoints
    safepoint       <I   address, relocated
    frame           <HHH stack frame size, arity: arguments on the stack, roots; all in words
    root            <H   word of the frame, from the stack pointer up

The format: LLVM's lib/CodeGen/AsmPrinter/ErlangGCPrinter.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from ..errors import JITListenerError

__all__ = ["NOTE_GC", "NoteGC", "read_note_gc"]

NOTE_GC = ".note.gc"
COUNT = Struct("<H")
ADDRESS = Struct("<I")
FRAME = Struct("<HHH")
WORD = 8


class NoteGC(NamedTuple):
    """The roots of a function, the same at each of its safepoints."""

    safepoints: tuple[int, ...]
    """The return addresses."""
    frame_size: int
    """Bytes from the stack pointer to the return address."""
    arity: int
    """How many of its arguments are on the stack."""
    roots: tuple[int, ...]
    """Their offsets from the stack pointer, in bytes."""


def read_note_gc(content: bytes, addresses: Mapping[int, int]) -> list[NoteGC]:
    """What a section records by function; `addresses` are the relocated ones, by their offsets.

    Raises JITListenerError, with the offset, for what is cut off or has no address.
    """
    found: list[NoteGC] = []
    at = 0
    while at < len(content):
        start = at
        try:
            (count,) = COUNT.unpack_from(content, at)
            at += COUNT.size
            stop = at + count * ADDRESS.size
            safepoints = tuple(addresses[place] for place in range(at, stop, ADDRESS.size))
            frame_size, arity, roots = FRAME.unpack_from(content, stop)
            at = stop + FRAME.size
            words = Struct(f"<{roots}H").unpack_from(content, at)
            at = at + roots * COUNT.size + WORD - 1 & -WORD
        except KeyError as error:
            raise JITListenerError(
                f"{NOTE_GC}, offset {error.args[0]:#x}: a safepoint without an address"
            ) from None
        except StructError:
            raise JITListenerError(f"{NOTE_GC}, offset {start:#x}: it is cut off") from None
        offsets = tuple(word * WORD for word in words)
        found.append(NoteGC(safepoints, frame_size * WORD, arity, offsets))
    return found
