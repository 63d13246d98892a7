"""The reader of relocatable objects: the same sections, symbols and relocations as pyelftools, the
same functions as llvm-nm, and one kind of error for whatever is malformed.

`emit`, `OBJECTS`, `placed` and `mutants` are for the tests of what is built on the reader, too.
"""

import io
import random
import re
import struct
import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from tools import run, tool

from listeners import JITListenerError
from listeners.functions import read_functions
from listeners.objectfile import SECTION, ObjectFile

CODE = """
source_filename = "program.toy"
@greeting = private unnamed_addr constant [6 x i8] c"hello\\00"
@counter = global i64 7, !dbg !30
@buffer = internal global [100 x i8] zeroinitializer
@slot = thread_local(localexec) global i64 3, !dbg !32
declare void @external(ptr, i64)
declare void @llvm.dbg.value(metadata, metadata, metadata)

define i64 @fact(i64 %n) #0 !dbg !5 {
entry:
  call void @llvm.dbg.value(metadata i64 %n, metadata !10, metadata !DIExpression()), !dbg !12
  %c = icmp slt i64 %n, 2
  br i1 %c, label %one, label %more, !dbg !12
one:
  ret i64 1, !dbg !13
more:
  %m = sub i64 %n, 1, !dbg !14
  %r = call i64 @fact(i64 %m), !dbg !14
  %p = mul i64 %r, %n, !dbg !14
  call void @llvm.dbg.value(metadata i64 %p, metadata !11, metadata !DIExpression()), !dbg !14
  %x = load i64, ptr @counter, !dbg !14
  %s = add i64 %p, %x, !dbg !14
  ret i64 %s, !dbg !15
}

define double @pick(i64 %n) #0 !dbg !20 {
entry:
  call void @external(ptr @greeting, i64 %n), !dbg !21
  switch i64 %n, label %done [ i64 0, label %a i64 1, label %b i64 2, label %c i64 3, label %d ]
a:
  %r = call i64 @fact(i64 3), !dbg !21
  %f = sitofp i64 %r to double, !dbg !21
  br label %done
b:
  store i8 1, ptr @buffer, !dbg !21
  br label %done
c:
  call void @external(ptr null, i64 2), !dbg !21
  br label %done
d:
  call void @external(ptr @buffer, i64 3), !dbg !21
  br label %done
done:
  %v = phi double [ %f, %a ], [ 1.25, %b ], [ 2.5, %c ], [ 3.75, %d ], [ 9.875, %entry ]
  ret double %v, !dbg !22
}
attributes #0 = { uwtable "frame-pointer"="all" }
"""

