"""System calls that fail, as in a container."""

import ctypes
import os
import struct
from collections.abc import Callable

# linux/prctl.h, linux/filter.h, linux/seccomp.h
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001
SYSTEM_CALLS = {
    "x86_64": {"mmap": 9, "ptrace": 101, "perf_event_open": 298, "process_vm_readv": 310}
}.get(
    os.uname().machine,
    {"mmap": 222, "ptrace": 117, "perf_event_open": 241, "process_vm_readv": 270},
)
libc = ctypes.CDLL(None)


def deny(system_call: str, value: int | None = None, argument: int = 0) -> Callable[[], None]:
    """For `preexec_fn`: a system call fails with EPERM, or only where an argument is `value`."""
    # struct seccomp_data: the number is at 0, the first argument at 16.
    program = [(RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    if value is not None:
        program[:0] = [(LOAD, 0, 0, 16 + 8 * argument), (JUMP_IF_EQUAL, 0, 1, value)]
    program[:0] = [(LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, len(program) - 1, SYSTEM_CALLS[system_call])]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))

    def install() -> None:
        head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if libc.prctl(PR_SET_SECCOMP, FILTER, head):
            raise OSError("no seccomp filter")

    return install
