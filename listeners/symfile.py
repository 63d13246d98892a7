"""An image that an engine has registered with debuggers, read as an object.

LLVM registers the object it has emitted. Others register what they have: programs and shared
objects already linked, as listeners of this package do, or something between the two, as wasmtime
does. As a relocatable object with addresses in its section headers all of them can be listed, and
linked into the one image for all tools.
"""

from __future__ import annotations

from functools import partial
from struct import Struct

import gdbjit

from .errors import JITListenerError
from .events import LoadedObject
from .objectfile import (
    ET_DYN,
    ET_EXEC,
    ET_REL,
    HEADER,
    PT_LOAD,
    SECTION,
    SEGMENT,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHT_REL,
    SHT_RELA,
    SYMBOL,
    ObjectFile,
)

__all__ = ["read_symfile", "registered_object"]

_TYPE = Struct("<H")  # e_type, at 16
_SEGMENTS = Struct("<Q14xHH")  # e_phoff, at 32; e_phentsize and e_phnum


def registered_object(descriptor: gdbjit.Descriptor, image: bytes) -> LoadedObject:
    """The object that is registered in `descriptor` with this image, in whatever process."""

    def read(address: int, size: int) -> bytes:
        try:
            return descriptor.read(address, size)
        except gdbjit.GDBJITError as error:
            raise JITListenerError(f"its memory cannot be read any more: {error}") from error

    return LoadedObject(partial(read_symfile, image), read, registered_in=descriptor)


def read_symfile(image: bytes) -> ObjectFile:
    """The object that `image` is, or is made from; load addresses are in its section headers.

    What is linked already keeps its sections, symbols and debug information. Code whose section has
    no size has that of the segment at its address.

    Raises JITListenerError if it is not little-endian ELF64, or malformed.
    """
    if len(image) < HEADER.size or _TYPE.unpack_from(image, 16)[0] not in (ET_EXEC, ET_DYN):
        return ObjectFile(image)
    data = bytearray(image)
    _TYPE.pack_into(data, 16, ET_REL)
    linked = ObjectFile(bytes(data))
    sections = [list(header) for header in linked.sections]
    sizes = _segment_sizes(image)
    for index, (header, section) in enumerate(zip(linked.sections, sections, strict=True)):
        loaded = header.flags & SHF_ALLOC
        name = linked.section_name(index)
        # Relocations for a dynamic linker, which has applied them; frames that are relative to a
        # place which is not told; and the table of frames, which is made anew.
        if (
            (loaded and header.type in (SHT_RELA, SHT_REL))
            or (name == ".eh_frame" and not header.address)
            or name == ".eh_frame_hdr"
        ):
            section[:] = [0] * len(section)
        elif header.flags & SHF_EXECINSTR and header.address and not header.size:
            room = max(len(image) - header.offset, 0)
            section[5] = min(sizes.get(header.address, 0), room)
        SECTION.pack_into(data, linked.section_table + index * SECTION.size, *section)
    if linked.symbol_table:
        at = linked.sections[linked.symbol_table].offset
        for index, symbol in enumerate(linked.symbols):
            if symbol.section < len(sections):
                start, size = sections[symbol.section][3], sections[symbol.section][5]
                if start and start <= symbol.value <= start + size:
                    symbol = symbol._replace(value=symbol.value - start)
                    SYMBOL.pack_into(data, at + index * SYMBOL.size, *symbol)
    return ObjectFile(bytes(data))


def _segment_sizes(image: bytes) -> dict[int, int]:
    """The bytes that segments have in the file, by their addresses."""
    offset, entry_size, count = _SEGMENTS.unpack_from(image, 32)
    table = image[offset : offset + count * SEGMENT.size]
    if entry_size != SEGMENT.size or len(table) != count * SEGMENT.size:
        return {}
    return {
        address: size
        for kind, _, _, address, _, size, _, _ in SEGMENT.iter_unpack(table)
        if kind == PT_LOAD
    }
