"""Descriptors of the GDB JIT interface, and what is registered in them, to be looked at.

Those of another process are read while that process runs and edits its lists, without its help:
`codelist` says how that comes out right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from . import elf, locks, modules
from .codelist import CodeList
from .core import Core
from .errors import GDBJITError
from .layout import Layout, layout
from .process import Memory

MAX_IMAGES = 1 << 32  # bytes
MAX_UNREADABLE = 100
CHUNK, CHUNK_ENTRIES = 1 << 24, 1 << 10  # bytes of images, and images, that are read together


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
    """None for this process, and in a core file."""
    _layout: Layout = field(repr=False, compare=False)
    _memory: Memory | None = field(repr=False, compare=False, default=None)

    def entries(self) -> list[Entry]:
        """What is registered, oldest first.

        Engines put a new entry at the head of the list, so this is the list from its end.

        It is the list as it was at one moment. Where it changes too fast for that, entries that
        come or go in the meantime may be in it or not.

        Raises GDBJITError for a list that is not well-formed.
        """
        with ExitStack() as stack:
            nodes = self._list(self._open(stack)).entries()
        return self._entries(nodes)

    def images(self) -> Iterator[tuple[Entry, bytes]]:
        """What is registered, oldest first, each entry with its image: many are read at once.

        Entries that are unregistered meanwhile are left out. Raises GDBJITError as `entries`
        does, at once if there are more than 4 GiB of images, and in the end if some cannot be read.
        """
        with ExitStack() as stack:
            code_list = self._list(self._open(stack))
            nodes = code_list.entries()
            points_back = code_list.points_back(nodes)
        entries = self._entries(nodes)
        total = sum(entry.size for entry in entries)
        if total > MAX_IMAGES:
            raise GDBJITError(
                f"list of the descriptor at {self.address:#x}: {len(entries)} images with "
                f"{total} bytes: more than {MAX_IMAGES} are not read"
            )
        unreadable: list[tuple[Entry, GDBJITError]] = []
        at = 0
        while at < len(entries) and len(unreadable) < MAX_UNREADABLE:
            end, size = at + 1, entries[at].size
            while end < min(len(entries), at + CHUNK_ENTRIES) and size <= CHUNK:
                size += entries[end].size
                end += 1
            chunk = {entry.address: nodes[entry.address] for entry in entries[at:end]}
            with ExitStack() as stack:
                images = self._list(self._open(stack)).images(chunk, points_back)
            for entry in entries[at:end]:
                image = images.get(entry.address)
                if isinstance(image, bytes):
                    yield entry, image
                elif image is not None:
                    unreadable.append((entry, image))
            at = end
        if unreadable:
            entry, error = unreadable[0]
            raise GDBJITError(
                f"list of the descriptor at {self.address:#x}: {len(unreadable)} images cannot be "
                f"read; that of the entry at {entry.address:#x}: {error}"
            )

    def words(self) -> bytes:
        """The descriptor itself, which most changes of the list change; it is read in no time."""
        return self.read(self.address, self._layout.descriptor.size)

    def read(self, address: int, size: int) -> bytes:
        """Memory of the descriptor's process; GDBJITError where not all of it is mapped."""
        with ExitStack() as stack:
            return self._open(stack).read(address, size)

    def _entries(self, nodes: dict[int, bytes]) -> list[Entry]:
        """The entries of these structures, in reverse order."""
        found = []
        for address, data in reversed(nodes.items()):
            _next, _prev, symfile, size = self._layout.entry.unpack(data)
            found.append(Entry(address, symfile, size, self))
        return found

    def _list(self, memory: Memory) -> CodeList:
        return CodeList(memory, self.address, self._layout)

    def _open(self, stack: ExitStack) -> Memory:
        """The memory to read; in this process with nobody editing the list meanwhile."""
        if self._memory is not None:
            return self._memory
        stack.enter_context(locks.of_engine(self.address))
        stack.enter_context(locks.edits)
        return stack.enter_context(Memory(None))


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


def descriptors(
    pid: int | None = None, *, core: str | os.PathLike[str] | None = None
) -> list[Descriptor]:
    """The descriptors of this process, of process `pid` or of a core file, in load order.

    A file that has symbols only for one of descriptor and function has no descriptor: debuggers
    pass it over too. Reading another process takes the right to trace it, and does not stop it. For
    a core, the files that were loaded are looked for where they were.

    Raises GDBJITError if there is no such process, no right to read it, or no such core.
    """
    if pid is not None and core is not None:
        raise GDBJITError("descriptors() takes a pid or a core, not both: leave one out")
    own = core is None and (pid is None or pid == os.getpid())
    memory = Core(core) if core is not None else Memory(None if own else pid)
    found = [
        Descriptor(
            module.bias + module.definition.descriptor,
            module.bias + module.definition.register_code,
            module.path,
            module.definition.exported,
            pid if not own else None,
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
