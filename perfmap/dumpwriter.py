"""Writing a jitdump while the program runs, for whoever makes machine code at run time.

What perf makes of it decides what is written:

- Lines and call frames belong to the load that follows them.
- A load takes its place in memory from what perf knew there before. So functions are written by
  address, which leaves each its own; and what was unloaded goes when something else comes there:
  the format has no record for that.
- Call frames need room behind the code: see `callframes`.
- Some versions of perf tell files apart by the code alone (6.16), or by code and address. So code
  that has been written before gets an instruction behind it that does nothing and has a number.
- The last line lasts to the end of the code only if an entry says where that is.
"""

from __future__ import annotations

import os
import platform
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from perfmap.callframes import encode
from perfmap.dumpfile import DumpFile, run_directory
from perfmap.errors import PerfMapError
from perfmap.forks import follow_forks
from perfmap.jitdump import (
    CodeClose,
    CodeLoad,
    DebugEntry,
    DebugInfo,
    UnwindingInfo,
    encode_header,
    encode_record,
)
from perfmap.names import shown
from perfmap.places import JITCode, Places
from perfmap.turns import Turns

__all__ = ["JITCode", "JITDumpWriter"]

_ADDRESS_SPACE = 1 << 64
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine


class JITDumpWriter:
    """The dump of this process, `jit-PID.dump`, in `directory` or a new one of this run.

    It is made at the first `add`, and stays after `close`: read by `perf inject -j`.

    Safe across threads, and when a finalizer comes back to it in the middle of a call: no call
    ever waits for another. One that is made while another is at work is done by that other
    before it returns; an error it meets then cannot be raised and is logged (``perfmap``).

    A forked child writes a dump of its own beside its parent's, of what it adds itself: perf
    knows what it has inherited.

    Methods raise `PerfMapError`. After an error of the file system nothing of the batch is in
    the file, and the object goes on working.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        if sys.platform != "linux" or platform.machine() not in _MACHINES:
            known = ", ".join(_MACHINES)
            raise PerfMapError(f"jitdump files are written for Linux on {known} only")
        self._directory = None if directory is None else Path(directory).absolute()
        self._file: DumpFile | None = None
        self._closed = False
        self._turns = Turns()
        self._indices = count(1)
        self._places = Places()
        self._written: set[int] = set()  # hashes of code
        follow_forks(self)

    @property
    def path(self) -> Path | None:
        """The file; None before the first `add`, and in a forked child before its own."""
        return None if self._file is None else self._file.path

    def add(self, function: JITCode) -> None:
        """Write a function that can run from now on; see `add_all`."""
        self.add_all([function])

    def add_all(self, functions: Iterable[JITCode]) -> None:
        """Write functions that can run from now on, as one batch.

        The rules of a frame are put behind the function or the batch where there is room.
        """
        batch = sorted((_checked(function) for function in functions), key=lambda one: one.address)
        if batch:
            self._turns.perform(partial(self._add, batch, threading.get_native_id()))

    def forget_all(self, addresses: Iterable[int]) -> None:
        """The functions at `addresses` have been unloaded: their places are free.

        Nothing is written. perf shows them until others come to their place.
        """
        self._turns.perform(partial(self._places.free, list(addresses)))

    def close(self) -> None:
        """Write that no more will come, and close the file. To add after this is an error."""
        self._turns.perform(self._close)

    def __enter__(self) -> JITDumpWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _add(self, batch: list[JITCode], thread: int) -> None:
        if self._closed:
            raise PerfMapError("the dump is closed: make a new JITDumpWriter")
        file = self._open()
        batch = [self._salted(function) for function in batch]
        distances = self._places.take(batch)
        try:
            file.write(b"".join(self._records(batch, distances, thread)))
        except PerfMapError:
            self._places.free(function.address for function in batch)
            raise

    def _records(
        self, batch: list[JITCode], distances: list[int | None], thread: int
    ) -> Iterator[bytes]:
        now, process = time.monotonic_ns(), os.getpid()
        for function, distance in zip(batch, distances, strict=True):
            now += 1  # perf sorts by time
            address, code, name, lines, frame = function
            if frame is not None:
                rules, header = encode(frame, len(code), distance)
                mapped = 0 if distance is None else len(rules) + len(header)
                yield encode_record(UnwindingInfo(now, rules, header, mapped))
            if lines:
                yield _debug_info(function, now)
            yield encode_record(
                CodeLoad(now, process, thread, address, address, next(self._indices), name, code)
            )

    def _salted(self, function: JITCode) -> JITCode:
        key = hash(function.code)
        if key not in self._written:
            self._written.add(key)
            return function
        end = function.address + len(function.code)
        salt = _no_operation(os.getpid() ^ next(self._indices) << 16)
        if not self._places.are_free(end, end + len(salt)):
            return function
        return function._replace(code=function.code + salt)

    def _open(self) -> DumpFile:
        if self._file is None or not self._file.is_current():
            if self._file is not None:
                self._file.close()
                self._file = None
            if self._directory is None:
                self._directory = run_directory()
            machine = _MACHINES[platform.machine()]
            header = encode_header(machine, os.getpid(), time.monotonic_ns())
            self._file = DumpFile(self._directory / f"jit-{os.getpid()}.dump", header)
        return self._file

    def _close(self) -> None:
        self._closed = True
        if self._file is not None:
            try:
                if self._file.is_current():
                    self._file.write(encode_record(CodeClose(time.monotonic_ns())))
            finally:
                self._file.close()

    def start_child(self) -> None:
        """In a forked child: leave the parent's file, the next `add` makes our own."""
        self._turns.start_child()
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _checked(function: JITCode) -> JITCode:
    """The function, its name as `shown`."""
    address, code, name, _, _ = function
    if address < 0 or not code or address + len(code) > _ADDRESS_SPACE:
        raise PerfMapError(
            f"{name!r}, {len(code)} bytes at {address:#x}, is not in a 64-bit address space: "
            "give the load address of the code and its bytes"
        )
    return function._replace(name=shown(name).decode())


def _debug_info(function: JITCode, now: int) -> bytes:
    address, code, _, lines, _ = function
    entries = []
    last = None
    for place, file, line in lines:
        if (file, line) != last:
            entries.append(DebugEntry(place, line, 0, file))
            last = file, line
    entries.append(entries[-1]._replace(address=address + len(code)))
    return encode_record(DebugInfo(now, address, tuple(entries)))


def _no_operation(number: int) -> bytes:
    """Instructions of this machine that hold 32 bits and are never reached."""
    number &= 0xFFFFFFFF
    if platform.machine() == "x86_64":
        return b"\x0f\x1f\x80" + struct.pack("<I", number)  # nopl number(%rax)
    return struct.pack("<HHHH", number & 0xFFFF, 0, number >> 16, 0)  # udf, udf
