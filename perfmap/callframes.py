"""Call frame information of one function, placed where perf looks for it.

`perf inject -j` makes an ELF file of each function: the code, `.eh_frame`, `.eh_frame_hdr`; and it
says how much of that is mapped from the code's address on. To unwind, a perf built with libunwind
reads the header's table and the frame's rules at their addresses, through what is mapped there at
the time. Behind most functions the next one follows at once, and would be read instead.

So the rules are put farther away, behind the code that follows, with an entry in front of them that
an unwinder skips. `.eh_frame` as such begins behind its function all the same, and a perf built
with libdw finds it in the file. What follows is loaded later and takes back what is its own; what
is behind it stays with the function.

The format: Linux Standard Base Core Specification 5.0, 10.5 and 10.6. How perf reads it:
find_proc_info() in tools/perf/util/unwind-libunwind-local.c, jit_repipe_code_load() in jitdump.c.
"""

from __future__ import annotations

from struct import Struct, pack
from typing import NamedTuple

from perfmap.errors import PerfMapError

__all__ = ["SMALLEST_DISTANCE", "FrameRules", "behind", "encode", "size_of"]

_PC_RELATIVE_INT = 0x1B  # pcrel|sdata4
_HEADER = Struct("<4BiIii")  # version, three encodings, eh_frame, FDE count, code, FDE
_EMPTY_HEADER = Struct("<4BiI")
_HEADER_ENCODINGS = (1, _PC_RELATIVE_INT, 0x03, 0x3B)  # …, udata4, datarel|sdata4
# An entry without meaning: a CIE of version 1 without augmentation; its rules are no operations.
_SKIPPED = Struct("<II5s")
_SKIPPED_CIE = (0, b"\x01\0\x01\x78\x10")
SMALLEST_DISTANCE = 16


class FrameRules(NamedTuple):
    """How to leave a function: a CIE's and an FDE's part of it, free of addresses."""

    code_alignment: int
    data_alignment: int
    return_register: int
    initial: bytes
    """The CIE's rules: DWARF call frame instructions."""
    rules: bytes
    """The function's own, which follow."""
    letters: str = ""
    """The augmentations that concern the rules: S, a signal frame; B, arm64's key B."""


def behind(size: int) -> int:
    """Where `.eh_frame` starts, counted from the start of `size` bytes of code."""
    return (size + 7) & ~7


def size_of(frame: FrameRules) -> int:
    """How many bytes the rules and their header take; a multiple of 8."""
    return behind(len(_cie(frame)) + len(_fde(frame, 0, 0, 0)) + _HEADER.size)


def encode(frame: FrameRules, size: int, distance: int | None) -> tuple[bytes, bytes]:
    """The `.eh_frame` of `size` bytes of code, and the `.eh_frame_hdr` that follows it.

    The rules are `distance` bytes from the section's start: 0, or a multiple of 8 from
    SMALLEST_DISTANCE on. None: the header has no entry, because there is no room in memory.

    Raises PerfMapError if the return register does not fit its byte.
    """
    section = behind(size)
    skipped = b""
    if distance:
        skipped = _SKIPPED.pack(distance - 4, *_SKIPPED_CIE).ljust(distance, b"\0")
    cie = _cie(frame)
    fde = section + len(skipped) + len(cie)
    entry = _fde(frame, -fde, size, len(cie))
    header = fde + len(entry)
    pointer = section - (header + 4)
    if distance is None:
        return cie + entry, _EMPTY_HEADER.pack(*_HEADER_ENCODINGS, pointer, 0)
    rows = (1, -header, fde - header)
    return skipped + cie + entry, _HEADER.pack(*_HEADER_ENCODINGS, pointer, *rows)


def _cie(frame: FrameRules) -> bytes:
    if not 0 <= frame.return_register <= 0xFF:
        raise PerfMapError(f"return register {frame.return_register}: it has to fit a byte")
    body = b"\0\0\0\0\x01" + b"zR" + frame.letters.encode() + b"\0"
    body += _unsigned(frame.code_alignment) + _signed(frame.data_alignment)
    body += bytes([frame.return_register, 1, _PC_RELATIVE_INT]) + frame.initial
    return _entry(body)


def _fde(frame: FrameRules, code: int, size: int, cie: int) -> bytes:
    """The FDE that follows its CIE of `cie` bytes; `code` is relative to the FDE's start."""
    body = pack("<IiI", cie + 4, code - 8, size) + b"\0" + frame.rules
    return _entry(body)


def _entry(body: bytes) -> bytes:
    size = behind(4 + len(body))
    return pack("<I", size - 4) + body.ljust(size - 4, b"\0")  # 0: no operation


def _unsigned(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _signed(value: int) -> bytes:
    encoded = bytearray()
    while not -0x40 <= value < 0x40:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value & 0x7F)
    return bytes(encoded)
