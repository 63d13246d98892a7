"""LLVM's own list of loaded objects, as its GDB registration listener keeps it.

MCJIT and LLJIT over RuntimeDyld register every object they load with the GDB JIT interface, in
the descriptor of the library that holds LLVM. An entry's image is byte for byte the object as
it was emitted, but for `sh_addr` of its loaded sections: these hold the load addresses.

A libllvmlite without a symbol table has the descriptor all the same, only no debugger sees it.
It is then found by what it holds, right after an object of our own was loaded.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from struct import Struct

import llvmlite.binding as llvm
from llvmlite.binding import ffi

import gdbjit
from perfmap.memory import mappings

from ..errors import JITListenerError
from ..events import LoadedObject
from ..objectfile import ObjectFile

__all__ = ["LLVMDescriptor", "find_descriptor"]

# struct jit_descriptor and jit_code_entry of the GDB manual, "JIT Interface", on LP64.
DESCRIPTOR = Struct("<IIQQ")  # version, action, relevant entry, first entry
ENTRY = Struct("<QQQQ")  # next, previous, address and size of the symbol file
_EntryBytes = ctypes.c_char * ENTRY.size
REGISTER = 1

PROBE = "__jitlisten_probe"


class LLVMDescriptor:
    """The list of LLVM's. Read it while llvmlite's lock is held, which LLVM's changes need too."""

    def __init__(self, address: int, descriptor: gdbjit.Descriptor | None) -> None:
        self.visible = descriptor
        """The descriptor as debuggers see it; None if they cannot."""
        self.words = (ctypes.c_uint64 * 3).from_address(address)
        """Its memory: version and action, relevant entry, first entry: the newest one."""

    def entries(self, until: Container[int] = ()) -> list[tuple[int, int, int]]:
        """The entries LLVM made, newest first, up to the first in `until`.

        Of each its address, and address and size of its image.
        """
        found = []
        entry = self.words[2]
        while entry and entry not in until:
            following, _, address, size = ENTRY.unpack(_EntryBytes.from_address(entry))
            if not gdbjit.is_registered(entry):
                found.append((entry, address, size))
            entry = following
        return found

    def read(self, address: int, size: int) -> LoadedObject:
        """The object whose image is the `size` bytes at `address`."""
        image = ctypes.string_at(address, size)
        return LoadedObject(
            partial(ObjectFile, image), ctypes.string_at, registered_in=self.visible
        )


def find_descriptor() -> LLVMDescriptor:
    """LLVM's descriptor in this process. Raises JITListenerError if there is none."""
    library = Path(ffi.lib._name).resolve()
    for descriptor in gdbjit.descriptors():
        if Path(descriptor.library) == library:
            return LLVMDescriptor(descriptor.address, descriptor)
    return LLVMDescriptor(_search_memory(library), None)


def _search_memory(library: Path) -> int:
    """The descriptor's address, found by what it holds once an object of ours is registered."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    module = llvm.parse_assembly(f"define void @{PROBE}() {{ ret void }}", llvm.create_context())
    with llvm.create_mcjit_compiler(module, machine) as engine:
        engine.finalize_object()
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, end in _writable_segments(library):
                data = os.pread(memory, end - start, start)
                at = data.find(DESCRIPTOR.pack(1, REGISTER, 0, 0)[:8])
                while at >= 0:
                    if at % 8 == 0 and _holds_probe(memory, data[at : at + DESCRIPTOR.size]):
                        return start + at
                    at = data.find(DESCRIPTOR.pack(1, REGISTER, 0, 0)[:8], at + 1)
        finally:
            os.close(memory)
    raise JITListenerError(
        f"{library}: no descriptor of the GDB JIT interface, neither by symbol nor in its data;"
        " objects of MCJIT and RuntimeDyld cannot be heard with this build of llvmlite"
    )


def _holds_probe(memory: int, data: bytes) -> bool:
    if len(data) < DESCRIPTOR.size:
        return False
    _, _, relevant, first = DESCRIPTOR.unpack(data)
    if not first or relevant != first:
        return False
    try:
        _, _, address, size = ENTRY.unpack(os.pread(memory, ENTRY.size, first))
        return size < 1 << 16 and PROBE.encode() in os.pread(memory, size, address)
    except (OSError, OverflowError):  # whatever the words are, they are no addresses
        return False


def _writable_segments(library: Path) -> Iterator[tuple[int, int]]:
    """The writable memory of `library`, the zero-initialised part behind the file's included."""
    end_of_library = 0
    for mapping in mappings():
        behind = mapping.anonymous and mapping.start == end_of_library
        if mapping.name == str(library) or behind:
            end_of_library = mapping.end
            if "w" in mapping.access:
                yield mapping.start, mapping.end
