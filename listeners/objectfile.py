"""Relocatable ELF objects, as a JIT compiler emits them, read with `struct` alone.

For the listeners' hot path: an object is read at every load, so this keeps what the file holds as
tuples in the file's own field order and decodes a name only when somebody asks for it. Little-
endian ELF64 of type ET_REL, any machine. What lies beyond the file, overlaps or points nowhere is
refused here, so that the time and memory which later parts spend stay in proportion to the file.

The format: "ELF-64 Object File Format" and the generic ABI (https://gabi.xinuos.com), chapters
"Object Files" and "Symbol Table".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from struct import Struct
from typing import Any, NamedTuple, cast

from .derived import derived
from .errors import JITListenerError

__all__ = ["ObjectFile", "SectionHeader", "Symbol"]

EM_X86_64, EM_AARCH64 = 62, 183
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3

SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA = 0, 1, 2, 3, 4
SHT_NOTE, SHT_NOBITS, SHT_REL, SHT_CREL = 7, 8, 9, 0x40000014
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHF_MERGE, SHF_STRINGS, SHF_TLS, SHF_COMPRESSED = 0x10, 0x20, 0x400, 0x800

SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_XINDEX = 0, 0xFF00, 0xFFF1, 0xFFFF
STT_SECTION = 3
PT_LOAD, PT_NOTE, PT_GNU_EH_FRAME = 1, 4, 0x6474E550
PF_X, PF_W, PF_R = 1, 2, 4

HEADER = Struct("<4s5B7xHHIQQQIHHHHHH")
SECTION = Struct("<IIQQQQIIQQ")
SYMBOL = Struct("<IBBHQQ")
SEGMENT = Struct("<IIQQQQQQ")
# Of the file header: identification, type, machine, section table, flags, size and count of
# section headers, names' index.
_BRIEF_HEADER = Struct("<6s10xHH20xQI6xHHH")
# Of a section header.
EXTENT = Struct("<24xQQ")  # offset and size in the file
_TABLE = Struct("<4xI24xQI12xQ")  # type, size, link, size of an entry
RELOCATION = Struct("<QIIq")  # r_info in its two halves: the type is the low one
COMPRESSION = Struct("<IIQQ")

_RELOCATION_TYPES = {SHT_RELA, SHT_REL, SHT_CREL}
_ADDRESS = Struct("<Q")
_SECTION_ADDRESS = 16  # of sh_addr, in a section header
_COMPRESS_ZLIB = 1
_DEFLATE_MAXIMUM_RATIO = 1032  # https://zlib.net/zlib_tech.html


class SectionHeader(NamedTuple):
    """A section header as it is in the file (Elf64_Shdr); its name is `ObjectFile.section_name`."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class Symbol(NamedTuple):
    """A symbol as it is in the file (Elf64_Sym); its name is `ObjectFile.symbol_name`."""

    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


# NamedTuple's own constructors run Python code for each row; these do not.
_section = cast(Callable[[Any], SectionHeader], partial(tuple.__new__, SectionHeader))
_symbol = cast(Callable[[Any], Symbol], partial(tuple.__new__, Symbol))


