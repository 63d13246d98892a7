"""jitdump: code made at run time as perf reads it from a file, with times, lines and call frames.

A program writes `jit-PID.dump` while it runs: a header, then records, each with its time. After
`perf record -k mono`, `perf inject -j` makes an ELF file of every function and tells perf from when
on it lay where. This is the format alone; `JITDumpWriter` writes such a file for perf.

Source: tools/perf/Documentation/jitdump-specification.txt of Linux, and tools/perf/util/jitdump.h
and jitdump.c where that is not exact: eh_frame comes before eh_frame_hdr, and what is said of
lines and call frames belongs to the load that follows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from perfmap.errors import PerfMapError
from perfmap.namedfile import opened

__all__ = [
    "CodeClose",
    "CodeLoad",
    "CodeMove",
    "DebugEntry",
    "DebugInfo",
    "JITDumpFile",
    "Record",
    "UnknownRecord",
    "UnwindingInfo",
    "encode_header",
    "encode_record",
    "read_jitdump",
]

MAGIC = 0x4A695444  # "JiTD", in the byte order of all that follows
VERSION = 1

# magic, version, size, e_machine, padding, pid, time, flags
_HEADER = "IIIIIIQQ"
HEADER_SIZE = 40
_PREFIX = "IIQ"  # of every record: id, size with this prefix, time
PREFIX_SIZE = 16
CODE_LOAD, CODE_MOVE, CODE_DEBUG_INFO, CODE_CLOSE, CODE_UNWINDING_INFO = range(5)
_LOAD = "IIQQQQ"  # pid, tid, virtual address, address, size, index; then name, NUL, code
_MOVE = "IIQQQQQ"  # pid, tid, virtual address, old address, new address, size, index
_DEBUG_INFO = "QQ"  # address, number of entries; then these
_DEBUG_ENTRY = "QiI"  # address, line, discriminator; then file, NUL
_UNWINDING_INFO = "QQQ"  # size of the data, of eh_frame_hdr in it, as mapped; then the data
_LARGEST = (1 << 31) - 1  # perf keeps sizes in an int


class CodeLoad(NamedTuple):
    """A function has been loaded."""

    time: int
    """In nanoseconds of CLOCK_MONOTONIC, unless the file's flags say otherwise."""
    pid: int
    tid: int
    virtual_address: int
    address: int
    code_index: int
    """A number of its own: perf makes `jitted-PID-INDEX.so` of the function."""
    name: str
    code: bytes


class CodeMove(NamedTuple):
    """A function has been moved."""

    time: int
    pid: int
    tid: int
    virtual_address: int
    old_address: int
    address: int
    size: int
    """In bytes."""
    code_index: int
    """That of its `CodeLoad`."""


class DebugEntry(NamedTuple):
    """From `address` on the code is of this source line."""

    address: int
    line: int
    discriminator: int
    file: str


class DebugInfo(NamedTuple):
    """The source lines of the function at `address`, which the next `CodeLoad` loads."""

    time: int
    address: int
    entries: tuple[DebugEntry, ...]


class CodeClose(NamedTuple):
    """No more code will be loaded."""

    time: int


class UnwindingInfo(NamedTuple):
    """Call frame information of the function that the next `CodeLoad` loads.

    Encoded as if `eh_frame` began where the code ends, at the next multiple of 8, and
    `eh_frame_hdr` where `eh_frame` ends.
    """

    time: int
    eh_frame: bytes
    eh_frame_hdr: bytes
    mapped_size: int
    """How many bytes behind the code perf is to take for these, or 0."""


class UnknownRecord(NamedTuple):
    """A record of an id that is not known here."""

    time: int
    id: int
    content: bytes
    """What follows the record's prefix."""


Record = CodeLoad | CodeMove | DebugInfo | CodeClose | UnwindingInfo | UnknownRecord


