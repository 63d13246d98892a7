"""The memory and the mappings of a process that has ended, read from its core file.

A core is an ELF file: PT_LOAD segments hold memory, and two notes hold the list of mapped files
(NT_FILE) and the auxiliary vector (NT_AUXV). Of what is mapped from files, what the process has not
changed is left out (core(5)); that is read from the files.
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import elf
from .errors import GDBJITError
from .process import MAX_READ, PAGE, Mapping, Memory

ET_CORE, PT_NOTE, PN_XNUM = 4, 4, 0xFFFF
NT_AUXV, NT_FILE = 6, 0x46494C45  # <elf.h>
MAX_NOTES = 1 << 26  # bytes


class Core(Memory):
    """The memory in a core file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.pid = None
        self.who = f"core file {os.fspath(path)!r}"
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise self._error("not a regular file")
            self._end = status.st_size
            self._start = os.pread(self._fd, 64, 0)
            header, self._form = elf.read_header(self._start)
            if header.type != ET_CORE:
                raise self._error(f"an ELF file of type {header.type}, not a core file (4)")
            if header.phentsize != self._form.segment.size:
                raise self._error(f"program headers of {header.phentsize} bytes")
            count = header.phnum
            if count == PN_XNUM:
                section = self._exactly(header.shoff, self._form.section.size)
                count = elf.Section(*self._form.section.unpack(section)).info
            table = self._exactly(header.phoff, count * self._form.segment.size)
        except OSError as error:
            raise self._error("cannot read it", error) from error
        except GDBJITError as error:
            if str(error).startswith(self.who):
                raise
            raise self._error(str(error)) from error
        segments = self._form.segments(table)
        self._loads = sorted(
            (segment.vaddr, segment.vaddr + segment.filesz, segment)
            for segment in segments
            if segment.type == elf.PT_LOAD
        )
        self._auxv: dict[int, int] = {}
        self._files: list[tuple[int, int, int, str]] = []  # start, end, offset, path
        notes = next((segment for segment in segments if segment.type == PT_NOTE), None)
        if notes is not None:
            self._read_notes(self._exactly(notes.offset, min(notes.filesz, MAX_NOTES)))
        self._files.sort()
        self._open_files: dict[str, int] = {}

    def close(self) -> None:
        super().close()
        while getattr(self, "_open_files", None):
            os.close(self._open_files.popitem()[1])

    __del__ = close

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at `address`; GDBJITError where not all are in the core or a file."""
        if size > MAX_READ:
            raise self._error(f"{size} bytes at {address:#x}: at most {MAX_READ} are read at once")
        parts = []
        end = address + size
        while address < end:
            part = self._part(address, end - address)
            if not part:
                raise self._error(f"{end - address} bytes at {address:#x} are not in it")
            parts.append(part)
            address += len(part)
        return b"".join(parts)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | GDBJITError]:
        found: list[bytes | GDBJITError] = []
        for address, size in ranges:
            try:
                found.append(self.read(address, size))
            except GDBJITError as error:
                found.append(error)
        return found

    def mappings(self) -> list[Mapping]:
        """What was mapped, by address: segments with what file they are of, and files that gdb has
        left out."""
        found = []
        for start, _, segment in self._loads:
            file = self._file_at(start)
            offset, path = (file[2] + start - file[0], file[3]) if file else (0, "")
            end = start + segment.memsz
            found.append(Mapping(start, end, _permissions(segment), offset, "", bool(file), path))
        starts = {mapping.start for mapping in found}
        for start, end, offset, path in self._files:
            if start not in starts:
                permissions = self._permissions_of(path, offset)
                found.append(Mapping(start, end, permissions, offset, "", True, path))
        return sorted(found)

    def _permissions_of(self, path: str, offset: int) -> str:
        """Those with which the dynamic linker maps the file at `offset`; it is read otherwise."""
        try:
            descriptor = self._open_file(path)
            header, form = elf.read_header(self._pread(descriptor, 64, 0))
            size = header.phnum * form.segment.size
            for segment in form.segments(self._pread(descriptor, size, header.phoff)):
                start, end = segment.offset & -PAGE, segment.offset + segment.filesz
                if segment.type == elf.PT_LOAD and start <= offset < end:
                    return _permissions(segment)
        except (GDBJITError, struct.error):  # it is no ELF file, or not there any more
            pass
        return "r--p"

    def auxv(self, _form: elf.Format) -> dict[int, int]:
        return self._auxv

    def program(self) -> bytes:
        """A file header of the program's class and byte order: the core's own."""
        return self._start

    def paths(self, mapping: Mapping, name: str) -> list[str]:
        """The mapped file by its path, where it is the same machine still."""
        return [path for path in (mapping.path, name) if path.startswith("/")]

    def _part(self, address: int, size: int) -> bytes:
        """What is in one piece at `address`, at most `size` bytes; empty if nothing is."""
        index = bisect_right(self._loads, address, key=lambda load: load[0]) - 1
        if index >= 0 and address < self._loads[index][1]:
            start, end, segment = self._loads[index]
            return self._pread(self._fd, min(size, end - address), segment.offset + address - start)
        file = self._file_at(address)
        if file is None:
            return b""
        start, end, offset, path = file
        if index + 1 < len(self._loads):
            end = min(end, self._loads[index + 1][0])
        descriptor = self._open_file(path)
        if descriptor < 0:
            return b""
        return self._pread(descriptor, min(size, end - address), offset + address - start)

    def _file_at(self, address: int) -> tuple[int, int, int, str] | None:
        index = bisect_right(self._files, address, key=lambda file: file[0]) - 1
        return self._files[index] if index >= 0 and address < self._files[index][1] else None

    def _open_file(self, path: str) -> int:
        """A descriptor of a regular file, -1 if there is none."""
        if path not in self._open_files:
            try:
                if not stat.S_ISREG(Path(path).stat().st_mode):
                    return -1
                self._open_files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except (OSError, ValueError):
                return -1
        return self._open_files[path]

    def _pread(self, descriptor: int, size: int, offset: int) -> bytes:
        try:
            return os.pread(descriptor, size, offset)
        except (OSError, OverflowError) as error:
            raise self._error(f"cannot read {size} bytes at offset {offset:#x}: {error}") from error

    def _exactly(self, offset: int, size: int) -> bytes:
        data = self._pread(self._fd, size, offset) if offset + size <= self._end else b""
        if len(data) != size:
            raise self._error(f"cut off: {size} bytes at offset {offset:#x} of {self._end:#x}")
        return data

    def _read_notes(self, notes: bytes) -> None:
        for kind, content in _notes(notes, self._form):
            if kind == NT_AUXV:
                self._auxv = dict(self._form.pairs(content))
            elif kind == NT_FILE:
                self._files += _mapped_files(content, self._form)

    def _error(self, problem: str, error: OSError | None = None) -> GDBJITError:
        return GDBJITError(f"{self.who}: {problem}{f': {error.strerror}' if error else ''}")


def _permissions(segment: elf.Segment) -> str:
    letters = zip("rwx", (elf.PF_R, elf.PF_W, elf.PF_X), strict=True)
    return "".join(letter if segment.flags & bit else "-" for letter, bit in letters) + "p"


def _notes(data: bytes, form: elf.Format) -> Iterator[tuple[int, bytes]]:
    """Type and content of each note (Elf64_Nhdr: sizes of name and content, type)."""
    head = struct.Struct(form.order + "III")
    at = 0
    while at + head.size <= len(data):
        name_size, size, kind = head.unpack_from(data, at)
        at += head.size + (name_size + 3 & ~3)
        yield kind, data[at : at + size]
        at += size + 3 & ~3


def _mapped_files(content: bytes, form: elf.Format) -> Iterator[tuple[int, int, int, str]]:
    """Start, end, offset in bytes, path of each file (Linux, fs/binfmt_elf.c, fill_files_note)."""
    if len(content) < form.pair.size:
        return
    count, page = form.pair.unpack_from(content)
    row = struct.Struct(form.order + ("QQQ" if form.wide else "III"))
    rows = content[form.pair.size : form.pair.size + count * row.size]
    names = content[form.pair.size + count * row.size :].split(b"\0")
    if len(rows) == count * row.size and len(names) >= count:
        for (start, end, pages), name in zip(row.iter_unpack(rows), names, strict=False):
            yield start, end, pages * page, os.fsdecode(name)
