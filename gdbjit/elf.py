"""The few ELF structures this package reads and writes, both classes and byte orders.

Source: the System V gABI, chapters 4 and 5, and its Linux constants in <elf.h>.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from .errors import GDBJITError

MAGIC = b"\x7fELF"
CLASS32, CLASS64 = 1, 2
ORDER = {1: "<", 2: ">"}  # e_ident[EI_DATA]
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183
PT_LOAD, PT_DYNAMIC, PT_PHDR, PT_GNU_STACK = 1, 2, 6, 0x6474E551
PF_X, PF_W, PF_R = 1, 2, 4
SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_HASH = 0, 1, 2, 3, 4, 5
SHT_DYNAMIC, SHT_NOBITS, SHT_REL, SHT_DYNSYM = 6, 8, 9, 11
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHN_UNDEF, SHN_LORESERVE, SHN_XINDEX = 0, 0xFF00, 0xFFFF
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2
STB_GLOBAL = 1
DT_NULL, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT = 0, 4, 5, 6, 10, 11
DT_SONAME, DT_DEBUG = 14, 21
AT_PHDR, AT_PHNUM = 3, 5


class Header(NamedTuple):
    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


# NamedTuple's own constructor runs Python code; this does not.
_header = cast(Callable[[Any], Header], functools.partial(tuple.__new__, Header))


class Segment(NamedTuple):
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class Section(NamedTuple):
    name: int
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int


class Symbol(NamedTuple):
    name: int
    info: int
    other: int
    shndx: int
    value: int
    size: int


class Format:
    """The structures of one class and byte order."""

    def __init__(self, elf_class: int, order: str) -> None:
        self.wide = elf_class == CLASS64
        self.order = order
        word = "Q" if self.wide else "I"
        self.header = struct.Struct(f"{order}16sHHI3{word}I6H")
        self.section = struct.Struct(f"{order}II4{word}II2{word}")
        self.segment = struct.Struct(order + ("IIQQQQQQ" if self.wide else "8I"))
        self.symbol = struct.Struct(order + ("IBBHQQ" if self.wide else "IIIBBH"))
        self.pair = struct.Struct(f"{order}2{word}")  # a dynamic tag, an entry of the auxv
        self.pointer = struct.calcsize(order + word)
        self.entry_sizes = {  # of the sections that are tables, by their type
            SHT_SYMTAB: self.symbol.size,
            SHT_DYNSYM: self.symbol.size,
            SHT_REL: 2 * self.pointer,
            SHT_RELA: 3 * self.pointer,
        }

    def segments(self, table: bytes) -> list[Segment]:
        if self.wide:
            return [Segment(*fields) for fields in self.segment.iter_unpack(table)]
        return [
            Segment(kind, flags, offset, vaddr, paddr, filesz, memsz, align)
            for kind, offset, vaddr, paddr, filesz, memsz, flags, align in (
                self.segment.iter_unpack(table)
            )
        ]

    def pairs(self, table: bytes) -> Iterator[tuple[int, int]]:
        """The whole pairs at the start of `table`."""
        return self.pair.iter_unpack(table[: len(table) // self.pair.size * self.pair.size])

    def read_symbol(self, data: bytes) -> Symbol:
        if self.wide:
            return Symbol(*self.symbol.unpack(data))
        name, value, size, info, other, shndx = self.symbol.unpack(data)
        return Symbol(name, info, other, shndx, value, size)


@functools.cache
def elf_format(elf_class: int, data: int) -> Format:
    """The format of e_ident[EI_CLASS] and e_ident[EI_DATA]; GDBJITError if there is no such."""
    if elf_class not in (CLASS32, CLASS64) or data not in ORDER:
        raise GDBJITError(f"ELF class {elf_class} with byte order {data} does not exist")
    return Format(elf_class, ORDER[data])


def read_header(start: bytes) -> tuple[Header, Format]:
    """The file header at the start of an ELF file; GDBJITError where it is none."""
    if start[:4] != MAGIC or len(start) < 16:
        raise GDBJITError("not an ELF file: it does not begin with the magic number 7f 45 4c 46")
    form = elf_format(start[4], start[5])
    if len(start) < form.header.size:
        raise GDBJITError(f"ELF header cut off: {len(start)} of {form.header.size} bytes")
    return _header(form.header.unpack_from(start)), form


@functools.cache
def native() -> tuple[Header, Format]:
    """The header of the program that runs this process: its class, byte order and machine."""
    try:
        with Path("/proc/self/exe").open("rb") as program:
            return read_header(program.read(64))
    except OSError as error:
        raise GDBJITError(f"cannot read /proc/self/exe ({error}): this needs Linux") from error
