"""The reader of relocatable objects: the same sections, symbols and relocations as pyelftools, and
one kind of error for whatever is malformed, in its functions, too.
"""

import io
import struct
import tracemalloc

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from objects import (
    GOOD,
    OBJECTS,
    changed,
    emitted,
    functions_of,
    header_at,
    mutants,
)
from tools import run, tool

from listeners import JITListenerError
from listeners.objectfile import SECTION, ObjectFile


@pytest.fixture(params=OBJECTS)
def data(request: pytest.FixtureRequest) -> bytes:
    return emitted(request.param)


def read_all(data: bytes) -> None:
    file = ObjectFile(data)
    file.check_sections()
    functions_of(file)
    for index in range(len(file.sections)):
        file.section_name(index)
        file.contents(index)
        file.relocations(index)
    for symbol in file.symbols:
        file.symbol_name(symbol)


# What is read


def test_sections_symbols_and_relocations_are_those_that_pyelftools_reads(data):
    file, twin = ObjectFile(data), ELFFile(io.BytesIO(data))
    assert {62: "EM_X86_64", 183: "EM_AARCH64"}[file.machine] == twin["e_machine"]
    assert len(file.sections) == twin.num_sections()
    for index, section in enumerate(twin.iter_sections()):
        header = file.sections[index]
        names = "flags", "addr", "offset", "size", "link", "info", "addralign", "entsize"
        assert tuple(header[2:]) == tuple(section[f"sh_{name}"] for name in names)
        assert file.section_name(index) == section.name
        if section["sh_type"] != "SHT_NOBITS":
            assert file.contents(index) == section.data()
        if section["sh_type"] == "SHT_RELA":
            assert file.relocations(header.info) == [
                (r["r_offset"], r["r_info_type"], r["r_info_sym"], r["r_addend"])
                for r in section.iter_relocations()
            ]
        if section["sh_type"] == "SHT_SYMTAB":
            assert [
                (file.symbol_name(symbol), symbol.value, symbol.size) for symbol in file.symbols
            ] == [(s.name, s["st_value"], s["st_size"]) for s in section.iter_symbols()]
    assert any(file.relocations(index) for index in range(len(file.sections)))


def test_compressed_sections_are_given_expanded(tmp_path):
    original = ObjectFile(emitted("x86-small-pic-dwarf5"))
    plain, small = tmp_path / "plain.o", tmp_path / "small.o"
    plain.write_bytes(original.data)
    run(tool("objcopy"), "--compress-debug-sections=zlib", str(plain), str(small))
    file = ObjectFile(small.read_bytes())
    contents = {file.section_name(i): file.contents(i) for i in range(len(file.sections))}
    compressed = [i for i, header in enumerate(file.sections) if header.flags & 0x800]
    assert compressed
    for index, header in enumerate(original.sections):
        if header.type == 1:
            assert contents[original.section_name(index)] == original.contents(index)

    index = compressed[0]
    start = file.sections[index].offset
    for at, value in ((0, 2), (8, 1 << 60), (8, 3), (24, 0)):
        broken = bytearray(file.data)
        struct.pack_into("<Q" if at else "<I", broken, start + at, value)
        with pytest.raises(JITListenerError, match=f"section {index}: "):
            ObjectFile(bytes(broken)).contents(index)


# What is refused


def field(section: str, offset: int, value: int, size: int) -> bytes:
    """The object GOOD with one field of a section's header changed."""
    data = bytearray(emitted(GOOD))
    file = ObjectFile(bytes(data))
    names = [file.section_name(index) for index in range(len(file.sections))]
    at = header_at(data, names.index(section)) + offset
    data[at : at + size] = value.to_bytes(size, "little")
    return bytes(data)


