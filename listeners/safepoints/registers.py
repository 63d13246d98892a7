"""Names of registers by their DWARF numbers, which all tables of LLVM's use.

x86-64: "System V ABI, AMD64 Architecture Processor Supplement", figure 3.36, and its APX extension;
AArch64: "DWARF for the Arm 64-bit Architecture", 4.1 (https://github.com/ARM-software/abi-aa).
"""

from __future__ import annotations

from ..errors import JITListenerError
from ..objectfile import EM_AARCH64, EM_X86_64

__all__ = ["frame_registers", "register_name"]


def _numbered(first: int, prefix: str, count: int, start: int = 0) -> dict[int, str]:
    return {first + n: f"{prefix}{start + n}" for n in range(count)}


_X86_64 = {
    **dict(enumerate(("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"))),
    **_numbered(8, "r", 8, 8),
    16: "rip",
    **_numbered(17, "xmm", 16),
    **_numbered(33, "st", 8),
    **_numbered(41, "mm", 8),
    49: "rflags",
    **dict(enumerate(("es", "cs", "ss", "ds", "fs", "gs"), 50)),
    58: "fs.base",
    59: "gs.base",
    62: "tr",
    63: "ldtr",
    64: "mxcsr",
    65: "fcw",
    66: "fsw",
    **_numbered(67, "xmm", 16, 16),
    **_numbered(118, "k", 8),
    **_numbered(130, "r", 16, 16),
}
_AARCH64 = {
    **_numbered(0, "x", 31),
    31: "sp",
    32: "pc",
    33: "elr_mode",
    34: "ra_sign_state",
    35: "tpidrro_el0",
    36: "tpidr_el0",
    37: "tpidr_el1",
    38: "tpidr_el2",
    39: "tpidr_el3",
    46: "vg",
    47: "ffr",
    **_numbered(48, "p", 16),
    **_numbered(64, "v", 32),
    **_numbered(96, "z", 32),
}
_NAMES = {EM_X86_64: _X86_64, EM_AARCH64: _AARCH64}
_FRAME = {EM_X86_64: (7, 6), EM_AARCH64: (31, 29)}


def register_name(machine: int, number: int) -> str:
    """The name of DWARF register `number` of an ELF machine; `reg N` where it has none."""
    return _NAMES.get(machine, {}).get(number, f"reg {number}")


def frame_registers(machine: int) -> tuple[int, int]:
    """The DWARF numbers of an ELF machine's stack pointer and frame pointer.

    Raises JITListenerError for a machine that is neither x86-64 nor AArch64.
    """
    try:
        return _FRAME[machine]
    except KeyError:
        raise JITListenerError(
            f"an object for machine {machine}: the registers of x86-64 (62) and AArch64 (183)"
            " are known"
        ) from None
