"""The memory and the mappings of a process, read through /proc.

Reads of this process go the same way as those of another: an address that is not mapped is then
an error, where a pointer followed with ctypes would end the process. See proc(5).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import os
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import elf
from .errors import GDBJITError

# pread() makes room for all it is asked for before it reads, so a size that is more than this
# is compared with what is mapped first.
BULK = 1 << 20
BATCH = 1 << 24  # bytes of one system call
MAX_READ = 1 << 30
IOV_MAX = 1024
PAGE = 4096  # the smallest there is
ADDRESS_SPACE = 1 << 64


class Mapping(NamedTuple):
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str


class Memory:
    """The memory of process `pid`, or of this one where that is None.

    The open file belongs to the address space, not to the number: when the process has ended or
    has replaced its program, reads fail, also where the number is in use again.
    """

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self.who = "this process" if pid is None else f"process {pid}"
        self.proc = f"/proc/{'self' if pid is None else pid}"
        self._fd = -1
        if pid is not None and pid <= 0:
            raise GDBJITError(f"{pid} is not a process id: give a positive number")
        try:
            self._fd = os.open(f"{self.proc}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            # After a change of user a process may not open its own file, but read itself it may.
            if pid is not None or error.errno != errno.EACCES:
                raise self._error("cannot read its memory", error) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at `address`; GDBJITError where not all of them are mapped."""
        if size > BULK:
            self._check_mapped(address, size)
        parts = []
        rest = size
        while rest:
            try:
                part = (
                    os.pread(self._fd, rest, address)
                    if self._fd >= 0
                    else _read_vm(os.getpid(), [(address, rest)])
                )
            except OSError as error:
                raise self._error(f"cannot read {rest} bytes at {address:#x}", error) from error
            except (OverflowError, MemoryError, struct.error) as error:
                raise self._error(f"cannot read {rest} bytes at {address:#x}: {error!r}") from error
            if not part:
                raise self._error("it has ended, or runs another program now")
            if len(part) == size:
                return part
            parts.append(part)
            address += len(part)
            rest -= len(part)
        return b"".join(parts)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | GDBJITError]:
        """The bytes of each range (address, size), or why they cannot be read.

        Ranges near each other are read in one piece. Each piece of a system call takes the lock
        that the process itself wants in order to map memory: their number is what reading costs it.
        """
        spans = _spans(ranges)
        found: list[bytes | GDBJITError] = [b""] * len(ranges)
        for (start, _, inside), data in zip(spans, self._pieces(spans), strict=True):
            for index in inside:
                address, size = ranges[index]
                try:
                    found[index] = (
                        self.read(address, size)
                        if data is None
                        else data[address - start : address - start + size]
                    )
                except GDBJITError as error:
                    found[index] = error
        return found

    def _pieces(self, spans: Sequence[_Span]) -> list[bytes | None]:
        """The bytes of each span, None where they cannot be read in this way."""
        pid = os.getpid() if self.pid is None else self.pid
        found: list[bytes | None] = []
        while len(found) < len(spans):
            batch = []
            room = BATCH
            for start, end, _ in spans[len(found) : len(found) + IOV_MAX]:
                room -= end - start
                if end - start > BULK or end > ADDRESS_SPACE or room < 0:
                    break
                batch.append((start, end - start))
            try:
                data = _read_vm(pid, batch) if batch else b""
            except OSError as error:
                if error.errno != errno.EFAULT:  # a sandbox forbids it, or the process has ended
                    return found + [None] * (len(spans) - len(found))
                data = b""
            at = read = 0
            for _, size in batch:
                if at + size > len(data):
                    break
                found.append(data[at : at + size])
                at += size
                read += 1
            if read < len(batch) or not batch:  # the kernel stops at what is not mapped
                found.append(None)
        # The call goes by the number, which may be another program's by now.
        return [None] * len(spans) if self._has_gone() else found

    def _has_gone(self) -> bool:
        """Whether the address space that the open file belongs to is no more."""
        try:
            return self._fd >= 0 and not os.pread(self._fd, 1, 0)
        except OSError:  # nothing is mapped there
            return False

    def string(self, address: int, limit: int = 4096) -> bytes:
        """The NUL-terminated string at `address`, at most `limit` bytes of it."""
        text = b""
        while len(text) < limit:
            # Not over the end of a page: the next one need not be mapped.
            text += self.read(address + len(text), 256 - (address + len(text)) % 256)
            if b"\0" in text:
                return text[: text.index(b"\0")]
        raise self._error(f"no string of less than {limit} bytes at {address:#x}")

    def mappings(self) -> list[Mapping]:
        """What is mapped, by address."""
        try:
            with open(f"{self.proc}/maps", "rb") as file:  # noqa: PTH123 (pathlib is slower)
                # Of what ends a line elsewhere, the kernel escapes the newline alone in names.
                lines = file.read().split(b"\n")[:-1]
        except OSError as error:
            raise self._error("cannot read its mappings", error) from error
        return [_mapping(os.fsdecode(line)) for line in lines]

    def auxv(self, form: elf.Format) -> dict[int, int]:
        """The auxiliary vector, of which this process tells itself AT_PHDR and AT_PHNUM alone."""
        if self.pid is None:
            getauxval = ctypes.PyDLL(None).getauxval
            getauxval.restype, getauxval.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
            return {kind: getauxval(kind) for kind in (elf.AT_PHDR, elf.AT_PHNUM)}
        try:
            with open(f"{self.proc}/auxv", "rb") as file:  # noqa: PTH123
                vector = file.read()
        except OSError as error:
            raise self._error("cannot read its auxiliary vector", error) from error
        return dict(form.pairs(vector))

    def program(self) -> bytes:
        """The file header of the program that runs."""
        try:
            with open(f"{self.proc}/exe", "rb") as file:  # noqa: PTH123 (follows the kernel's link)
                return file.read(64)
        except OSError as error:
            raise self._error(f"cannot read {self.proc}/exe", error) from error

    def paths(self, mapping: Mapping, name: str) -> list[str]:
        """Ways to a mapped file, surest first.

        map_files leads to the very file, deleted or not, but not for every user. root is where the
        process sees its files. `name`, as the dynamic linker was given it, may lead to a file
        without a path, by a descriptor.
        """
        paths = [
            f"{self.proc}/map_files/{mapping.start:x}-{mapping.end:x}",
            f"{self.proc}/root{mapping.path}",
        ]
        if name.startswith("/"):
            paths.append(f"{self.proc}/root{name}")
        return paths

    def _check_mapped(self, address: int, size: int) -> None:
        at = address
        for mapping in self.mappings():
            if mapping.start <= at < mapping.end and mapping.permissions[0] == "r":
                at = mapping.end
        if at < address + size:
            raise self._error(f"{size} bytes at {address:#x} are not mapped")
        if size > MAX_READ:
            raise self._error(f"{size} bytes at {address:#x}: at most {MAX_READ} are read at once")

    def _is_zombie(self) -> bool:
        """Whether it has ended and nobody has waited for it yet: only root may open its files."""
        try:
            with open(f"{self.proc}/stat", "rb") as file:  # noqa: PTH123
                return file.read().rpartition(b") ")[2][:1] in (b"Z", b"X")
        except OSError:
            return False

    def _error(self, problem: str, error: OSError | None = None) -> GDBJITError:
        who = self.who
        if error is None:
            return GDBJITError(f"{who}: {problem}")
        if error.errno in (errno.EACCES, errno.EPERM):
            if self._is_zombie():
                return GDBJITError(f"{who}: it has ended")
            return GDBJITError(
                f"{who}: {problem}: no right to trace it. Run as the same user; where "
                "/proc/sys/kernel/yama/ptrace_scope is 1 or more, as root or with CAP_SYS_PTRACE "
                "(containers: --cap-add=SYS_PTRACE)"
            )
        if error.errno in (errno.ENOENT, errno.ESRCH):
            if self.pid is None:
                return GDBJITError(
                    f"{who}: {problem}: {error}; this needs Linux with /proc mounted"
                )
            return GDBJITError(f"{who}: there is no such process (any more)")
        return GDBJITError(f"{who}: {problem}: {error.strerror}")


