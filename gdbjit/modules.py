"""The ELF files that are loaded in a process, in load order.

The dynamic linker keeps them in a list for debuggers (struct r_debug and struct link_map of
<link.h>), found from the program's own headers, whose address the kernel gives in the auxiliary
vector. A program without such a list, being static or not begun yet, is read off its mappings, in
the order of their addresses.

This process is read in the same way. dl_iterate_phdr() would call Python with the dynamic linker's
lock held, and a thread that imports an extension module waits for that lock with the interpreter's.
"""

from __future__ import annotations

import bisect
import os
import stat
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from . import elf, symbols
from .errors import GDBJITError
from .process import Mapping, Memory

MAX_MODULES = 1 << 16
ATTEMPTS = 20
RT_CONSISTENT = 0  # r_state

_files: dict[tuple[int, int, int, int], symbols.ElfFile | None] = {}


class Module(NamedTuple):
    """A loaded file that defines the interface."""

    path: str
    bias: int  # what was added to link-time addresses
    file: symbols.ElfFile
    definition: symbols.Definition


class _Loaded(NamedTuple):
    name: str
    inside: int  # an address in the module
    bias: int | None  # None if only the file can tell


def defining(memory: Memory) -> list[Module]:
    """The modules that define the interface, in load order.

    A file that cannot be opened or is not valid ELF has no symbols for anybody, and is passed over.
    """
    linked = _linked(memory)
    mappings = memory.mappings()
    if not mappings:
        raise GDBJITError(f"{memory.who} has no memory: it has ended, or is a kernel thread")
    modules = []
    for loaded in linked or _mapped(memory, mappings):
        mapping = _mapping_of(mappings, loaded.inside)
        if mapping is None or not mapping.inode:
            continue
        for path in memory.paths(mapping, loaded.name):
            file = _file(path)
            if file is None:
                continue
            bias = loaded.bias
            if bias is None:
                bias = mapping.start - (file.head_vaddr or 0)
            if not _is_mapped(memory, file, bias):
                continue
            if file.definition is not None:
                code = _mapping_of(mappings, bias + file.definition.register_code)
                # A file that is mapped to be read, not to run, has none.
                if code is not None and "x" in code.permissions:
                    modules.append(Module(mapping.path, bias, file, file.definition))
            break
    return modules


def _linked(memory: Memory) -> list[_Loaded]:
    """The dynamic linker's list; empty if there is none, or it is never seen at rest."""
    for attempt in range(ATTEMPTS):
        try:
            form = elf.read_header(memory.program())[1]
            debug = _r_debug(memory, form)
            if not debug:
                return []
            chain = list(_link_map(memory, form, debug))
            if chain == list(_link_map(memory, form, debug)):
                return chain
        except GDBJITError:
            pass
        time.sleep(0.001 * attempt)
    return []


def _r_debug(memory: Memory, form: elf.Format) -> int:
    """The address of struct r_debug, 0 if the program has none."""
    vector = memory.auxv(form)
    phdr, count = vector.get(elf.AT_PHDR, 0), vector.get(elf.AT_PHNUM, 0)
    if not phdr or count > 0xFFFF:
        return 0
    segments = form.segments(memory.read(phdr, count * form.segment.size))
    by_type = {segment.type: segment for segment in segments}
    if elf.PT_DYNAMIC not in by_type:
        return 0
    # Programs that load at a fixed address need no PT_PHDR.
    bias = phdr - by_type[elf.PT_PHDR].vaddr if elf.PT_PHDR in by_type else 0
    dynamic = by_type[elf.PT_DYNAMIC]
    table = memory.read(bias + dynamic.vaddr, min(dynamic.memsz, 1 << 16))
    return dict(form.pairs(table)).get(elf.DT_DEBUG, 0)


def _link_map(memory: Memory, form: elf.Format, debug: int) -> Iterator[_Loaded]:
    """The modules of the list; GDBJITError while it is being changed."""
    head = struct.Struct(form.order + ("i4xQQi" if form.wide else "iIIi"))
    node = struct.Struct(form.order + ("4Q" if form.wide else "4I"))
    _version, address, _break, state = head.unpack(memory.read(debug, head.size))
    if state != RT_CONSISTENT or not address:
        raise GDBJITError("the dynamic linker is at work")
    seen: set[int] = set()
    while address:
        if address in seen or len(seen) == MAX_MODULES:
            raise GDBJITError(f"the dynamic linker's list does not end at {address:#x}")
        seen.add(address)
        bias, name, dynamic, address = node.unpack(memory.read(address, node.size))
        yield _Loaded(os.fsdecode(memory.string(name)) if name else "", dynamic, bias)


def _mapped(memory: Memory, mappings: list[Mapping]) -> Iterator[_Loaded]:
    """The files that are mapped from their beginning and begin as ELF does."""
    for mapping in mappings:
        if mapping.offset == 0 and mapping.inode:
            try:
                magic = memory.read(mapping.start, 4)
            except GDBJITError:
                continue
            if magic == elf.MAGIC:
                yield _Loaded("", mapping.start, None)


def _mapping_of(mappings: list[Mapping], address: int) -> Mapping | None:
    index = bisect.bisect_right(mappings, address, key=lambda mapping: mapping.start) - 1
    return mappings[index] if index >= 0 and address < mappings[index].end else None


def _file(path: str) -> symbols.ElfFile | None:
    """What the ELF file says, read once while it does not change."""
    try:
        # Opening a device may act on it.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (follows the kernel's link)
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if key not in _files:
            _files[key] = symbols.read(fd)
        return _files[key]
    finally:
        os.close(fd)


def _is_mapped(memory: Memory, file: symbols.ElfFile, bias: int) -> bool:
    """Whether this is the file in memory, not a later one of the same name.

    Device and inode cannot tell: /proc/PID/maps and stat() do not agree on them on overlayfs and
    btrfs.
    """
    if file.head_vaddr is None:
        return True
    try:
        return memory.read(bias + file.head_vaddr, len(file.head)) == file.head
    except GDBJITError:
        return False
