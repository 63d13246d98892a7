"""A shared library that defines the GDB JIT interface, for a process that has none.

Debuggers find the interface by the symbols of a file that the dynamic linker has loaded, so there
must be such a file, and it must stay while the process and its forked children run. Its bytes never
change, therefore one file serves all processes of a user, in the user's cache directory. A file in
memory (memfd) has no name that a debugger can open once its process has forked and ended.
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from . import descriptor, elf
from .errors import GDBJITError
from .layout import DESCRIPTOR_SYMBOL, REGISTER_SYMBOL, VERSION

SONAME = b"libgdbjit.so"
# The largest page of both machines: segments lie that far apart in memory, not in the file.
PAGE = 0x10000
# Instructions that return. Two at least, so that a debugger's breakpoint is not the whole function.
CODE = {
    elf.EM_X86_64: b"\xf3\x0f\x1e\xfa\x90\xc3",  # endbr64; nop; ret
    elf.EM_AARCH64: b"\x1f\x20\x03\xd5\xc0\x03\x5f\xd6",  # nop; ret
}


@functools.cache
def own_descriptor() -> descriptor.Descriptor:
    """The descriptor of our own library, which is written and loaded on first use.

    It is the last in load order. lldb reads that of the first module alone, so this is for a
    process that has no other, and for gdb 15, which sees exported ones only.

    Raises GDBJITError where no directory takes a library, or the machine is not known.
    """
    header, _form = elf.native()
    if header.machine not in CODE:
        raise GDBJITError(
            f"no library of our own for machine {header.machine} (e_machine): load one that "
            "defines __jit_debug_descriptor, such as LLVM's"
        )
    image = build(header.machine)
    name = f"libgdbjit-{zlib.crc32(image):08x}.so"
    problems = []
    for directory in _directories():
        try:
            path = _write(directory, name, image)
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            problems.append(f"{directory}: {error}")
            continue
        symbol = ctypes.c_uint32.in_dll(loaded, DESCRIPTOR_SYMBOL.decode())
        function = ctypes.cast(loaded[REGISTER_SYMBOL.decode()], ctypes.c_void_p)
        return descriptor.own(ctypes.addressof(symbol), function.value or 0, str(path))
    raise GDBJITError(
        "no directory for a library of our own: set TMPDIR to one that is writable and not "
        f"mounted noexec ({'; '.join(problems)})"
    )


def _directories() -> Iterator[Path]:
    for directory, name in (
        (os.environ.get("XDG_CACHE_HOME", ""), "gdbjit"),
        (os.path.expanduser("~/.cache"), "gdbjit"),  # noqa: PTH111 (as it is, without a home)
        (os.environ.get("TMPDIR", ""), f"gdbjit-{os.geteuid()}"),
        ("/tmp", f"gdbjit-{os.geteuid()}"),
    ):
        if directory.startswith("/"):
            yield Path(directory, name)


def _write(directory: Path, name: str, image: bytes) -> Path:
    """The library in `directory`, which nobody else may write to."""
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o22:
        raise PermissionError("others can write there")
    path = directory / name
    if path.is_symlink() or not path.is_file() or path.read_bytes() != image:
        # Never in place: other processes may have it loaded.
        new = directory / f"{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            new.write_bytes(image)
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
    return path


def build(machine: int) -> bytes:
    """The library for `machine`: EM_X86_64 or EM_AARCH64, both 64-bit and little-endian."""
    form = elf.elf_format(elf.CLASS64, 1)
    code = CODE[machine]
    strings = b"\0" + b"\0".join((SONAME, DESCRIPTOR_SYMBOL, REGISTER_SYMBOL)) + b"\0"
    section_names = b"\0.hash\0.dynsym\0.dynstr\0.text\0.dynamic\0.data\0.shstrtab\0"
    # One bucket: all symbols are in one chain, from 1 to 2.
    hash_table = struct.pack("<6I", 1, 3, 1, 0, 2, 0)
    data = struct.pack("<IIQQ", VERSION, 0, 0, 0)

    def aligned(offset: int) -> int:
        return -(-offset // 16) * 16

    hash_at = form.header.size + 5 * form.segment.size
    symbols_at = aligned(hash_at + len(hash_table))
    strings_at = symbols_at + 3 * form.symbol.size
    text_at = aligned(strings_at + len(strings))
    dynamic_at = aligned(text_at + len(code))
    data_at = dynamic_at + 7 * form.pair.size
    names_at = data_at + len(data)
    sections_at = aligned(names_at + len(section_names))
    text, writable = PAGE, 2 * PAGE  # added to file offsets

    symbols = form.symbol.pack(0, 0, 0, 0, 0, 0)
    for name, kind, section, value, size in (
        (DESCRIPTOR_SYMBOL, elf.STT_OBJECT, 6, data_at + writable, len(data)),
        (REGISTER_SYMBOL, elf.STT_FUNC, 4, text_at + text, len(code)),
    ):
        info = elf.STB_GLOBAL << 4 | kind
        symbols += form.symbol.pack(strings.index(name), info, 0, section, value, size)
    dynamic = b"".join(
        form.pair.pack(tag, value)
        for tag, value in (
            (elf.DT_SONAME, strings.index(SONAME)),
            (elf.DT_HASH, hash_at),
            (elf.DT_STRTAB, strings_at),
            (elf.DT_SYMTAB, symbols_at),
            (elf.DT_STRSZ, len(strings)),
            (elf.DT_SYMENT, form.symbol.size),
            (elf.DT_NULL, 0),
        )
    )
    segments = b"".join(
        form.segment.pack(kind, flags, offset, offset + base, offset + base, size, size, align)
        for kind, flags, offset, base, size, align in (
            (elf.PT_LOAD, elf.PF_R, 0, 0, text_at, PAGE),
            (elf.PT_LOAD, elf.PF_R | elf.PF_X, text_at, text, len(code), PAGE),
            (elf.PT_LOAD, elf.PF_R | elf.PF_W, dynamic_at, writable, names_at - dynamic_at, PAGE),
            (elf.PT_DYNAMIC, elf.PF_R | elf.PF_W, dynamic_at, writable, len(dynamic), 8),
            (elf.PT_GNU_STACK, elf.PF_R | elf.PF_W, 0, 0, 0, 16),
        )
    )
    read, execute = elf.SHF_ALLOC, elf.SHF_ALLOC | elf.SHF_EXECINSTR
    write = elf.SHF_ALLOC | elf.SHF_WRITE
    symbol_size, pair = form.symbol.size, form.pair.size
    sections = form.section.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    for title, kind, flags, base, at, size, link, info, align, entsize in (
        (b".hash", elf.SHT_HASH, read, 0, hash_at, len(hash_table), 2, 0, 8, 4),
        (b".dynsym", elf.SHT_DYNSYM, read, 0, symbols_at, len(symbols), 3, 1, 8, symbol_size),
        (b".dynstr", elf.SHT_STRTAB, read, 0, strings_at, len(strings), 0, 0, 1, 0),
        (b".text", elf.SHT_PROGBITS, execute, text, text_at, len(code), 0, 0, 16, 0),
        (b".dynamic", elf.SHT_DYNAMIC, write, writable, dynamic_at, len(dynamic), 3, 0, 8, pair),
        (b".data", elf.SHT_PROGBITS, write, writable, data_at, len(data), 0, 0, 8, 0),
        (b".shstrtab", elf.SHT_STRTAB, 0, -names_at, names_at, len(section_names), 0, 0, 1, 0),
    ):
        name_at = section_names.index(title + b"\0")
        sections += form.section.pack(
            name_at, kind, flags, at + base, at, size, link, info, align, entsize
        )
    header = form.header.pack(
        elf.MAGIC + bytes((elf.CLASS64, 1, 1)), elf.ET_DYN, machine, 1, 0, form.header.size,
        sections_at, 0, form.header.size, form.segment.size, 5, form.section.size, 8, 7,
    )  # fmt: skip
    image = bytearray(sections_at + len(sections))
    for at, part in (
        (0, header), (form.header.size, segments), (hash_at, hash_table), (symbols_at, symbols),
        (strings_at, strings), (text_at, code), (dynamic_at, dynamic), (data_at, data),
        (names_at, section_names), (sections_at, sections),
    ):  # fmt: skip
        image[at : at + len(part)] = part
    return bytes(image)
