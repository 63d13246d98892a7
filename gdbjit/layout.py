"""The structures of the GDB JIT interface as they lie in memory.

Source: "JIT Compilation Interface" in the GDB manual, whose C declarations are

    struct jit_code_entry { struct jit_code_entry *next_entry, *prev_entry;
                            const char *symfile_addr; uint64_t symfile_size; };
    struct jit_descriptor { uint32_t version; uint32_t action_flag;
                            struct jit_code_entry *relevant_entry, *first_entry; };

Where they lie follows from the ABI of the process: symfile_size is at offset 24 where pointers
have 64 bits, at 16 where they have 32 and a uint64_t is aligned to 8 (Arm), at 12 on i386, which
aligns it to 4.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import NamedTuple

from . import elf

DESCRIPTOR_SYMBOL = b"__jit_debug_descriptor"
REGISTER_SYMBOL = b"__jit_debug_register_code"
VERSION = 1
NOACTION, REGISTER, UNREGISTER = 0, 1, 2  # jit_actions_t


class Layout(NamedTuple):
    """How a process of some ABI lays the structures out, to read them from bytes."""

    descriptor: struct.Struct  # version, action, relevant, first
    entry: struct.Struct  # next, prev, symfile address, symfile size


@functools.cache
def layout(elf_class: int, data: int, machine: int) -> Layout:
    """The layout for a file's e_ident[EI_CLASS], e_ident[EI_DATA] and e_machine."""
    order = elf.elf_format(elf_class, data).order
    if elf_class == elf.CLASS64:
        return Layout(struct.Struct(order + "IIQQ"), struct.Struct(order + "QQQQ"))
    padding = "" if machine == elf.EM_386 else "4x"
    return Layout(struct.Struct(order + "IIII"), struct.Struct(f"{order}III{padding}Q"))


class CodeEntry(ctypes.Structure):
    """jit_code_entry of this process, to write it in place."""

    _fields_ = (
        ("next", ctypes.c_size_t),
        ("prev", ctypes.c_size_t),
        ("symfile", ctypes.c_size_t),
        ("size", ctypes.c_uint64),
    )


class CodeDescriptor(ctypes.Structure):
    """jit_descriptor of this process, to write it in place."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("relevant", ctypes.c_size_t),
        ("first", ctypes.c_size_t),
    )
