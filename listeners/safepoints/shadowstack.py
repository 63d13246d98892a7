"""LLVM's shadow stack: roots in a list that the code itself keeps, for collectors without tables.

The simple alternative to statepoints: functions marked `gc "shadow-stack"` put a node into a list
when they begin and take it out when they end, so what is live is found without tables, unwinding or
knowledge of the machine, between any two instructions. It costs each call some stores, the roots
stay in memory, and the list is one for all threads.

    node       ptr caller's node, ptr map, roots
    map        i32 roots, i32 how many of them, the first, have metadata; ptr metadata

The format: https://llvm.org/docs/GarbageCollection.html, "The Shadow Stack GC".
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from ..errors import JITListenerError
from .walk import WORD, read_word

__all__ = ["CHAIN", "ShadowFrame", "walk_shadow_stack"]

CHAIN = "llvm_gc_root_chain"
"""The variable that points to the innermost node, defined in each module that needs it."""
NODE = Struct("<QQ")
MAP = Struct("<ii")
_MOST = 1 << 20


class ShadowFrame(NamedTuple):
    """A function that has not returned yet."""

    node: int
    """Its node's address."""
    roots: tuple[int, ...]
    """The addresses of the words that are its roots."""
    metadata: tuple[int, ...]
    """What the code gives for each root; 0 for nothing."""


def walk_shadow_stack(chain: int) -> Iterator[ShadowFrame]:
    """The frames on the shadow stack whose variable CHAIN is at the address `chain`.

    The innermost comes first. The engine tells the address as that of any global variable. Its
    code must not run meanwhile. Raises JITListenerError where the list is none.
    """
    node, seen = read_word(chain), 0
    while node:
        following, frame_map = NODE.unpack(ctypes.string_at(node, NODE.size))
        if not frame_map:
            raise JITListenerError(f"shadow stack, node at {node:#x}: it has no map")
        roots, metas = MAP.unpack(ctypes.string_at(frame_map, MAP.size))
        if not 0 <= metas <= roots < _MOST:
            raise JITListenerError(
                f"shadow stack, map at {frame_map:#x}: {roots} roots, {metas} with metadata"
            )
        first, table = node + NODE.size, frame_map + MAP.size
        yield ShadowFrame(
            node,
            tuple(range(first, first + WORD * roots, WORD)),
            tuple(read_word(table + WORD * n) if n < metas else 0 for n in range(roots)),
        )
        seen += 1
        if following == node or seen > _MOST:
            raise JITListenerError(f"shadow stack, node at {node:#x}: the list has no end")
        node = following
