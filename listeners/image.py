"""A loaded object as one linked ELF image: the same file for every tool that takes a linked one.

It is for perf, objdump and what else does not relocate debug information by itself. It is what a
static linker would have made of the object at the addresses where the engine put its sections: an
ET_EXEC file with absolute symbols, `.debug_*` and `.eh_frame` relocated, one section called `.text`
and a `.eh_frame_hdr`; without relocations, undefined symbols and what was not loaded.

Relocation types: "System V ABI, AMD64 Architecture Processor Supplement", 4.4, and "ELF for the Arm
64-bit Architecture", 5.7. All else is the generic ABI's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from struct import Struct
from struct import error as StructError
from types import MappingProxyType

from .ehframe import FDE, frame_header, read_frames
from .errors import JITListenerError
from .objectfile import (
    EM_AARCH64,
    EM_X86_64,
    ET_EXEC,
    HEADER,
    PF_R,
    PF_W,
    PF_X,
    PT_GNU_EH_FRAME,
    PT_LOAD,
    SECTION,
    SEGMENT,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_MERGE,
    SHF_STRINGS,
    SHF_TLS,
    SHF_WRITE,
    SHN_ABS,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_NOTE,
    SHT_NULL,
    SHT_PROGBITS,
    SHT_REL,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    STT_SECTION,
    SYMBOL,
    ObjectFile,
)

__all__ = ["Linker", "build_image"]

PAGE = 4096
MEMORY_END = (1 << 64) - PAGE

# What a linked section keeps of its flags: not group, order, compression, nor x86-64's "large".
_LINKED_FLAGS = SHF_WRITE | SHF_ALLOC | SHF_EXECINSTR | SHF_MERGE | SHF_STRINGS | SHF_TLS

_ACCESS = {
    0: PF_R,
    SHF_WRITE: PF_R | PF_W,
    SHF_EXECINSTR: PF_R | PF_X,
    SHF_WRITE | SHF_EXECINSTR: PF_R | PF_W | PF_X,
}
_FLAGS, _ADDRESS, _OFFSET, _SIZE = 2, 3, 4, 5  # fields of a section header
# What stays that is not loaded: debug information, comments, notes.
_UNLOADED_TYPES = (SHT_PROGBITS, SHT_NOTE)
# The linker's own, whatever their flags say.
_TABLE_TYPES = (SHT_NULL, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_REL)

_U32, _S32, _U64 = Struct("<I").pack_into, Struct("<i").pack_into, Struct("<Q").pack_into
_WRAP, _FIT = (1 << 64) - 1, -1  # masks: values of 64 bits wrap, those of 32 must fit their field


def _leave(_field: bytearray, _offset: int, _value: int) -> None: ...


_Rules = dict[int, tuple[Callable[..., None], bool, int]]
# By type: how the field is written, whether the value is relative to the field's place, the mask.
# The fields of data alone: instruction operands, GOT and stubs are the engine's.
_RULES: dict[int, _Rules] = {
    EM_X86_64: {
        0: (_leave, False, _FIT),  # R_X86_64_NONE
        1: (_U64, False, _WRAP),  # R_X86_64_64
        2: (_S32, True, _FIT),  # PC32
        4: (_S32, True, _FIT),  # PLT32, its symbol being here
        10: (_U32, False, _FIT),  # 32
        11: (_S32, False, _FIT),  # 32S
        17: (_U64, False, _WRAP),  # DTPOFF64
        21: (_S32, False, _FIT),  # DTPOFF32
        24: (_U64, True, _WRAP),  # PC64
    },
    EM_AARCH64: {
        0: (_leave, False, _FIT),  # R_AARCH64_NONE
        257: (_U64, False, _WRAP),  # R_AARCH64_ABS64
        258: (_U32, False, _FIT),  # ABS32
        260: (_U64, True, _WRAP),  # PREL64
        261: (_S32, True, _FIT),  # PREL32
        314: (_S32, True, _FIT),  # PLT32
    },
}


def build_image(
    file: ObjectFile,
    addresses: Mapping[int, int],
    read: Callable[[int, int], bytes] | None = None,
) -> bytes:
    """The object `file`, its section of index i loaded at `addresses[i]`, as a linked ELF image.

    A section that would take memory and has no address, or 0, was not loaded: it is left out with
    its symbols, and what refers to it in `.debug_*` stays as emitted, 0.

    `read(address, size)` gives bytes of the process that runs the code, relocated by its engine.
    They are the truth, GOT loads relaxed and calls sent through stubs: what a debugger is to
    disassemble and perf to annotate. Without it (the process is gone) the bytes are the emitted
    ones, with the relocations applied that need neither a GOT, nor a stub, nor a symbol of
    elsewhere. `.eh_frame` is always the emitted one, relocated here: JITLink drops
    entries of it in memory.

    File offsets are congruent to addresses modulo 4096. `.eh_frame_hdr` has the address that
    follows `.eh_frame`, but no process has memory there for it, so it is not SHF_ALLOC and in no
    PT_LOAD. There is none where the code is 2 GiB or more from `.eh_frame`.

    Raises JITListenerError if the object is malformed or its machine neither x86-64 nor AArch64, if
    sections overlap at their addresses, if a frame describes code that was not loaded, or if `read`
    gives another number of bytes than asked for.
    """
    linker = Linker(file, addresses)
    linker.add_contents(read)
    linker.add_frame_header()
    linker.add_tables()
    return linker.image()


class Linker:
    """The image in the making: its sections by number, the null one first.

    A section is the ten fields of its header, in a list, and its bytes. `offsets`, by the index of
    a section that is not loaded, tells where its bytes will begin in a section of several objects.
    """

    def __init__(
        self,
        file: ObjectFile,
        addresses: Mapping[int, int],
        offsets: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        if file.machine not in _RULES:
            raise JITListenerError(
                f"an object for machine {file.machine}: x86-64 (62) and AArch64 (183) can be linked"
            )
        file.check_sections()
        self.file = file
        self.loaded: dict[int, int] = {}  # load addresses by the section's index in the object
        self.code: dict[int, int] = {}  # the loaded sections of code, and their sizes
        bases = {SHN_ABS: 0}  # what symbols of a section are relative to, where it is known
        for index, (_, kind, flags, _, _, size, _, _, _, _) in enumerate(file.sections):
            if not flags & SHF_ALLOC:
                bases[index] = offsets.get(index, 0)  # from the start of the section
            elif address := addresses.get(index):
                bases[index] = 0 if flags & SHF_TLS else address
                if size and kind not in _TABLE_TYPES:
                    self.loaded[index] = address
                    if flags & SHF_EXECINSTR:
                        self.code[index] = size
        self._check_addresses()
        bases.pop(SHN_UNDEF, None)
        base = bases.get
        self.values = [
            None if (start := base(section)) is None else start + value
            for _, _, _, section, value, _ in file.symbols
        ]
        if self.values:
            self.values[0] = 0  # no symbol: the addend alone

        self.names = bytearray(file.section_strings + b"\0")
        self.headers = [[0] * 10]
        self.contents: list[bytes | bytearray] = [b""]
        self.numbers = {SHN_ABS: SHN_ABS}  # of the loaded sections, by their index in the object
        self.frames: list[FDE] = []
        self.frame_section = self.frame_header = 0

    def _check_addresses(self) -> None:
        previous, end = 0, 0
        for address, index in sorted((address, index) for index, address in self.loaded.items()):
            if address < end:
                raise JITListenerError(
                    f"section {index} at address {address:#x} overlaps section {previous}, "
                    f"which ends at {end:#x}"
                )
            previous, end = index, address + self.file.sections[index].size
        if end > MEMORY_END:
            raise JITListenerError(f"section {previous} ends at {end:#x}, beyond the end of memory")

    def add_contents(self, read: Callable[[int, int], bytes] | None) -> None:
        """Adds what was loaded and what tells about it: code, data, frames, debug information."""
        loaded, numbers, strings = self.loaded, self.numbers, self.file.section_strings
        main_code = max(self.code, key=self.code.__getitem__, default=0)
        for index, (name, kind, flags, _, _, size, _, _, alignment, entry_size) in enumerate(
            self.file.sections
        ):
            address = loaded.get(index, 0)
            content: bytes | bytearray
            if not address:
                if flags & SHF_ALLOC or kind not in _UNLOADED_TYPES or not size:
                    continue
                content = self.relocated(index, 0)
            else:
                numbers[index] = len(self.headers)
                if strings.startswith(b".eh_frame\0", name):
                    content = self.relocated(index, address)
                    self.add_frames(content, address)
                elif read and kind != SHT_NOBITS:
                    content = read(address, size)
                    if len(content) != size:
                        raise JITListenerError(
                            f"section {index}: {len(content)} bytes could be read of the {size} "
                            f"at address {address:#x}"
                        )
                else:
                    content = self.relocated(index, address)
                if index == main_code:
                    name = self._new_name(b".text")
                elif strings.startswith(b".text\0", name):
                    name = self._new_name(b".text.%d" % index)
            flags &= _LINKED_FLAGS
            number = self._add(content, name, kind, flags, address, 0, 0, alignment, entry_size)
            if kind == SHT_NOBITS:
                self.headers[number][_SIZE] = size

    def _add(
        self,
        content: bytes | bytearray,
        name: int,
        kind: int,
        flags: int = 0,
        address: int = 0,
        link: int = 0,
        info: int = 0,
        alignment: int = 1,
        entry_size: int = 0,
    ) -> int:
        size = len(content)
        self.headers.append(
            [name, kind, flags, address, 0, size, link, info, alignment, entry_size]
        )
        self.contents.append(content)
        return len(self.contents) - 1

    def _new_name(self, name: bytes) -> int:
        self.names += name + b"\0"
        return len(self.names) - len(name) - 1

    def relocated(self, index: int, address: int) -> bytes | bytearray:
        """The emitted bytes of section `index`, relocated.

        In what is loaded, relocations of instructions and of the engine's own tables are left out.
        """
        content = self.file.contents(index)
        relocations = self.file.relocations(index)
        if not relocations:
            return content
        rules, values = _RULES[self.file.machine], self.values
        if address:
            relocations = [relocation for relocation in relocations if relocation[1] in rules]
        relocated = bytearray(content)
        try:
            for offset, kind, symbol, addend in relocations:
                value = values[symbol]
                if value is not None:
                    write, relative, mask = rules[kind]
                    if relative:
                        value -= address + offset
                    write(relocated, offset, (value + addend) & mask)
        except (KeyError, IndexError, StructError):
            if symbol >= len(values):
                problem = f"symbol {symbol} of {len(values)}"
            elif kind not in rules:
                problem = "not a type for data on this machine"
            else:
                problem = f"outside {len(content):#x} bytes, or its value does not fit"
            raise JITListenerError(
                f"section {index} ({self.file.section_name(index)}), "
                f"relocation of type {kind} at offset {offset:#x}: {problem}"
            ) from None
        return relocated

    def add_frames(self, content: bytes | bytearray, address: int) -> None:
        """Notes the frames of a relocated `.eh_frame` that lies at `address`."""
        frames = read_frames(content, address)
        extents = sorted((self.loaded[index], size) for index, size in self.code.items())
        for pc, size, entry in frames:
            at = bisect_right(extents, (pc, MEMORY_END)) - 1
            if size and (at < 0 or pc + size > sum(extents[at])):
                raise JITListenerError(
                    f".eh_frame, offset {entry - address:#x}: an FDE of {size:#x} bytes of code "
                    f"at address {pc:#x}, which is not in a code section of the object"
                )
        self.frames += frames
        self.frame_section = self.frame_section or len(self.headers)

    def add_frame_header(self) -> None:
        """Adds `.eh_frame_hdr`."""
        if self.frames:
            header = self.headers[self.frame_section]
            start = header[_ADDRESS]
            address = (start + header[_SIZE] + 3) & ~3
            content = frame_header(self.frames, start, address)
            if content is not None:
                name = self._new_name(b".eh_frame_hdr")
                self.frame_header = self._add(
                    content, name, SHT_PROGBITS, address=address, alignment=4
                )

    def add_tables(self) -> None:
        """Adds the symbols of what was loaded, and the string tables; the names come last."""
        file = self.file
        if file.symbol_table:
            name, strings = file.sections[file.symbol_table].name, len(self.headers) + 1
            symbols, first_global = self._symbols()
            self._add(symbols, name, SHT_SYMTAB, 0, 0, strings, first_global, 8, SYMBOL.size)
            link = file.sections[file.symbol_table].link
            if link != file.names_index:
                self._add(file.symbol_strings + b"\0", file.sections[link].name, SHT_STRTAB)
        self._add(self.names, file.sections[file.names_index].name, SHT_STRTAB)

    def _symbols(self) -> tuple[bytes, int]:
        """The symbol table's bytes, and the number of the first symbol that is not local."""
        numbers = self.numbers
        kept = [(0, 0, 0, 0, 0, 0)]
        first_global = 1
        for (name, info, other, section, _, size), value in zip(
            self.file.symbols, self.values, strict=True
        ):
            number = numbers.get(section)
            if number is not None and value is not None and info & 0xF != STT_SECTION:
                kept.append((name, info, other, number, value, size))
                first_global += info < 0x10
        try:
            return b"".join([SYMBOL.pack(*symbol) for symbol in kept]), first_global
        except StructError:
            raise JITListenerError("a symbol's value is beyond the end of memory") from None

    def image(self) -> bytes:
        """The file: headers, what is not loaded, what is loaded by address, section headers."""
        headers = self.headers
        order = sorted(range(1, len(headers)), key=lambda number: headers[number][_ADDRESS])
        if self.frame_header:
            # Next to its section in the file as in memory: libdw finds one by the other.
            order.remove(self.frame_header)
            order.insert(order.index(self.frame_section) + 1, self.frame_header)
        segments: list[bytes] = []
        position = HEADER.size + SEGMENT.size * (len(self.loaded) + bool(self.frame_header))
        parts: list[bytes | bytearray] = [b""]
        for number in order:
            content = self.contents[number]
            header = headers[number]
            flags, address, size = header[_FLAGS], header[_ADDRESS], header[_SIZE]
            gap = (address - position) % PAGE if address else -position % 8
            header[_OFFSET] = position = position + gap
            parts += bytes(gap), content
            if address:
                kind, alignment = (
                    (PT_GNU_EH_FRAME, 4) if number == self.frame_header else (PT_LOAD, PAGE)
                )
                segments.append(
                    SEGMENT.pack(
                        kind, _ACCESS[flags & (SHF_WRITE | SHF_EXECINSTR)], position,
                        address, address, len(content), size, alignment,
                    )
                )  # fmt: skip
            position += len(content)
        gap = -position % 8
        file = self.file
        parts[0] = HEADER.pack(
            b"\x7fELF", 2, 1, 1, 0, 0, ET_EXEC, file.machine, 1, 0,
            HEADER.size, position + gap, file.flags, HEADER.size, SEGMENT.size, len(segments),
            SECTION.size, len(headers), len(headers) - 1,
        ) + b"".join(segments)  # fmt: skip
        parts.append(bytes(gap))
        parts += [SECTION.pack(*header) for header in headers]
        return b"".join(parts)
