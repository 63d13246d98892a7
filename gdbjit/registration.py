"""Registering machine code with debuggers, wherever that code comes from."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
from collections.abc import Callable

from . import library, locks
from .descriptor import Descriptor, descriptors
from .errors import GDBJITError
from .layout import NOACTION, REGISTER, UNREGISTER, VERSION, CodeDescriptor, CodeEntry
from .symfile import check

_ENTRY = struct.Struct("@PPPQ")  # CodeEntry
_entries: set[int] = set()


class Registration:
    """An image that debuggers know, until `unregister()` or the end of a `with` block.

    Dropping the last reference does not unregister. At the end of the process nothing is
    unregistered either: the memory stays as long as the process does, since another engine may
    still edit the list.

    After a fork the child has its own copy of list and memory, and its registrations go on there.
    """

    def __init__(self, entry: int, descriptor: Descriptor) -> None:
        self.entry = entry
        """Address of its jit_code_entry."""
        self.descriptor = descriptor
        self._registered = True

    def unregister(self) -> None:
        """Tell debuggers that the code goes, then free the image. Again: nothing happens.

        Raises GDBJITError, with the memory kept, if somebody else has cut the entry out of the
        list.
        """
        with locks.of_engine(self.descriptor.address), locks.edits:
            if not self._registered:
                return
            head = CodeDescriptor.from_address(self.descriptor.address)
            entry = CodeEntry.from_address(self.entry)
            after = CodeEntry.from_address(entry.next) if entry.next else None
            before = CodeEntry.from_address(entry.prev) if entry.prev else None
            linked = (before.next if before else head.first) == self.entry
            if not linked or (after and after.prev != self.entry):
                raise GDBJITError(
                    f"the entry at {self.entry:#x} is not where it was linked: the list at "
                    f"{self.descriptor.address:#x} was edited without its lock (see share_lock)"
                )
            if before:
                before.next = entry.next
            else:
                head.first = entry.next
            if after:
                after.prev = entry.prev
            self._registered = False
            _notify(self.descriptor, head, UNREGISTER, self.entry)
            _entries.discard(self.entry)
            _libc().free(self.entry)

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.unregister()


def register(
    symfile: bytes, descriptor: Descriptor | None = None, *, trusted: bool = False
) -> Registration:
    """Make an ELF image of loaded code known to the debuggers of this process.

    `symfile` is copied. Its sections with SHF_ALLOC have their load addresses in sh_addr.
    `descriptor` is one of this process; without it the first in load order is taken, as lldb looks
    at no other, or one of our own where the process has none.

    Raises GDBJITError if `symfile` is not an ELF image of this machine with its tables inside. To
    find out takes as long as all the rest: `trusted` leaves it out, for an image that a compiler or
    a linker of this process has just made or read.
    """
    image = bytes(symfile)
    if descriptor is None:
        descriptor = _first()
    elif descriptor._memory is not None:
        raise GDBJITError(
            f"the descriptor is one of {descriptor._memory.who}, which can only be read: "
            "take one of descriptors()"
        )
    if not trusted:
        check(image, descriptor.register_code)
    with locks.of_engine(descriptor.address), locks.edits:
        _pin(descriptor.library)
        head = CodeDescriptor.from_address(descriptor.address)
        if head.version != VERSION:
            raise GDBJITError(
                f"the descriptor at {descriptor.address:#x} has version {head.version}, where "
                f"{VERSION} is the only one there is"
            )
        # Entry and image in one block of memory that Python never frees by itself.
        address = _libc().malloc(_ENTRY.size + len(image))
        if not address:
            raise GDBJITError(f"no memory for an image of {len(image)} bytes")
        following = head.first
        entry = _ENTRY.pack(following, 0, address + _ENTRY.size, len(image))
        ctypes.memmove(address, entry + image, _ENTRY.size + len(image))
        # At the head, as LLVM does: a reader sees the list whole, with the entry or without.
        if following:
            CodeEntry.from_address(following).prev = address
        head.first = address
        _entries.add(address)
        _notify(descriptor, head, REGISTER, address)
        return Registration(address, descriptor)


def is_registered(entry: int) -> bool:
    """Whether the jit_code_entry at address `entry` is one of ours: made here, and not yet freed.

    For a program that walks a list which is also an engine's.
    """
    return entry in _entries


def share_lock(descriptor: Descriptor | int, lock: locks.Lock) -> None:
    """Say which lock an engine holds when it edits a descriptor's list.

    From now on registering, unregistering and listing there hold `lock`, a context manager that
    may be entered again by its holder, before any lock of this package. `descriptor` may be given
    by its address. A later call replaces the lock; a forked child, in which the lock may be held
    for ever, calls again with the one that its engine uses.
    """
    locks.share(descriptor if isinstance(descriptor, int) else descriptor.address, lock)


def _notify(descriptor: Descriptor, head: CodeDescriptor, action: int, entry: int) -> None:
    """Run into the debugger's breakpoint. One entry a call: debuggers read `relevant` alone."""
    head.relevant = entry
    head.action = action
    _function(descriptor.register_code)()
    # LLVM's newer runtime clears them after an unregister, for `relevant` would point to freed
    # memory. After a register it also lets others see each later change: a freed entry's address
    # comes back.
    head.action = NOACTION
    head.relevant = 0


@functools.cache
def _function(address: int) -> Callable[[], None]:
    # Keeps the interpreter's lock: the call is a return instruction, unless a debugger has the
    # whole process stopped.
    return ctypes.PYFUNCTYPE(None)(address)


@functools.cache
def _libc() -> ctypes.PyDLL:
    libc = ctypes.PyDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = (ctypes.c_size_t,)
    libc.free.restype = None
    libc.free.argtypes = (ctypes.c_void_p,)
    return libc


@functools.cache
def _first() -> Descriptor:
    """The descriptor where none is named. Libraries that come later are later in load order."""
    found = descriptors()
    return found[0] if found else library.own_descriptor()


@functools.cache
def _pin(path: str) -> None:
    """Keep a library loaded: whoever closes it does not know of our entry in its list."""
    with contextlib.suppress(OSError):  # the program itself, which cannot go
        ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD | os.RTLD_NODELETE)
