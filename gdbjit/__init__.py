"""The GDB JIT interface alone: how gdb and lldb get to know of machine code made at run time.

For programs that make machine code by any means and want debuggers to name it, and for tools that
show what a process has registered. Nothing but the standard library is needed.

    with gdbjit.register(image):        # an ELF image; gdb and lldb see it from here
        ...

    for descriptor in gdbjit.descriptors(pid):
        for entry in descriptor.entries():
            print(hex(entry.symfile_address), entry.size)

The interface is described in the GDB manual, "JIT Compilation Interface".
"""

from .descriptor import Descriptor, Entry, descriptors
from .errors import GDBJITError
from .library import own_descriptor
from .registration import Registration, is_registered, register, share_lock

__all__ = [
    "Descriptor",
    "Entry",
    "GDBJITError",
    "Registration",
    "descriptors",
    "is_registered",
    "own_descriptor",
    "register",
    "share_lock",
]