class JITDumpFile(NamedTuple):
    """What a jitdump file holds."""

    byte_order: str
    """`<` or `>`, as in `struct`."""
    machine: int
    """The `e_machine` of ELF."""
    pid: int
    time: int
    flags: int
    """Bit 0: times are of a clock of the processor."""
    records: tuple[Record, ...]
    truncated: int
    """How many bytes at the end are a record cut off, as a program that was killed leaves it."""


# Writing


def encode_header(
    machine: int, pid: int, time: int, flags: int = 0, byte_order: str = "<"
) -> bytes:
    """The header of a jitdump file."""
    return Struct(byte_order + _HEADER).pack(
        MAGIC, VERSION, HEADER_SIZE, machine, 0, pid, time, flags
    )


def encode_record(record: Record, byte_order: str = "<") -> bytes:
    """The bytes of a record.

    Raises PerfMapError if a name has a NUL or cannot be encoded, a number does not fit its field,
    or the record is larger than perf can read (2 GiB).
    """
    try:
        kind, content = _content(record, byte_order)
        size = PREFIX_SIZE + len(content)
        if size > _LARGEST:
            raise PerfMapError(f"a record of {size} bytes: perf reads up to {_LARGEST}")
        return Struct(byte_order + _PREFIX).pack(kind, size, record.time) + content
    except StructError as error:
        raise PerfMapError(f"{type(record).__name__}: a number does not fit: {error}") from None


def _content(record: Record, order: str) -> tuple[int, bytes]:
    if isinstance(record, CodeLoad):
        _, pid, tid, virtual_address, address, index, name, code = record
        fields = Struct(order + _LOAD).pack(pid, tid, virtual_address, address, len(code), index)
        return CODE_LOAD, fields + _encoded(name) + code
    if isinstance(record, DebugInfo):
        pack = Struct(order + _DEBUG_ENTRY).pack
        entries = [
            pack(address, line, discriminator) + _encoded(file)
            for address, line, discriminator, file in record.entries
        ]
        fields = Struct(order + _DEBUG_INFO).pack(record.address, len(entries))
        return CODE_DEBUG_INFO, fields + b"".join(entries)
    if isinstance(record, UnwindingInfo):
        data = record.eh_frame + record.eh_frame_hdr
        sizes = len(data), len(record.eh_frame_hdr), record.mapped_size
        return CODE_UNWINDING_INFO, Struct(order + _UNWINDING_INFO).pack(*sizes) + data
    if isinstance(record, CodeMove):
        return CODE_MOVE, Struct(order + _MOVE).pack(*record[1:])
    if isinstance(record, CodeClose):
        return CODE_CLOSE, b""
    return record.id, record.content


def _encoded(text: str) -> bytes:
    if "\0" in text:
        raise PerfMapError(f"{text[:60]!r} has a NUL, which ends a name")
    try:
        return text.encode(errors="surrogateescape") + b"\0"
    except UnicodeEncodeError as error:
        raise PerfMapError(f"{text[:60]!r} is not a name: {error.reason}") from None


# Reading


def read_jitdump(path: str | os.PathLike[str]) -> JITDumpFile:
    """The header and the records of a jitdump file, of either byte order.

    A last record that is cut off is left out, and `truncated` tells. Bytes of a name that are not
    UTF-8 become surrogate escapes. Raises `PerfMapError`, with the offset, for a file that cannot
    be read and for what is malformed.
    """
    with opened(path, "jitdump file") as file:
        data = file.read()
    return _Reader(data, str(path)).file()


