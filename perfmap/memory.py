"""The memory of this process: what is mapped where, and mapping something at a chosen place.

See mmap(2) and proc_pid_maps(5).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from mmap import MAP_ANONYMOUS, MAP_PRIVATE
from pathlib import Path
from struct import Struct
from typing import NamedTuple

__all__ = [
    "MAP_FIXED",
    "MAP_NORESERVE",
    "MAP_POPULATE",
    "PROT_NONE",
    "Mapping",
    "map_free",
    "map_private",
    "mapping_at",
    "mappings",
]

PROT_NONE = 0
# asm-generic/mman-common.h, mman.h: the same on x86-64 and AArch64
MAP_FIXED, MAP_NORESERVE, MAP_POPULATE, MAP_FIXED_NOREPLACE = 0x10, 0x4000, 0x8000, 0x100000
# PROCMAP_QUERY of linux/fs.h, since Linux 6.11: size, flags, address; start, end, flags, page size,
# offset, inode, device; the rest is not asked for.
QUERY = Struct("<9Q4I2Q")
PROCMAP_QUERY = 0xC0006611 | QUERY.size << 16
VMA_FLAGS = "rwxs"  # by bit

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


def mapping_at(address: int) -> Mapping | None:
    """The mapping that holds `address`, its name perhaps left out. Raises OSError."""
    query = bytearray(QUERY.size)
    QUERY.pack_into(query, 0, QUERY.size, 0, address, *bytes(12))
    maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(maps, PROCMAP_QUERY, query)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        return next((m for m in mappings() if m.start <= address < m.end), None)
    finally:
        os.close(maps)
    _, _, _, start, end, flags, _, _, inode, major, minor, *_ = QUERY.unpack(query)
    access = "".join(letter for bit, letter in enumerate(VMA_FLAGS) if flags >> bit & 1)
    return Mapping(start, end, access, not (inode or major or minor))