MALFORMED = {
    "nothing": (lambda: b"", "0 bytes"),
    "no ELF": (lambda: b"#!/bin/sh" * 20, "begins with 2321"),
    "32 bits": (lambda: changed(4, b"\1"), "a 32-bit ELF file"),
    "big endian": (lambda: changed(5, b"\2"), "not a little-endian ELF64 file"),
    "executable": (lambda: changed(16, b"\2"), "type 2"),
    "cut off": (lambda: emitted(GOOD)[:-1], "section headers of 64 bytes"),
    "no sections": (lambda: changed(60, b"\0\0"), "without sections"),
    "many sections": (lambda: changed(60, b"\xff\xff"), "extended section numbering"),
    "no names": (lambda: changed(62, b"\0\0"), "section 0 is not a string table"),
    "size": (lambda: field(".text", 32, 1 << 60, 8), "0x1000000000000000 bytes at offset"),
    "entry size": (lambda: field(".symtab", 56, 0, 8), "entries of 0, not 24"),
    "symbols": (lambda: field(".symtab", 32, 24 * (1 << 32), 8), "bytes at offset"),
    "empty symbols": (lambda: field(".symtab", 32, 0, 8), "a symbol table of 0x0 bytes"),
    "two tables": (lambda: field(".note.GNU-stack", 4, 2, 4), "there can be only one"),
    "strings": (lambda: field(".symtab", 40, 2, 4), "section 2 is not a string table"),
    "name": (lambda: field(".text", 0, 1 << 31, 4), "its name is at offset 0x80000000"),
    "alignment": (lambda: field(".text", 48, 3, 8), "an alignment of 0x3"),
    "relocation size": (lambda: field(".rela.text", 56, 0, 8), "entries of 0: only SHT_RELA"),
    "no addends": (lambda: field(".rela.text", 4, 9, 4), "of type 0x9"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_an_error_that_says_what_and_where(case):
    make, message = MALFORMED[case]
    with pytest.raises(JITListenerError, match=message):
        read_all(make())


def test_a_symbol_beyond_the_sections_or_the_names_is_an_error():
    file = ObjectFile(emitted(GOOD))
    last = file.sections[file.symbol_table].offset + 24 * (len(file.symbols) - 1)
    for at, value, message in ((6, 200, "is in section 0xc8"), (0, 9999, "its name is at offset")):
        with pytest.raises(JITListenerError, match=message):
            read_all(changed(last + at, value.to_bytes(2, "little")))
    function = next(i for i, s in enumerate(file.symbols) if file.symbol_name(s) == "pick")
    value_at = file.sections[file.symbol_table].offset + 24 * function + 8
    with pytest.raises(JITListenerError, match="a function at offset 0x10000"):
        read_all(changed(value_at, (0x10000).to_bytes(8, "little")))


def hostile(sections: list[tuple[int, int, int, int, int, int, int]], body: bytes) -> bytes:
    """An object of sections (type, flags, offset, size, link, info, entry size) over `body`."""
    table = 64 + len(body)
    header = struct.pack(
        "<4s5B7xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 0, 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, len(sections), 1),
    )
    rows = [SECTION.pack(0, t, f, 0, o, s, li, i, 1, e) for t, f, o, s, li, i, e in sections]
    return header + body + b"".join(rows)


def test_what_would_make_a_small_file_large_is_refused():
    names, symbols = (
        b"\0" + b"n" * 200_000 + b"\0",
        b"".join(struct.pack("<IBBHQQ", 1 + i, 0x12, 0, 3, i, 1) for i in range(5000)),
    )
    strings = (3, 0, 64, len(names), 0, 0, 0)
    table = (2, 0, 64 + len(names), len(symbols), 1, 0, 24)
    code = (8, 6, 0, 1 << 40, 0, 0, 0)
    overlapping_names = hostile([(0,) * 7, strings, table, code], names + symbols)
    overlapping_sections = hostile(
        [(0,) * 7, strings, *[(1, 2, 64, len(names), 0, 0, 0)] * 1000], names
    )
    tracemalloc.start()
    for data in (overlapping_names, overlapping_sections):
        with pytest.raises(JITListenerError, match="overlap"):
            read_all(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * len(overlapping_names)


def test_mutilated_objects_are_read_or_refused():
    refused = 0
    for data in mutants(10_000, seed=1):
        try:
            read_all(data)
        except JITListenerError:
            refused += 1
    assert 2_000 < refused < 9_000


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_refused(data, headed):
    with pytest.raises(JITListenerError):
        read_all(emitted(GOOD)[:64] + data if headed else data)