class _Span(NamedTuple):
    """A piece of memory that holds some ranges."""

    start: int
    end: int
    ranges: list[int]
    """Their indices."""


def _spans(ranges: Sequence[tuple[int, int]]) -> list[_Span]:
    """Pieces that cover the ranges, by address. None has a page in which there is no range."""
    spans: list[_Span] = []
    start = end = 0
    inside: list[int] = []
    for index in sorted(range(len(ranges)), key=ranges.__getitem__):
        address, size = ranges[index]
        if not inside or address - end >= PAGE or address + size - start > BULK:
            start, end, inside = address, address, []
            spans.append(_Span(start, end, inside))
        inside.append(index)
        if address + size > end:
            end = address + size
            spans[-1] = _Span(start, end, inside)
    return spans


def _read_vm(pid: int, ranges: Sequence[tuple[int, int]]) -> bytes:
    """The bytes of the ranges (address, size), up to one that is not mapped.

    See process_vm_readv(2). Raises OSError.
    """
    total = sum(size for _, size in ranges)
    buffer = ctypes.create_string_buffer(total)
    here = struct.pack("NN", ctypes.addressof(buffer), total)
    there = struct.pack("NN" * len(ranges), *itertools.chain(*ranges))
    got = _process_vm_readv()(pid, here, 1, there, len(ranges), 0)
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[:got]


@functools.cache
def _process_vm_readv() -> Callable[..., int]:
    ranges = (ctypes.c_char_p, ctypes.c_ulong)
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_ssize_t, ctypes.c_int, *ranges, *ranges, ctypes.c_ulong, use_errno=True
    )
    return prototype(("process_vm_readv", ctypes.CDLL(None)))


def _mapping(line: str) -> Mapping:
    fields = line.split(maxsplit=5)
    start, _, end = fields[0].partition("-")
    path = fields[5].replace("\\012", "\n") if len(fields) > 5 else ""
    return Mapping(
        int(start, 16), int(end, 16), fields[1], int(fields[2], 16), fields[3], int(fields[4]), path
    )