class ObjectFile:
    """A relocatable object in memory.

    `data` is the object's bytes, `machine` and `flags` its e_machine and e_flags, `section_table`
    the offset of its section headers. `names_index`, `symbol_table` and `strings_index` are the
    indices of the sections' names, of the symbol table and of the symbols' names; the latter two
    are 0 where there is none. Of several symbol tables, which ELF forbids, the last one counts.

    Raises JITListenerError if `data` is not such an object or the header of its symbol table is
    malformed, and later, by what reads deeper, for what can only be seen there.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < HEADER.size:
            raise JITListenerError(f"an ELF object of {len(data)} bytes: its header alone is 64")
        ident, elf_type, machine, table, flags, entry_size, count, names = (
            _BRIEF_HEADER.unpack_from(data)
        )
        if ident != b"\x7fELF\2\1":
            if ident[:5] == b"\x7fELF\1":
                raise JITListenerError("a 32-bit ELF file: only 64-bit ones are read")
            raise JITListenerError(f"not a little-endian ELF64 file: it begins with {ident.hex()}")
        if elf_type != ET_REL:
            raise JITListenerError(
                f"an ELF file of type {elf_type} where a relocatable object (ET_REL, 1) is needed"
            )
        if not 0 < count < SHN_LORESERVE:
            raise JITListenerError(
                "an ELF object without sections, or with over 65,279 of them: "
                "extended section numbering is not read"
            )
        if entry_size != SECTION.size or table + count * SECTION.size > len(data):
            raise JITListenerError(
                f"{count} section headers of {entry_size} bytes at offset {table:#x}: "
                f"64 bytes each are expected, inside a file of {len(data):#x}"
            )
        self.data = data
        self.machine, self.flags = machine, flags
        self.section_table, self.section_count, self.names_index = table, count, names
        self.symbol_table = self.strings_index = 0
        index = count - 1  # mostly the symbol table is the last one
        while index:
            kind, size, strings, entry_size = _TABLE.unpack_from(data, table + index * SECTION.size)
            if kind == SHT_SYMTAB:
                if entry_size != SYMBOL.size or size % SYMBOL.size or not size:
                    raise JITListenerError(
                        f"section {index}: a symbol table of {size:#x} bytes "
                        f"in entries of {entry_size}, not 24"
                    )
                if (
                    strings >= count
                    or _TABLE.unpack_from(data, table + strings * SECTION.size)[0] != SHT_STRTAB
                ):
                    raise JITListenerError(
                        f"section {index}: sh_link: section {strings} is not a string table"
                    )
                self.symbol_table, self.strings_index = index, strings
                break
            index -= 1

    def _header(self, index: int) -> SectionHeader:
        return _section(SECTION.unpack_from(self.data, self.section_table + index * SECTION.size))

    @derived
    def sections(self) -> list[SectionHeader]:
        """Every section header by index, the null one included."""
        end = self.section_table + self.section_count * SECTION.size
        return list(map(_section, SECTION.iter_unpack(self.data[self.section_table : end])))

    @derived
    def allocated(self) -> list[int]:
        """The indices of the sections that take up memory in a process."""
        return [
            index
            for index, (_, _, flags, _, _, size, _, _, _, _) in enumerate(self.sections)
            if flags & SHF_ALLOC and size
        ]

    @derived
    def addresses(self) -> dict[int, int]:
        """The addresses of those sections that have one, by index."""
        return {index: header[3] for index, header in enumerate(self.sections) if header[3]}

    def check_sections(self) -> None:
        """Check all section headers, for who reads every section.

        Raises JITListenerError for a section that is not in the file or overlaps others, for a name
        outside its string table, for an alignment that is not a power of two, and for a second
        symbol table.
        """
        names_size = len(self.section_strings)
        tables = [index for index, header in enumerate(self.sections) if header.type == SHT_SYMTAB]
        if len(tables) > 1:
            raise JITListenerError(f"sections {tables} are symbol tables: there can be only one")
        occupied = 0
        for index, (name, kind, _, _, _, size, _, _, alignment, _) in enumerate(self.sections):
            if kind == SHT_NULL:
                continue
            if name >= names_size:
                raise JITListenerError(
                    f"section {index}: its name is at offset {name:#x} "
                    f"of a string table of {names_size:#x}"
                )
            if kind != SHT_NOBITS:
                occupied += size
                self.check_extent(index)
            if alignment & (alignment - 1):
                raise JITListenerError(
                    f"section {index}: an alignment of {alignment:#x}, not a power of two"
                )
        # Real sections do not overlap, and those that did would make a small file a large image.
        if occupied > len(self.data):
            raise JITListenerError(
                f"{occupied:#x} bytes of sections in a file of {len(self.data):#x}: they overlap"
            )

    def check_extent(self, index: int) -> None:
        """Raise JITListenerError if section `index` is not in the file."""
        header = self._header(index)
        if header.offset + header.size > len(self.data):
            raise JITListenerError(
                f"section {index}: {header.size:#x} bytes at offset {header.offset:#x} "
                f"of a file of {len(self.data):#x}"
            )

    @property
    def emitted(self) -> bytes:
        """The bytes as a compiler emits them: no section has an address."""
        return self.placed(dict.fromkeys(self.addresses, 0)) if self.addresses else self.data

    def placed(self, addresses: Mapping[int, int]) -> bytes:
        """The bytes with section i at `addresses[i]`: its sh_addr, as LLVM tells debuggers."""
        data = bytearray(self.data)
        for index, address in addresses.items():
            start = self.section_table + index * SECTION.size + _SECTION_ADDRESS
            _ADDRESS.pack_into(data, start, address)
        return bytes(data)

    # Names

    @derived
    def section_strings(self) -> bytes:
        """The string table that holds the sections' names.

        Raises JITListenerError if the file header does not name one.
        """
        index = self.names_index
        if index >= self.section_count or self._header(index).type != SHT_STRTAB:
            raise JITListenerError(f"e_shstrndx: section {index} is not a string table")
        return self._raw(index)

    @derived
    def symbol_strings(self) -> bytes:
        """The string table that holds the symbols' names; there must be a symbol table."""
        return self._raw(self.strings_index)

    def section_name(self, index: int) -> str:
        """The name of section `index`; bytes that are not UTF-8 become surrogate escapes.

        Raises JITListenerError if the name lies outside its string table.
        """
        return _string(self.section_strings, self.sections[index].name, "section", index)

    def symbol_name(self, symbol: Symbol) -> str:
        """The name of one of `symbols`; raises as `section_name` does."""
        return _string(self.symbol_strings, symbol.name, "a symbol of section", symbol.section)

    # Contents

    def _raw(self, index: int) -> bytes:
        offset, size = EXTENT.unpack_from(self.data, self.section_table + index * SECTION.size)
        if offset + size > len(self.data):
            self.check_extent(index)
        return self.data[offset : offset + size]

    def contents(self, index: int) -> bytes:
        """The bytes of section `index`, unrelocated, decompressed; none for one without bits.

        Raises JITListenerError if a compressed section is malformed, or not compressed by zlib.
        """
        header = self._header(index)
        if header.type == SHT_NOBITS:
            return b""
        if header.flags & SHF_COMPRESSED:
            return _decompressed(self._raw(index), index)
        return self._raw(index)

    @derived
    def symbols(self) -> list[Symbol]:
        """Every symbol by index, the null one included.

        Raises JITListenerError if a symbol is in a section that does not exist.
        """
        if not self.symbol_table:
            return []
        symbols = list(map(_symbol, SYMBOL.iter_unpack(self._raw(self.symbol_table))))
        count = self.section_count
        strings_size = len(self.symbol_strings)
        for index, (name, _, _, section, _, _) in enumerate(symbols):
            if count <= section and not SHN_LORESERVE <= section < SHN_XINDEX:
                raise JITListenerError(
                    f"symbol {index} is in section {section:#x}: there are {count}"
                )
            if name and name >= strings_size:
                raise JITListenerError(
                    f"symbol {index}: its name is at offset {name:#x} "
                    f"of a string table of {strings_size:#x}"
                )
        return symbols

    @derived
    def _relocation_tables(self) -> dict[int, list[int]]:
        """The indices of the relocation sections, by that of the section they change."""
        tables: dict[int, list[int]] = {}
        for index, header in enumerate(self.sections):
            if header.type in _RELOCATION_TYPES:
                tables.setdefault(header.info, []).append(index)
        return tables

    def relocations(self, index: int) -> list[tuple[int, int, int, int]]:
        """The relocations that apply to section `index`: (offset, type, symbol index, addend).

        Raises JITListenerError if they are without addends, compact, or in entries of a wrong size.
        """
        found: list[tuple[int, int, int, int]] = []
        for table in self._relocation_tables.get(index, ()):
            header = self.sections[table]
            if header.type != SHT_RELA or header.entry_size != 24 or header.size % 24:
                raise JITListenerError(
                    f"section {table}: relocations of section {index} as {header.size:#x} bytes of "
                    f"type {header.type:#x} in entries of {header.entry_size}: "
                    "only SHT_RELA (4) in entries of 24 is read"
                )
            found += RELOCATION.iter_unpack(self._raw(table))
        return found


