"""Objects for tests: compiled for two machines in several code models, assembled, and mutilated."""

import random
import re
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
from tools import run, tool

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


GOOD = "x86-small-pic-dwarf4"


def changed(offset: int, value: bytes) -> bytes:
    """The object GOOD with other bytes at an offset."""
    data = bytearray(emitted(GOOD))
    data[offset : offset + len(value)] = value
    return bytes(data)


def functions_of(file: ObjectFile) -> list[tuple[str, int, int, int]]:
    """Of each function its name, its section, its offset there and its size."""
    addresses = {index: index << 32 for index in range(len(file.sections))}
    return [
        (name, *divmod(address, 1 << 32), size)
        for name, address, size in read_functions(file, addresses)
    ]