DEBUG = """
!llvm.dbg.cu = !{{!0}}
!llvm.module.flags = !{{!2, !3}}
!0 = distinct !DICompileUnit(language: DW_LANG_C99, file: !1, producer: "toy",
  emissionKind: FullDebug, globals: !34)
!1 = !DIFile(filename: "program.toy", directory: "/src")
!2 = !{{i32 2, !"Debug Info Version", i32 3}}
!3 = !{{i32 7, !"Dwarf Version", i32 {dwarf}}}
!4 = !DIBasicType(name: "int", size: 64, encoding: DW_ATE_signed)
!5 = distinct !DISubprogram(name: "fact", scope: !1, file: !1, line: 3, type: !6, scopeLine: 3,
  unit: !0, spFlags: DISPFlagDefinition, retainedNodes: !8)
!6 = !DISubroutineType(types: !7)
!7 = !{{!4, !4}}
!8 = !{{!10, !11}}
!10 = !DILocalVariable(name: "n", arg: 1, scope: !5, file: !1, line: 3, type: !4)
!11 = !DILocalVariable(name: "p", scope: !5, file: !1, line: 6, type: !4)
!12 = !DILocation(line: 4, column: 7, scope: !5)
!13 = !DILocation(line: 5, column: 3, scope: !5)
!14 = !DILocation(line: 6, column: 7, scope: !5)
!15 = !DILocation(line: 7, column: 3, scope: !5)
!20 = distinct !DISubprogram(name: "pick", scope: !1, file: !1, line: 10, type: !6, scopeLine: 10,
  unit: !0, spFlags: DISPFlagDefinition)
!21 = !DILocation(line: 11, column: 3, scope: !20)
!22 = !DILocation(line: 12, column: 3, scope: !20)
!30 = !DIGlobalVariableExpression(var: !31, expr: !DIExpression())
!31 = !DIGlobalVariable(name: "counter", scope: !0, file: !1, line: 1, type: !4,
  isDefinition: true)
!32 = !DIGlobalVariableExpression(var: !33, expr: !DIExpression())
!33 = !DIGlobalVariable(name: "slot", scope: !0, file: !1, line: 2, type: !4, isDefinition: true)
!34 = !{{!30, !32}}
"""

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
MODELS = {
    "x86-default": (X86, {"jit": True}),
    "x86-small-pic": (X86, {"codemodel": "small", "reloc": "pic"}),
    "x86-large-pic": (X86, {"codemodel": "large", "reloc": "pic"}),
    "arm-default": (ARM, {"jit": True}),
    "arm-small-pic": (ARM, {"codemodel": "small", "reloc": "pic"}),
}
# By name: how it is compiled, and its version of DWARF; without one it has no debug information.
OBJECTS = {
    f"{model}-dwarf{dwarf}" if dwarf else model: (model, dwarf)
    for model in MODELS
    for dwarf in (0, 4, 5)
}