def _string(table: bytes, offset: int, what: str, index: int) -> str:
    end = table.find(b"\0", offset)
    if end < 0:
        raise endless(len(table), offset, what, index)
    return table[offset:end].decode("utf-8", "surrogateescape")


def endless(table_size: int, offset: int, what: str, index: int) -> JITListenerError:
    """The error for a name that goes on behind its string table."""
    return JITListenerError(
        f"{what} {index}: its name, at offset {offset:#x} of a string table "
        f"of {table_size:#x} bytes, has no end"
    )


def _decompressed(stored: bytes, index: int) -> bytes:
    if len(stored) < COMPRESSION.size:
        raise JITListenerError(f"section {index}: compressed, and shorter than its header")
    method, _, size, _ = COMPRESSION.unpack_from(stored)
    if method != _COMPRESS_ZLIB:
        raise JITListenerError(
            f"section {index}: compressed by method {method}; zlib (1) is read: "
            "emit the object with -gz=zlib or -gz=none"
        )
    stream = stored[COMPRESSION.size :]
    if size > _DEFLATE_MAXIMUM_RATIO * len(stream):
        raise JITListenerError(
            f"section {index}: {len(stream):#x} bytes said to expand to {size:#x}"
        )
    inflater = zlib.decompressobj()
    try:
        contents = inflater.decompress(stream, size + 1)
    except zlib.error as error:
        raise JITListenerError(f"section {index}: {error}") from None
    if len(contents) != size or not inflater.eof:
        raise JITListenerError(f"section {index}: it does not expand to {size:#x} bytes")
    return contents
