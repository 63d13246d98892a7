"""Descriptors of the GDB JIT interface, and what is registered in them, to be looked at.

The list of another process is read while that process runs and edits it. There is no lock to take
and no counter to compare, so a list counts as read when all its entries and the descriptor, read
again, are the same. The words of the descriptor alone do not tell: an object that is loaded,
unloaded and loaded again at the same address leaves them as they were.

Long lists may change faster than that. They are then followed from entry to entry, each of which
must point back at the one before, which it does only while both are linked. What stays in the list
meanwhile is found, what comes or goes may be, and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from . import elf, locks, modules
from .core import Core
from .errors import GDBJITError
from .layout import VERSION, Layout, layout
from .process import Memory

MAX_ENTRIES = 1 << 20
MAX_IMAGES = 1 << 32  # bytes
CHUNK = 1 << 24  # bytes of images that are read together
CHUNK_ENTRIES = 1 << 10
ATTEMPTS = 20
MOMENT = 0.02  # seconds
STEPS_BACK = 1000
PATIENCE = 0.0005  # seconds; a thread may be stopped in the middle of an edit


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
            memory = self._open(stack)
            known: dict[int, bytes] = {}
            start = time.monotonic()
            for attempt in range(ATTEMPTS):
                known, problem, stable = self._walk(memory, known)
                if stable:
                    if problem:
                        raise GDBJITError(f"list of the descriptor at {self.address:#x}: {problem}")
                    return self._entries(known)
                if attempt and time.monotonic() - start > MOMENT:
                    break
                # At once as long as it may be one edit that came between, then over a burst.
                time.sleep(0.001 * (attempt // 10))
            followed = self._follow(memory, known)
            if followed is None:
                raise GDBJITError(
                    f"list of the descriptor at {self.address:#x}: it changes faster than it can "
                    "be read: try again, or stop the process meanwhile"
                )
            return self._entries(followed)

    def images(self) -> Iterator[tuple[Entry, bytes]]:
        """What is registered, oldest first, each entry with its image: many are read at once.

        Entries that are unregistered meanwhile are left out. Raises GDBJITError as `entries`
        does, at once if there are more than 4 GiB of images, and in the end if some cannot be read.
        """
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        if total > MAX_IMAGES:
            raise GDBJITError(
                f"list of the descriptor at {self.address:#x}: {len(entries)} images with "
                f"{total} bytes: more than {MAX_IMAGES} are not read"
            )
        unreadable: list[tuple[Entry, GDBJITError]] = []
        while entries:
            size = count = 0
            while count < min(len(entries), CHUNK_ENTRIES) and (
                not count or size + entries[count].size <= CHUNK
            ):
                size += entries[count].size
                count += 1
            chunk, entries = entries[:count], entries[count:]
            for entry, image in self._images(chunk):
                if isinstance(image, bytes):
                    yield entry, image
                else:
                    unreadable.append((entry, image))
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
        found = []
        for address, data in reversed(nodes.items()):
            _next, _prev, symfile, size = self._layout.entry.unpack(data)
            found.append(Entry(address, symfile, size, self))
        return found

    def _images(self, entries: list[Entry]) -> list[tuple[Entry, bytes | GDBJITError]]:
        """The images of those entries that are registered, or why they cannot be read.

        An image is read twice, and the entry found registered in between: so it was no memory that
        something else was being written to.
        """
        ranges = [(entry.symfile_address, entry.size) for entry in entries]
        with ExitStack() as stack:
            memory = self._open(stack)
            images = memory.read_ranges(ranges)
            linked = self._are_linked(memory, entries)
            again = memory.read_ranges(ranges)
            found = []
            for entry, image, same in zip(entries, images, again, strict=True):
                if entry not in linked:
                    continue
                if isinstance(image, bytes) and image != same:
                    try:
                        image = entry.symfile
                    except GDBJITError as error:
                        image = error
                    if entry not in self.entries():
                        continue
                found.append((entry, image))
            return found

    def _are_linked(self, memory: Memory, entries: list[Entry]) -> set[Entry]:
        """Those of the entries that are in the list."""
        head, node = self._layout
        nodes = _at_once(memory, [entry.address for entry in entries], node.size)
        fields = {address: node.unpack(data) for address, data in nodes.items()}
        before = {prev for _, prev, _, _ in fields.values() if prev}
        following = {0: head.unpack(memory.read(self.address, head.size))[3]}
        for address, data in _at_once(memory, before, node.size).items():
            following[address] = node.unpack(data)[0]
        linked = set()
        for entry in entries:
            _next, prev, *image = fields.get(entry.address, (0, 0, 0, 0))
            if following.get(prev) == entry.address and image == [
                entry.symfile_address,
                entry.size,
            ]:
                linked.add(entry)
        if len(linked) < len(entries):  # some have gone; or nobody keeps `prev`
            linked |= set(self.entries()).intersection(entries)
        return linked

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

    def _follow(self, memory: Memory, known: Iterable[int]) -> dict[int, bytes] | None:
        """The entries in list order, by address, each found linked behind the one before.

        Entries at the addresses `known` are read at once. None if the list does not hold still
        even for that, or nobody keeps `prev`.
        """
        head, node = self._layout
        ahead = _at_once(memory, known, node.size)
        nodes: dict[int, bytes] = {}
        chain = [0]  # addresses of entries; the descriptor, in front of them all, counts as 0
        following = head.unpack(memory.read(self.address, head.size))[3]
        for _ in range(STEPS_BACK):
            while following and following not in nodes and len(chain) <= MAX_ENTRIES:
                try:
                    data = ahead.pop(following, None) or memory.read(following, node.size)
                except GDBJITError:
                    break  # it has gone
                after, before, *_ = node.unpack(data)
                if before != chain[-1]:
                    break  # one of the two has
                nodes[following] = data
                chain.append(following)
                following = after
            if not following:
                return nodes
            # Back to the last one that is linked still, and to where it points now.
            stuck = following
            while chain[1:]:
                data = _at_once(memory, chain[-1:], node.size).get(chain[-1], bytes(node.size))
                following, before, *image = node.unpack(data)
                if before == chain[-2] and image == list(node.unpack(nodes[chain[-1]])[2:]):
                    break
                del nodes[chain.pop()]
            else:
                following = head.unpack(memory.read(self.address, head.size))[3]
            if following == stuck:
                time.sleep(PATIENCE)
        return None


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


def descriptors(
    pid: int | None = None, *, core: str | os.PathLike[str] | None = None
) -> list[Descriptor]:
    """The descriptors of this process, of process `pid` or of a core file, in load order.

    A file that has symbols only for one of descriptor and function has no descriptor: debuggers
    pass it over too. Reading another process takes the right to trace it, and does not stop it. For
    a core, the files that were loaded are looked for where they were.

    Raises GDBJITError if there is no such process, no right to read it, or no such core.
    """
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
