"""The section `.llvm_faultmaps`: which loads and stores may fault, and where to go on if they do.

For runtimes that let the processor check for null: LLVM leaves the check out and records the
instruction that faults instead (`-enable-implicit-null-checks`, branches with `!make.implicit`).
The handler of SIGSEGV goes on at the handler that is recorded for the address that has faulted.

    header     <BBHI   version 1, 0, 0, functions
    function   <QII    address, number of faults, 0
    fault      <III    kind, offsets of the instruction and of the handler in the function

The format: https://llvm.org/docs/FaultMaps.html.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from ..errors import JITListenerError

__all__ = ["FAULTMAPS", "Fault", "FaultKind", "read_faultmaps"]

FAULTMAPS = ".llvm_faultmaps"
HEADER = Struct("<BBHI")
FUNCTION = Struct("<QII")
FAULT = Struct("<III")
VERSION = 1


class FaultKind(IntEnum):
    """What the instruction does."""

    LOAD = 1
    LOAD_STORE = 2
    STORE = 3


class Fault(NamedTuple):
    """An instruction that may fault."""

    kind: FaultKind
    function: int
    """The function's address."""
    address: int
    """That of the instruction."""
    handler: int
    """Where to go on."""


def read_faultmaps(content: bytes | bytearray) -> list[Fault]:
    """What a relocated section records, in its order; it may hold several maps.

    Raises JITListenerError, with the offset, for what is cut off, of another version or kind.
    """
    found: list[Fault] = []
    at, end = 0, len(content)
    while at < end:
        if at + HEADER.size > end:
            raise _error(at, "a header that is cut off")
        version, reserved, zero, functions = HEADER.unpack_from(content, at)
        if version != VERSION or reserved or zero:
            raise _error(at, f"a fault map of version {version}: 1 is read")
        at += HEADER.size
        for _ in range(functions):
            if at + FUNCTION.size > end:
                raise _error(at, "a function that is cut off")
            function, faults, _ = FUNCTION.unpack_from(content, at)
            at += FUNCTION.size
            stop = at + faults * FAULT.size
            if stop > end:
                raise _error(at, f"the function at {function:#x}: its {faults} faults are cut off")
            for kind, fault, handler in FAULT.iter_unpack(content[at:stop]):
                if not 1 <= kind <= 3:
                    raise _error(
                        at, f"the function at {function:#x}, offset {fault:#x}: unknown kind {kind}"
                    )
                found.append(Fault(FaultKind(kind), function, function + fault, function + handler))
            at = stop
    return found


def _error(at: int, what: str) -> JITListenerError:
    return JITListenerError(f"{FAULTMAPS}, offset {at:#x}: {what}")
