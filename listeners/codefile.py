"""The file that is mapped over pages of code: all that tools want to know of the code there.

It is one ELF image of every object that has code on those pages. The pages are in it as they are in
memory, as one `.text`; with it symbols, debug information and frames, linked for the addresses
where the code runs. Data is left out: it is in no memory that tools would look up in this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from mmap import PAGESIZE
from struct import pack
from typing import NamedTuple

from .demangle import numba_name
from .ehframe import FDE, frame_header
from .errors import JITListenerError
from .image import Linker
from .objectfile import (
    ET_EXEC,
    HEADER,
    PF_R,
    PF_X,
    PT_GNU_EH_FRAME,
    PT_LOAD,
    PT_NOTE,
    SECTION,
    SEGMENT,
    SHF_ALLOC,
    SHF_COMPRESSED,
    SHF_EXECINSTR,
    SHT_NOTE,
    SHT_PROGBITS,
    SHT_STRTAB,
    SHT_SYMTAB,
    STT_SECTION,
    SYMBOL,
    ObjectFile,
)

__all__ = ["CodeFile", "build_code_file", "room_for_frames"]

NT_GNU_BUILD_ID = 3
NOTE_SIZE, BUILD_ID_SIZE = 36, 20  # the longest identification that Linux keeps
TEXT = 2  # the number of that section

Loaded = tuple[ObjectFile, Mapping[int, int]]
"""An object, and the load addresses of its sections by index."""


class CodeFile(NamedTuple):
    """A file's bytes, and where in it is what is to be mapped."""

    data: bytes
    code: int
    """Offset of the code pages."""
    frames: int
    """Offset of the frames and their table, at the start of a page."""
    frames_size: int
    """In bytes; 0 if there are none."""


def room_for_frames(objects: Iterable[Loaded]) -> int:
    """A size in whole pages that is enough for the frames and their table; 0 without frames."""
    size = sum(file.sections[i].size + 8 for file, _ in objects for i in _frame_sections(file))
    # An entry has 12 bytes at least, its row in the table 8, and what comes before the rows 12.
    return _whole_pages(2 * size + 16) if size else 0


def build_code_file(
    objects: Iterable[Loaded], start: int, pages: bytes, frames: int | None
) -> CodeFile:
    """The file for `pages`, which lie at address `start`, and the `objects` that have code there.

    `frames` is the address that the frames will have: above the code, at the start of a page. If it
    is None, the file has none.

    Raises JITListenerError if an object is malformed or its machine neither x86-64 nor AArch64, or
    if the frames are 2 GiB or more from the code.
    """
    builder = _Builder(start, start + len(pages), frames)
    for file, addresses in objects:
        builder.add(file, addresses)
    return builder.file(pages)


