"""Call frame information: which code an `.eh_frame` section covers, and its `.eh_frame_hdr`.

Unwinders that are given a file (perf's, a core file's debugger) find a function's frame description
entry (FDE) through the sorted table of `.eh_frame_hdr`. A linker writes that section; a JIT's
object has none, so the image of a loaded object gets one made here.

The format: Linux Standard Base Core Specification 5.0, "Exception Frames" (10.6) and "DWARF
Extensions" (10.5) for the pointer encodings. 'B' and 'G' are AArch64's: "DWARF for the Arm 64-bit
Architecture", 6 (https://github.com/ARM-software/abi-aa).
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct, pack
from typing import NamedTuple

from .errors import JITListenerError

__all__ = ["FDE", "frame_header", "read_frames", "read_leb128", "read_lsdas"]

WORD = Struct("<I")
LONG_LENGTH = 0xFFFFFFFF  # announces a 64-bit length

ABSOLUTE, PC_RELATIVE = 0x00, 0x10
POINTER_FORMATS = {
    0x00: Struct("<Q"),  # absptr
    0x02: Struct("<H"),  # udata2
    0x03: WORD,  # udata4
    0x04: Struct("<Q"),  # udata8
    0x0A: Struct("<h"),  # sdata2
    0x0B: Struct("<i"),  # sdata4
    0x0C: Struct("<q"),  # sdata8
}
OMITTED = 0xFF
UNSIGNED = 0x07  # a length is read as a pointer of this half of the format, never applied to a base

HEADER = Struct("<4BiI")  # version, three encodings, address of .eh_frame from here, FDE count
HEADER_ENCODINGS = (1, 0x1B, 0x03, 0x3B)  # version 1; pcrel|sdata4, udata4, datarel|sdata4
ADDRESSES = (1 << 64) - 1


class FDE(NamedTuple):
    """A frame description entry."""

    pc: int
    """Address of the code it describes."""
    size: int
    """Of that code, in bytes."""
    address: int
    """Of the entry itself."""


def read_frames(content: bytes | bytearray, address: int) -> list[FDE]:
    """The FDEs of a relocated `.eh_frame` section that lies at `address`, in its order.

    Raises JITListenerError, with the offset, for what is malformed and for the forms that no LLVM
    target emits: 64-bit lengths, augmentations other than z, R, P, L, S, B and G, code addresses
    relative to anything but their own place.
    """
    frames: list[FDE] = []
    encodings: dict[int, int] = {}  # of the code addresses, by the offset of the CIE
    offset, end = 0, len(content)
    while offset < end:
        if end - offset < 4:
            raise _error(offset, "a length is cut off")
        (length,) = WORD.unpack_from(content, offset)
        if length == 0:
            break
        body = offset + 4
        stop = body + length
        if length == LONG_LENGTH:
            raise _error(offset, "a 64-bit length, which is not read")
        if length < 4 or stop > end:
            raise _error(offset, f"an entry of {length:#x} bytes in a section of {end:#x}")
        (distance,) = WORD.unpack_from(content, body)
        if distance == 0:
            encodings[offset] = _encodings(content[body + 4 : stop], offset)[0]
        else:
            encoding = encodings.get(body - distance)
            if encoding is None:
                raise _error(offset, f"an FDE whose CIE is not at {body - distance:#x}")
            begin = POINTER_FORMATS[encoding & 0x0F]
            extent = POINTER_FORMATS[encoding & UNSIGNED]
            field = body + 4
            if field + 2 * begin.size > stop:
                raise _error(offset, f"an FDE of {length:#x} bytes: its code addresses are cut off")
            (pc,) = begin.unpack_from(content, field)
            (size,) = extent.unpack_from(content, field + begin.size)
            if encoding & PC_RELATIVE:
                pc += address + field
            frames.append(FDE(pc & ADDRESSES, size, address + offset))
        offset = stop
    return frames


def read_lsdas(content: bytes | bytearray, address: int) -> list[tuple[FDE, int]]:
    """The FDEs of functions that have language-specific data (LSDA), each with its address.

    Raises JITListenerError as `read_frames` does, and for a pointer in a form that no LLVM target
    emits.
    """
    found: list[tuple[FDE, int]] = []
    encodings: dict[int, tuple[int, int]] = {}
    for frame in read_frames(content, address):
        offset = frame.address - address
        cie = offset + 4 - WORD.unpack_from(content, offset + 4)[0]
        if cie not in encodings:
            end = cie + 4 + WORD.unpack_from(content, cie)[0]
            encodings[cie] = _encodings(content[cie + 8 : end], cie)
        code, encoding = encodings[cie]
        if encoding == OMITTED:
            continue
        if encoding & 0xF0 not in (ABSOLUTE, PC_RELATIVE):
            raise _error(offset, f"language-specific data that is given as {encoding:#x}")
        form = _pointer_format(encoding, offset)
        entry = content[: offset + 4 + WORD.unpack_from(content, offset)[0]]
        field = offset + 8 + POINTER_FORMATS[code & 0x0F].size
        field += POINTER_FORMATS[code & UNSIGNED].size
        try:
            size, field = read_leb128(entry, field)
            if size < form.size or field + size > len(entry):
                raise IndexError
        except IndexError:
            raise _error(offset, "an FDE whose language-specific data is cut off") from None
        (pointer,) = form.unpack_from(entry, field)
        if pointer:
            pointer += address + field if encoding & PC_RELATIVE else 0
            found.append((frame, pointer & ADDRESSES))
    return found


def _encodings(body: bytes | bytearray, offset: int) -> tuple[int, int]:
    """How the CIE at `offset` encodes addresses of code and of language-specific data.

    `body` follows its id.
    """
    try:
        return _parse_cie(body, offset)
    except (IndexError, ValueError):
        raise _error(offset, "a CIE that is cut off") from None


def _parse_cie(body: bytes | bytearray, offset: int) -> tuple[int, int]:
    version = body[0]
    if version not in (1, 3):
        raise _error(offset, f"a CIE of version {version}: 1 and 3 are read")
    end = body.index(0, 1)
    augmentation = body[1:end].decode("latin-1")
    at = end + 1
    _, at = read_leb128(body, at)  # code alignment
    _, at = read_leb128(body, at)  # data alignment
    _, at = (0, at + 1) if version == 1 else read_leb128(body, at)  # return address register
    if not augmentation:
        return ABSOLUTE, OMITTED
    if augmentation[0] != "z":
        raise _error(offset, f"a CIE of augmentation {augmentation!r}")
    _, at = read_leb128(body, at)  # length of what follows
    encoding, data = ABSOLUTE, OMITTED
    for letter in augmentation[1:]:
        if letter == "R":
            encoding = body[at]
            at += 1
        elif letter == "L":
            data = body[at]
            at += 1
        elif letter == "P":
            at += 1 + _pointer_format(body[at], offset).size
        elif letter not in "SBG":
            raise _error(offset, f"a CIE of augmentation {augmentation!r}")
    if at > len(body):
        raise IndexError
    _pointer_format(encoding, offset)
    if encoding & 0xF0 not in (ABSOLUTE, PC_RELATIVE):
        raise _error(offset, f"a CIE with code addresses encoded as {encoding:#x}")
    return encoding, data


def _pointer_format(encoding: int, offset: int) -> Struct:
    form = POINTER_FORMATS.get(encoding & 0x0F)
    if form is None:
        raise _error(offset, f"a CIE with pointers encoded as {encoding:#x}")
    return form


def read_leb128(body: bytes | bytearray, at: int, *, signed: bool = False) -> tuple[int, int]:
    """The number at an offset, and the offset behind it.

    Raises IndexError if it is cut off or longer than 64 bits ever are.
    """
    value = shift = 0
    while True:
        if shift >= 70:
            raise IndexError
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    if signed and byte & 0x40:
        value -= 1 << shift
    return value, at


def _error(offset: int, what: str) -> JITListenerError:
    return JITListenerError(f".eh_frame, offset {offset:#x}: {what}")


def frame_header(frames: Iterable[FDE], section: int, address: int) -> bytes | None:
    """The `.eh_frame_hdr` that lies at `address` for the `.eh_frame` at address `section`.

    FDEs of no code are left out. None where anything is 2 GiB or more from `address`: the encoding
    that all unwinders read has 32-bit offsets.
    """
    rows = sorted((pc - address, entry - address) for pc, size, entry in frames if size)
    offsets = [offset for row in rows for offset in row]
    pointer = section - (address + 4)
    if max(pointer, *offsets, 0) >= 1 << 31 or min(pointer, *offsets, 0) < -(1 << 31):
        return None
    header = HEADER.pack(*HEADER_ENCODINGS, pointer, len(rows))
    return header + pack(f"<{len(offsets)}i", *offsets)
