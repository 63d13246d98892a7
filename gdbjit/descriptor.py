"""Descriptors of the GDB JIT interface, and what is registered in them, to be looked at.

The list of another process is read while that process runs and edits it. There is no lock to take
and no counter to compare, so a list counts as read when all its entries and the descriptor, read
again, are the same. The words of the descriptor alone do not tell: an object that is loaded,
unloaded and loaded again at the same address leaves them as they were.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from . import elf, locks, modules
from .errors import GDBJITError
from .layout import VERSION, Layout, layout
from .process import Memory

MAX_ENTRIES = 1 << 20
ATTEMPTS = 100


@dataclass(frozen=True)
class Descriptor:
    """One `__jit_debug_descriptor` of a process.

    One of another process keeps that process's /proc/PID/mem open, and so stays with it also when
    its number is in use again.
    """

    address: int
    """Of the structure."""
    register_code: int
    """Address of its `__jit_debug_register_code`, where debuggers have their breakpoint."""
    library: str
    """Path of the file that defines it, as the kernel gives it."""
    exported: bool
    """Whether the file exports it. gdb 15 sees no other; other versions and lldb see local ones."""
    pid: int | None
    """None for this process."""
    _layout: Layout = field(repr=False, compare=False)
    _memory: Memory | None = field(repr=False, compare=False, default=None)

    def entries(self) -> list[Entry]:
        """What is registered, oldest first.

        Engines put a new entry at the head of the list, so this is the list from its end.

        Raises GDBJITError for a list that is not well-formed, or changes without a pause.
        """
        with ExitStack() as stack:
            memory = self._open(stack)
            known: dict[int, bytes] = {}
            for attempt in range(ATTEMPTS):
                known, problem, stable = self._walk(memory, known)
                if stable:
                    if problem:
                        raise GDBJITError(f"list of the descriptor at {self.address:#x}: {problem}")
                    found = []
                    for address, data in reversed(known.items()):
                        _next, _prev, symfile, size = self._layout.entry.unpack(data)
                        found.append(Entry(address, symfile, size, self))
                    return found
                # At once as long as it may be one edit that came between, then over a burst.
                time.sleep(0.001 * (attempt // 10))
            raise GDBJITError(
                f"list of the descriptor at {self.address:#x}: it changes faster than it can be "
                "read: try again, or stop the process meanwhile"
            )

    def _open(self, stack: ExitStack) -> Memory:
        """The memory to read; in this process with nobody editing the list meanwhile."""
        if self._memory is not None:
            return self._memory
        stack.enter_context(locks.of_engine(self.address))
        stack.enter_context(locks.edits)
        return stack.enter_context(Memory(None))

    def _walk(self, memory: Memory, known: Iterable[int]) -> tuple[dict[int, bytes], str, bool]:
        """The entries in list order, by address; what is wrong with the list, if anything; and
        whether it was so at one moment.

        Entries at the addresses `known` from the walk before are read all at once, so that only
        the first walk takes its time from entry to entry.
        """
        head, node = self._layout
        words = memory.read(self.address, head.size)
        version, _action, _relevant, address = head.unpack(words)
        if version != VERSION:
            raise GDBJITError(
                f"descriptor at {self.address:#x}: version is {version}, where {VERSION} is the "
                "only one there is"
            )
        ahead = _at_once(memory, known, node.size)
        entries: dict[int, bytes] = {}
        problem = ""
        while address and not problem:
            if address in entries:
                problem = f"it runs in a circle: entry {address:#x} comes again"
            elif len(entries) == MAX_ENTRIES:
                problem = f"more than {MAX_ENTRIES} entries"
            else:
                try:
                    data = ahead.get(address) or memory.read(address, node.size)
                except GDBJITError as error:
                    problem = str(error)
                else:
                    entries[address] = data
                    address = node.unpack(data)[0]
        stable = _at_once(memory, entries, node.size) == entries
        return entries, problem, stable and words == memory.read(self.address, head.size)


def _at_once(memory: Memory, addresses: Iterable[int], size: int) -> dict[int, bytes]:
    """What is at the addresses, empty if some of them are not mapped any more."""
    wanted = list(addresses)
    try:
        return dict(zip(wanted, memory.read_all(wanted, size), strict=True))
    except GDBJITError:
        return {}


@dataclass(frozen=True)
class Entry:
    """One registered object."""

    address: int
    """Of its `jit_code_entry`."""
    symfile_address: int
    size: int
    """Bytes of its image."""
    _descriptor: Descriptor = field(repr=False, compare=False)

    @property
    def symfile(self) -> bytes:
        """The image, copied from memory now; GDBJITError if it is not registered any more."""
        with ExitStack() as stack:
            memory = self._descriptor._open(stack)
            image = memory.read(self.symfile_address, self.size)
            if not self._is_linked(memory):
                raise GDBJITError(
                    f"the entry at {self.address:#x} was unregistered: list the entries again"
                )
            return image

    def _is_linked(self, memory: Memory) -> bool:
        """Whether the list still has this entry, so that what was read before was the image.

        An entry is unlinked before it is freed, by a change of what points at it. Its neighbour
        tells that without a walk; not every engine keeps `prev`, so the list itself is asked next.
        """
        descriptor = self._descriptor
        head, node = descriptor._layout
        try:
            _next, prev, *image = node.unpack(memory.read(self.address, node.size))
            if image != [self.symfile_address, self.size]:
                return False
            if prev:
                following = node.unpack(memory.read(prev, node.size))[0]
            else:
                following = head.unpack(memory.read(descriptor.address, head.size))[3]
            if following == self.address:
                return True
        except GDBJITError:
            pass
        return self in descriptor.entries()


def descriptors(pid: int | None = None) -> list[Descriptor]:
    """The descriptors of this process, or of process `pid`, in load order.

    A file that has symbols only for one of descriptor and function has no descriptor: debuggers
    pass it over too. Reading another process takes the right to trace it, and does not stop it.

    Raises GDBJITError if there is no such process or no right to read it.
    """
    own = pid is None or pid == os.getpid()
    memory = Memory(None if own else pid)
    found = [
        Descriptor(
            module.bias + module.definition.descriptor,
            module.bias + module.definition.register_code,
            module.path,
            module.definition.exported,
            memory.pid,
            module.file.layout,
            None if own else memory,
        )
        for module in modules.defining(memory)
    ]
    if own:
        memory.close()
    return found


def own(address: int, register_code: int, library: str) -> Descriptor:
    """The exported descriptor at `address` of this process."""
    header, _form = elf.native()
    native = layout(header.ident[4], header.ident[5], header.machine)
    return Descriptor(address, register_code, library, True, None, native)
