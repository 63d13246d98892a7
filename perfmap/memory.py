"""The memory of this process: what is mapped where, and mapping something at a chosen place.

See mmap(2) and proc_pid_maps(5).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from mmap import MAP_ANONYMOUS, MAP_PRIVATE
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "MAP_FIXED",
    "MAP_NORESERVE",
    "MAP_POPULATE",
    "PROT_NONE",
    "Mapping",
    "map_free",
    "map_private",
    "mappings",
]

PROT_NONE = 0
# asm-generic/mman-common.h, mman.h: the same on x86-64 and AArch64
MAP_FIXED, MAP_NORESERVE, MAP_POPULATE, MAP_FIXED_NOREPLACE = 0x10, 0x4000, 0x8000, 0x100000
FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_private(
    address: int, size: int, access: int, flags: int, file: int = -1, offset: int = 0
) -> int:
    """`mmap` with MAP_PRIVATE, at any address for 0; unlike Python's own it keeps no descriptor.

    Gives the address. Raises OSError.
    """
    found = _libc.mmap(address or None, size, access, flags | MAP_PRIVATE, file, offset)
    if found == FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(found or 0)


def map_free(address: int, size: int, access: int, flags: int = 0) -> bool:
    """Map anonymous memory at that very address. False if something is there, or it cannot be."""
    try:
        found = map_private(address, size, access, flags | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE)
    except OSError:  # another thread was faster, or a limit is reached
        return False
    if found != address:  # before Linux 4.17 the address is a hint
        _libc.munmap(found, size)
    return found == address


class Mapping(NamedTuple):
    start: int
    end: int
    access: str
    """Of the letters r, w, x, s, those that apply."""
    anonymous: bool
    name: str = ""


def mappings() -> Iterator[Mapping]:
    """All mappings of this process, by address. Raises OSError."""
    # In bytes: of what ends a line elsewhere, the kernel escapes the newline alone in names.
    for line in Path("/proc/self/maps").read_bytes().split(b"\n")[:-1]:
        addresses, access, _, _, inode, *name = os.fsdecode(line).split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        path = name[0].replace("\\012", "\n") if name else ""
        anonymous = inode == "0" and (not path or path.startswith("[anon:"))
        yield Mapping(start, end, access.replace("-", "").replace("p", ""), anonymous, path)