@cache
def emit(text: str, model: str) -> bytes:
    """An IR module as an object, compiled in one of the ways of MODELS."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple, options = MODELS[model]
    machine = llvm.Target.from_triple(triple).create_target_machine(**options)
    module = llvm.parse_assembly(text)
    module.triple = triple
    module.data_layout = str(machine.target_data)
    return machine.emit_object(module)


def emitted(name: str) -> bytes:
    """One of OBJECTS."""
    model, dwarf = OBJECTS[name]
    if dwarf:
        return emit(CODE + DEBUG.format(dwarf=dwarf), model)
    return emit(re.sub(r",? !dbg !\d+|.*llvm.dbg.*\n", "", CODE), model)


def assembled(text: str, directory: Path) -> ObjectFile:
    """What x86-64 assembly becomes."""
    source, result = directory / "object.s", directory / "object.o"
    source.write_text(text)
    run(tool("as"), "--64", "-o", str(result), str(source))
    return ObjectFile(result.read_bytes())


@pytest.fixture(params=OBJECTS)
def data(request: pytest.FixtureRequest) -> bytes:
    return emitted(request.param)


def placed(file: ObjectFile, start: int = 0x7F12_3456_7000) -> dict[int, int]:
    """Load addresses as an engine's: code, constants and data each from a page on, 64 KiB apart."""
    kinds = {6: start, 2: start + 0x10000, 3: start + 0x20000, 7: start + 0x30000}
    addresses = {}
    for index, header in enumerate(file.sections):
        kind = header.flags & 7
        if kind in kinds and header.size:
            addresses[index] = address = -(-kinds[kind] // header.alignment) * header.alignment
            kinds[kind] = address + header.size
    return addresses


def header_at(data: bytes | bytearray, index: int) -> int:
    """The offset of the header of a section."""
    return struct.unpack_from("<Q", data, 40)[0] + SECTION.size * index


# sh_name, sh_type, …: offset in a section header, and size
FIELDS = ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8))
NASTY = (0, 1, 2, 8, 1 << 31, (1 << 32) - 1, 1 << 60, 1 << 63, (1 << 64) - 1)


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """Real objects, cut off or with a few fields and bytes changed."""
    chance = random.Random(seed)
    originals = [emitted(name) for name in OBJECTS]
    for _ in range(count):
        data = bytearray(chance.choice(originals))
        sections = struct.unpack_from("<H", data, 60)[0]
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            value = chance.choice(
                (*NASTY, len(data), chance.randrange(100), chance.randrange(5000))
            )
            kind = chance.randrange(8)
            if kind == 0:
                del data[chance.randrange(len(data)) :]
                break
            if kind == 1:
                at, size = chance.randrange(len(data)), 1
            elif kind == 2:
                at, size = chance.randrange(64), chance.choice((1, 2, 4, 8))
            elif kind < 6:
                at, size = chance.choice(FIELDS)
                at += header_at(data, chance.randrange(sections))
            else:
                at, size = chance.randrange(len(data) // 4) * 4, chance.choice((4, 8))
            if at + size <= len(data):
                data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
            else:
                break
        yield bytes(data)


def functions_of(file: ObjectFile) -> list[tuple[str, int, int, int]]:
    """Of each function its name, its section, its offset there and its size."""
    addresses = {index: index << 32 for index in range(len(file.sections))}
    return [
        (name, *divmod(address, 1 << 32), size)
        for name, address, size in read_functions(file, addresses)
    ]


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


def test_functions_are_those_that_llvm_nm_lists(data, tmp_path):
    path = tmp_path / "object.o"
    path.write_bytes(data)
    listed = run(tool("llvm-nm"), "--print-size", "--defined-only", "--numeric-sort", str(path))
    expected = re.findall(r"^(\w+) (\w+) T (.*)$", listed, re.MULTILINE)
    functions = functions_of(ObjectFile(data))
    assert [name for name, _, _, _ in functions] == ["fact", "pick"]
    assert [(f"{at:016x}", f"{size:016x}", name) for name, _, at, size in functions] == expected


def test_a_size_of_0_reaches_the_next_function_and_no_size_reaches_beyond_the_section(tmp_path):
    file = assembled(
        """
        .text
        .globl first, second, third, last, end
        first: nop
        inner: nop; nop
        .type second, @function
        second: nop; nop
        third: nop
        .size third, 100
        .type static, @function
        static: ret
        .size static, 1
        last: nop; nop; nop
        end:
        .section .text.cold, "ax"
        .globl cold
        .type cold, @function
        cold: ret
        """,
        tmp_path,
    )
    names = {file.section_name(index): index for index in range(len(file.sections))}
    text, cold = names[".text"], names[".text.cold"]
    assert functions_of(file) == [
        ("first", text, 0, 3),  # a local label is not a function
        ("second", text, 3, 2),
        ("third", text, 5, 5),
        ("static", text, 6, 1),
        ("last", text, 7, 3),
        ("cold", cold, 0, 1),
    ]


def test_of_several_names_at_an_address_the_global_function_is_given(tmp_path):
    file = assembled(
        """
        .text
        .globl label, public, another
        .weak weak
        .type local, @function
        .type weak, @function
        .type public, @function
        .type another, @function
        label: local: weak: public: another: nop
        .size public, 1
        """,
        tmp_path,
    )
    ((name, _, _, size),) = functions_of(file)
    assert (name, size) in (("public", 1), ("another", 1))
    file = assembled(".text; .globl label; label: .type local, @function; local: nop\n", tmp_path)
    assert [name for name, _, _, _ in functions_of(file)] == ["local"]


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

GOOD = "x86-small-pic-dwarf4"


def field(section: str, offset: int, value: int, size: int) -> bytes:
    """The object GOOD with one field of a section's header changed."""
    data = bytearray(emitted(GOOD))
    file = ObjectFile(bytes(data))
    names = [file.section_name(index) for index in range(len(file.sections))]
    at = header_at(data, names.index(section)) + offset
    data[at : at + size] = value.to_bytes(size, "little")
    return bytes(data)


def changed(offset: int, value: bytes) -> bytes:
    data = bytearray(emitted(GOOD))
    data[offset : offset + len(value)] = value
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
