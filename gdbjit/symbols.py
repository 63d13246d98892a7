"""Where an ELF file defines the GDB JIT interface.

Debuggers look the two symbols up in the file, so that is where they are looked up here: also local
ones, which only `.symtab` has and dlsym() cannot find. `.symtab` of a library such as LLVM has
hundreds of thousands of symbols. Instead of walking it, the name's offset is searched in the string
table, then the four bytes of that offset in the symbol table.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from . import elf, layout
from .errors import GDBJITError

# Bounds for a file that is made to keep the reader busy. A sparse file can have tables of any size,
# and any number of symbols may be called, or look as if they were called, as those sought.
MAX_TABLE = 1 << 30
MAX_NAMES = 8
MAX_HITS = 1 << 20
CHUNK = 1 << 18
ALLOWED_TYPES = (elf.STT_NOTYPE, elf.STT_OBJECT, elf.STT_FUNC)


class Definition(NamedTuple):
    """The two symbols of one file. Values are link-time addresses."""

    descriptor: int
    register_code: int
    exported: bool


class ElfFile(NamedTuple):
    """What there is to know of a loaded file."""

    head: bytes  # file header and program headers, to recognise it in memory
    head_vaddr: int | None  # link-time address of `head`; None if it is not loaded
    layout: layout.Layout
    definition: Definition | None


def read(fd: int) -> ElfFile | None:
    """What the file says; None if it is no ELF file or one whose tables lie.

    Reading is by pread(): a mapping would be a SIGBUS if somebody truncated the file meanwhile.
    """
    try:
        header, form = elf.read_header(os.pread(fd, 64, 0))
        if header.phnum and header.phentsize != form.segment.size:
            return None
        segments = form.segments(_exactly(fd, header.phoff, header.phnum * form.segment.size))
        end = max(form.header.size, header.phoff + len(segments) * form.segment.size)
        head = _exactly(fd, 0, min(end, 4096))
        return ElfFile(
            head,
            _vaddr(segments, len(head)),
            layout.layout(head[4], head[5], header.machine),
            _definition(fd, header, form, segments),
        )
    except (GDBJITError, OSError, OverflowError):
        return None


def _vaddr(segments: list[elf.Segment], head: int) -> int | None:
    for segment in segments:
        # The kernel maps whole pages, so a segment that begins within the first one has the
        # header before it.
        if segment.type == elf.PT_LOAD and segment.offset < 4096:
            covers = head <= segment.offset + segment.filesz
            return segment.vaddr - segment.offset if covers else None
    return None


def _definition(
    fd: int, header: elf.Header, form: elf.Format, segments: list[elf.Segment]
) -> Definition | None:
    if not header.shnum or header.shentsize != form.section.size:
        return None
    table = _exactly(fd, header.shoff, header.shnum * form.section.size)
    sections = [elf.Section(*fields) for fields in form.section.iter_unpack(table)]
    for kind in (elf.SHT_DYNSYM, elf.SHT_SYMTAB):
        for section in sections:
            if section.type != kind or section.link >= len(sections):
                continue
            strings = sections[section.link]
            found = [
                next(_defined(fd, form, segments, section, strings, *wanted), None)
                for wanted in (
                    (layout.DESCRIPTOR_SYMBOL, 8 + 2 * form.pointer, elf.PF_W),
                    (layout.REGISTER_SYMBOL, 1, elf.PF_X),
                )
            ]
            if found[0] is not None and found[1] is not None:
                return Definition(found[0], found[1], kind == elf.SHT_DYNSYM)
    return None


def _defined(
    fd: int,
    form: elf.Format,
    segments: list[elf.Segment],
    symbols: elf.Section,
    strings: elf.Section,
    name: bytes,
    size: int,
    permission: int,
) -> Iterator[int]:
    """Values of the symbols called `name` with `size` bytes in a segment of that permission."""
    # The name may be the end of a longer one in the table.
    for name_offset in itertools.islice(_find(fd, strings, name + b"\0"), MAX_NAMES):
        st_name = struct.pack(form.order + "I", name_offset & 0xFFFFFFFF)
        for at in itertools.islice(_find(fd, symbols, st_name), MAX_HITS):
            if at % form.symbol.size:
                continue
            symbol = form.read_symbol(_exactly(fd, symbols.offset + at, form.symbol.size))
            if (
                symbol.shndx != elf.SHN_UNDEF
                and (symbol.shndx < elf.SHN_LORESERVE or symbol.shndx == elf.SHN_XINDEX)
                and symbol.info & 15 in ALLOWED_TYPES
                and any(
                    segment.type == elf.PT_LOAD
                    and segment.flags & permission
                    and segment.vaddr <= symbol.value
                    and symbol.value + size <= segment.vaddr + segment.memsz
                    for segment in segments
                )
            ):
                yield symbol.value


def _find(fd: int, section: elf.Section, needle: bytes) -> Iterator[int]:
    """Offsets in `section` where `needle` is."""
    end = section.offset + min(section.size, MAX_TABLE)
    overlap = len(needle) - 1
    for start in range(section.offset, end, CHUNK):
        chunk = os.pread(fd, min(CHUNK + overlap, end - start), start)
        at = chunk.find(needle)
        while at >= 0:
            yield start - section.offset + at
            at = chunk.find(needle, at + 1)
        if len(chunk) < CHUNK:
            return


def _exactly(fd: int, offset: int, size: int) -> bytes:
    if size > MAX_TABLE:
        raise GDBJITError(f"table of {size} bytes at {offset:#x}")
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise GDBJITError(f"{size} bytes at {offset:#x} are not in the file")
    return data