def _whole_pages(size: int) -> int:
    return -(-size // PAGESIZE) * PAGESIZE


def _frame_sections(file: ObjectFile) -> list[int]:
    strings = file.section_strings
    return [
        index
        for index, header in enumerate(file.sections)
        if header.flags & SHF_ALLOC
        and header.size
        and strings.startswith(b".eh_frame\0", header.name)
    ]


class _Builder:
    """What the objects added so far have, linked and joined."""

    def __init__(self, start: int, end: int, frames: int | None) -> None:
        self._start, self._end, self._frames = start, end, frames
        self._machine = self._flags = 0
        self._eh_frame = bytearray()
        self._fdes: list[FDE] = []
        self._debug: dict[bytes, tuple[int, int, bytearray]] = {}  # flags, entry size, bytes
        self._local: list[tuple[int, int, int, int, int, int]] = []
        self._global: list[tuple[int, int, int, int, int, int]] = []
        self._strings = bytearray(b"\0")

    def add(self, file: ObjectFile, addresses: Mapping[int, int]) -> None:
        self._machine, self._flags = file.machine, file.flags
        placed = dict(addresses)
        frame_sections = [] if self._frames is None else _frame_sections(file)
        for index in frame_sections:
            assert self._frames is not None
            placed[index] = self._frames + len(self._eh_frame)
            self._eh_frame += bytes(-(-file.sections[index].size // 8) * 8)
        debug = self._make_room(file)
        linker = Linker(file, placed, {index: offset for index, (_, offset) in debug.items()})
        for index, (name, offset) in debug.items():
            content = linker.relocated(index, 0)
            self._debug[name][2][offset : offset + len(content)] = content
        for index in frame_sections:
            assert self._frames is not None
            content = linker.relocated(index, placed[index])
            linker.add_frames(content, placed[index])
            offset = placed[index] - self._frames
            self._eh_frame[offset : offset + len(content)] = content
        self._fdes += linker.frames
        self._add_symbols(file, linker)

    def _make_room(self, file: ObjectFile) -> dict[int, tuple[bytes, int]]:
        """The debug sections of `file` by index: their name, and their offset in those joined."""
        debug = {}
        strings = file.section_strings
        for index, header in enumerate(file.sections):
            if header.type != SHT_PROGBITS or not strings.startswith(b".debug_", header.name):
                continue
            compressed = header.flags & SHF_COMPRESSED
            size = len(file.contents(index)) if compressed else header.size
            name = strings[header.name : strings.index(b"\0", header.name)]
            flags = header.flags & ~SHF_COMPRESSED
            joined = self._debug.setdefault(name, (flags, header.entry_size, bytearray()))[2]
            joined += bytes(-len(joined) % (header.alignment or 1))
            debug[index] = name, len(joined)
            joined += bytes(size)
        return debug

    def _add_symbols(self, file: ObjectFile, linker: Linker) -> None:
        here = {index for index in linker.code if self._start <= linker.loaded[index] < self._end}
        start = len(self._strings)
        strings = file.symbol_strings + b"\0" if file.symbol_table else b""
        self._strings += strings
        for (name, info, other, section, _, size), value in zip(
            file.symbols, linker.values, strict=True
        ):
            if section in here and value is not None and info & 0xF != STT_SECTION:
                written = self._written(strings[name : strings.find(b"\0", name)])
                offset = start + name if written is None else written
                symbols = self._local if info < 0x10 else self._global
                symbols.append((offset, info, other, TEXT, value, size))

    def _written(self, name: bytes) -> int | None:
        """Where the string table has what Numba's user calls a function; None for other names.

        Tools demangle names of C++ themselves, and would take what Numba has mangled for that.
        """
        written = numba_name(name.decode("utf-8", "surrogateescape")) if b"_Z" in name else None
        if written is None:
            return None
        offset = len(self._strings)
        self._strings += written.encode("utf-8", "surrogateescape") + b"\0"
        return offset

    def file(self, pages: bytes) -> CodeFile:
        """The file: a page of headers and the build-id, the code, the frames, all else."""
        start, frames = self._start, self._frames or 0
        eh_frame = len(self._eh_frame)
        table = frame_header(self._fdes, frames, frames + eh_frame) if eh_frame else None
        if eh_frame and table is None:
            raise JITListenerError(f"frames at {frames:#x} for code at {start:#x}: 2 GiB apart")

        names = bytearray(b"\0")
        headers = [(0,) * 10]
        data = bytearray(PAGESIZE)

        def add(
            name: bytes, content: bytes | bytearray, kind: int = SHT_PROGBITS, flags: int = 0,
            address: int = 0, link: int = 0, info: int = 0, alignment: int = 1, entry: int = 0,
        ) -> None:  # fmt: skip
            size = len(content)
            headers.append(
                (len(names), kind, flags, address, len(data), size, link, info, alignment, entry)
            )
            names.extend(name + b"\0")
            data.extend(content)

        # Headers and code are one segment: readers take the load bias from where the first segment
        # begins, and from the place of the mapping less its offset in the file. Both are the same.
        below = start - PAGESIZE
        position = HEADER.size + SEGMENT.size * 4
        note = pack("<III4s20x", 4, BUILD_ID_SIZE, NT_GNU_BUILD_ID, b"GNU\0")
        segments = [
            (PT_LOAD, PF_R | PF_X, 0, below, PAGESIZE + len(pages), PAGESIZE),
            (PT_NOTE, PF_R, position, below + position, NOTE_SIZE, 4),
        ]
        headers.append((1, SHT_NOTE, SHF_ALLOC, below + position, position, NOTE_SIZE, 0, 0, 4, 0))
        names += b".note.gnu.build-id\0"
        add(b".text", pages, flags=SHF_ALLOC | SHF_EXECINSTR, address=start, alignment=16)
        data += bytes(-len(data) % PAGESIZE)
        frames_offset, frames_size = len(data), 0
        if table:
            add(b".eh_frame", self._eh_frame, flags=SHF_ALLOC, address=frames, alignment=8)
            add(b".eh_frame_hdr", table, flags=SHF_ALLOC, address=frames + eh_frame, alignment=4)
            frames_size = len(data) - frames_offset
            segments += [
                (PT_LOAD, PF_R | PF_X, frames_offset, frames, frames_size, PAGESIZE),
                (PT_GNU_EH_FRAME, PF_R, frames_offset + eh_frame, frames + eh_frame, len(table), 4),
            ]
        for name, (flags, entry, content) in self._debug.items():
            data += bytes(-len(data) % 8)
            add(name, content, flags=flags, entry=entry)
        data += bytes(-len(data) % 8)
        symbols = [(0,) * 6, *self._local, *self._global]
        add(
            b".symtab", b"".join([SYMBOL.pack(*symbol) for symbol in symbols]), SHT_SYMTAB,
            link=len(headers) + 1, info=1 + len(self._local), alignment=8, entry=SYMBOL.size,
        )  # fmt: skip
        add(b".strtab", self._strings, SHT_STRTAB)
        names_offset, names_at = len(names), len(data)
        names += b".shstrtab\0"
        headers.append((names_offset, SHT_STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0))
        data += names + bytes(-(names_at + len(names)) % 8)
        data[: HEADER.size] = HEADER.pack(
            b"\x7fELF", 2, 1, 1, 0, 0, ET_EXEC, self._machine, 1, 0,
            HEADER.size, len(data), self._flags, HEADER.size, SEGMENT.size, len(segments),
            SECTION.size, len(headers), len(headers) - 1,
        )  # fmt: skip
        data += b"".join([SECTION.pack(*header) for header in headers])
        data[HEADER.size : HEADER.size + SEGMENT.size * len(segments)] = b"".join(
            [
                SEGMENT.pack(kind, flags, offset, address, address, size, size, alignment)
                for kind, flags, offset, address, size, alignment in segments
            ]
        )
        data[position : position + NOTE_SIZE] = note
        data[position + 16 : position + NOTE_SIZE] = blake2b(
            data, digest_size=BUILD_ID_SIZE
        ).digest()
        return CodeFile(bytes(data), PAGESIZE, frames_offset, frames_size)