class _Reader:
    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self._path = path
        self._offset = 0

    def file(self) -> JITDumpFile:
        data = self._data
        magic = data[:4]
        if magic not in (MAGIC.to_bytes(4, "little"), MAGIC.to_bytes(4, "big")):
            raise self._error(f"{magic!r} is not the magic number of a jitdump")
        order = self._order = "<" if magic[0] == MAGIC & 0xFF else ">"
        if len(data) < HEADER_SIZE:
            raise self._error(f"a header of {HEADER_SIZE} bytes is cut off after {len(data)}")
        _, version, size, machine, _, pid, time, flags = Struct(order + _HEADER).unpack_from(data)
        if version != VERSION:
            raise self._error(f"version {version}: {VERSION} is read")
        if not HEADER_SIZE <= size <= len(data):
            raise self._error(f"a header of {size} bytes in a file of {len(data)}")
        self._offset = size
        prefix = Struct(order + _PREFIX)
        records: list[Record] = []
        while len(data) - self._offset >= PREFIX_SIZE:
            kind, size, when = prefix.unpack_from(data, self._offset)
            if size < PREFIX_SIZE:
                raise self._error(f"a record of {size} bytes: its prefix alone has {PREFIX_SIZE}")
            if size > len(data) - self._offset:
                break
            content = data[self._offset + PREFIX_SIZE : self._offset + size]
            records.append(self._record(kind, when, content))
            self._offset += size
        rest = len(data) - self._offset
        return JITDumpFile(order, machine, pid, time, flags, tuple(records), rest)

    def _record(self, kind: int, time: int, content: bytes) -> Record:
        read = self._READERS.get(kind)
        if read is None:
            return UnknownRecord(time, kind, content)
        try:
            return read(self, time, content)
        except StructError:
            raise self._error(
                f"a record of id {kind} and {PREFIX_SIZE + len(content)} bytes, "
                "which is less than its fields need"
            ) from None

    def _load(self, time: int, content: bytes) -> CodeLoad:
        fields = Struct(self._order + _LOAD)
        pid, tid, virtual_address, address, size, index = fields.unpack_from(content)
        name, start = self._text(content, fields.size)
        if size != len(content) - start:
            raise self._error(
                f"a load of {size} bytes of code, with {len(content) - start} behind its name"
            )
        return CodeLoad(time, pid, tid, virtual_address, address, index, name, content[start:])

    def _move(self, time: int, content: bytes) -> CodeMove:
        return CodeMove(time, *Struct(self._order + _MOVE).unpack_from(content))

    def _debug_info(self, time: int, content: bytes) -> DebugInfo:
        fields, entry = Struct(self._order + _DEBUG_INFO), Struct(self._order + _DEBUG_ENTRY)
        address, count = fields.unpack_from(content)
        at = fields.size
        entries = []
        for _ in range(count):
            place, line, discriminator = entry.unpack_from(content, at)
            file, at = self._text(content, at + entry.size)
            entries.append(DebugEntry(place, line, discriminator, file))
        return DebugInfo(time, address, tuple(entries))

    def _close(self, time: int, _content: bytes) -> CodeClose:
        return CodeClose(time)

    def _unwinding_info(self, time: int, content: bytes) -> UnwindingInfo:
        fields = Struct(self._order + _UNWINDING_INFO)
        size, header_size, mapped_size = fields.unpack_from(content)
        data = content[fields.size : fields.size + size]
        if header_size > size or len(data) != size:
            raise self._error(
                f"{len(content) - fields.size} bytes of unwinding data, said to be {size}, "
                f"with a header of {header_size}"
            )
        split = size - header_size
        return UnwindingInfo(time, data[:split], data[split:], mapped_size)

    def _text(self, content: bytes, at: int) -> tuple[str, int]:
        """The text at an offset of a record's content, and the offset behind it."""
        end = content.find(b"\0", at)
        if end < 0:
            raise self._error("a record with a name that has no end")
        return content[at:end].decode(errors="surrogateescape"), end + 1

    def _error(self, what: str) -> PerfMapError:
        return PerfMapError(f"{self._path!r}, offset {self._offset:#x}: {what}")

    _READERS: dict[int, Callable[[_Reader, int, bytes], Record]] = {  # noqa: RUF012
        CODE_LOAD: _load,
        CODE_MOVE: _move,
        CODE_DEBUG_INFO: _debug_info,
        CODE_CLOSE: _close,
        CODE_UNWINDING_INFO: _unwinding_info,
    }
