"""Where a file defines the GDB JIT interface, and files that lie."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import llvmlite.binding
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdbjit import elf, symbols
from gdbjit.library import build

LIBRARY = build(elf.EM_X86_64)
FORM = elf.elf_format(elf.CLASS64, 1)
HEADER, _ = elf.read_header(LIBRARY)


def read(data: bytes) -> symbols.ElfFile | None:
    fd = os.memfd_create("test")
    try:
        os.write(fd, data)
        return symbols.read(fd)
    finally:
        os.close(fd)


def section_at(index: int) -> int:
    return HEADER.shoff + index * FORM.section.size


def section(index: int) -> elf.Section:
    return elf.Section(*FORM.section.unpack_from(LIBRARY, section_at(index)))


def changed(at: int, form: str, value: int) -> bytes:
    data = bytearray(LIBRARY)
    struct.pack_into(form, data, at, value)
    return bytes(data)


DYNSYM, DYNSTR = 2, 3
SYMBOL_AT = section(DYNSYM).offset + FORM.symbol.size  # of __jit_debug_descriptor


def test_exported_symbols() -> None:
    file = read(LIBRARY)
    assert file is not None
    assert file.definition is not None
    assert file.definition.exported
    assert file.head_vaddr == 0
    assert file.head == LIBRARY[: len(file.head)]


def test_local_symbols_of_a_big_library_are_found() -> None:
    library = Path(llvmlite.binding.__file__).with_name("libllvmlite.so")
    fd = os.open(library, os.O_RDONLY)
    try:
        file = symbols.read(fd)
    finally:
        os.close(fd)
    assert file is not None
    assert file.definition is not None
    assert not file.definition.exported


def test_a_name_that_ends_a_longer_one() -> None:
    # As linkers merge strings: "x__jit_debug_descriptor" has the other name in it.
    strings = section(DYNSTR).offset
    at = LIBRARY.index(b"__jit_debug_descriptor\0", strings)
    data = bytearray(LIBRARY)
    data[at - 1] = ord("x")
    file = read(bytes(data))
    assert file is not None
    assert file.definition is not None


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (SYMBOL_AT + 6, "<H", elf.SHN_UNDEF),
        (SYMBOL_AT + 6, "<H", 0xFFF1),  # SHN_ABS
        (SYMBOL_AT + 4, "<B", 0x16),  # STT_TLS
        (SYMBOL_AT + 8, "<Q", 0x40),  # in a segment that cannot be written
        (SYMBOL_AT + 8, "<Q", 1 << 63),
        (SYMBOL_AT + 8, "<Q", section(6).addr + 8),  # half of it
        (SYMBOL_AT, "<I", 0),
    ],
    ids=["undefined", "absolute", "thread-local", "read-only", "wild", "half", "unnamed"],
)
def test_what_is_no_definition(at: int, form: str, value: int) -> None:
    file = read(changed(at, form, value))
    assert file is not None
    assert file.definition is None


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (0x28, "<Q", 1 << 63),  # e_shoff
        (0x28, "<Q", len(LIBRARY)),
        (0x20, "<Q", (1 << 64) - 1),  # e_phoff
        (0x36, "<H", 8),  # e_phentsize
        (4, "<B", 3),  # EI_CLASS
        (5, "<B", 0),  # EI_DATA
        (0, "<I", 0),
    ],
    ids=["wild sections", "no sections", "wild segments", "small", "class", "data", "magic"],
)
def test_a_lying_header_is_no_elf_file(at: int, form: str, value: int) -> None:
    assert read(changed(at, form, value)) is None


@pytest.mark.parametrize("field", [24, 32, 40])  # sh_offset, sh_size, sh_link
@pytest.mark.parametrize("index", [DYNSYM, DYNSTR])
@pytest.mark.parametrize("value", [1, 1 << 31, 1 << 60, (1 << 64) - 1])
def test_lying_sections_end_soon(field: int, index: int, value: int) -> None:
    form = "<I" if field == 40 else "<Q"
    data = changed(section_at(index) + field, form, value & (0xFFFFFFFF if field == 40 else ~0))
    read(data)  # ends


def test_a_file_full_of_the_name_ends_soon() -> None:
    # The symbol table is all undefined symbols of that name, megabytes of them.
    data = bytearray(LIBRARY)
    data += bytes(-len(data) % 8)
    (name,) = struct.unpack_from("<I", LIBRARY, SYMBOL_AT)
    table = FORM.symbol.pack(name, 0x11, 0, 0, 0, 24) * 100_000
    struct.pack_into("<QQ", data, section_at(DYNSYM) + 24, len(data), len(table))
    file = read(bytes(data + table))
    assert file is not None
    assert file.definition is None


def test_a_sparse_file_is_no_library() -> None:
    fd = os.memfd_create("sparse")
    try:
        os.ftruncate(fd, 1 << 40)
        claim = changed(section_at(DYNSTR) + 32, "<Q", 1 << 39)
        os.pwrite(fd, claim.replace(b"__jit_debug", b"__was_debug"), 0)
        file = symbols.read(fd)
        assert file is not None
        assert file.definition is None
    finally:
        os.close(fd)


@settings(max_examples=3000, deadline=None)
@given(st.data())
def test_any_file_is_read_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(("cut", "random", "mutated")))
    if kind == "cut":
        image = LIBRARY[: data.draw(st.integers(0, len(LIBRARY)))]
    elif kind == "random":
        image = elf.MAGIC + data.draw(st.binary(max_size=400))
    else:
        mutated = bytearray(LIBRARY)
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(mutated) - 1))
            part = data.draw(st.binary(min_size=1, max_size=8))
            mutated[at : at + len(part)] = part
        image = bytes(mutated)
    file = read(image)
    assert file is None or isinstance(file, symbols.ElfFile)
