"""The reader of `.llvm_stackmaps`: as llvm-readobj reads it, and closed to what is malformed."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from statepoints import random_module
from tools import run, tool

from listeners import JITListenerError
from listeners.objectfile import EM_AARCH64, EM_X86_64, ObjectFile
from listeners.safepoints import Location, LocationKind, Record, Root, Slot, StackMaps
from listeners.safepoints.registers import register_name
from listeners.safepoints.statepoint import decode_statepoint

TRIPLES = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
SP, FP = 7, 6


def emitted(text: str, triple: str, opt: int) -> bytes:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(opt=opt)
    module = llvm.parse_assembly(text)
    module.triple = triple
    return machine.emit_object(module)


def section(elf: bytes) -> bytes:
    file = ObjectFile(elf)
    for index in range(len(file.sections)):
        if file.section_name(index) == ".llvm_stackmaps":
            return file.contents(index)
    raise AssertionError("no stack map")


def as_readobj_prints(content: bytes) -> list[str]:
    """A section with one map, in the words of `llvm-readobj --stackmap`."""
    maps = StackMaps(content)
    lines = ["LLVM StackMap Version: 3", f"Num Functions: {len(maps.functions)}"]
    lines += [
        f"Function address: {f.address}, stack size: {f.stack_size},"
        f" callsite record count: {f.records}"
        for f in maps.functions
    ]
    constants = maps.functions[0].constants
    lines.append(f"Num Constants: {len(constants)}")
    lines += [f"#{number}: {value}" for number, value in enumerate(constants, 1)]
    lines.append(f"Num Records: {len(maps)}")
    for _, record in maps.records():
        lines.append(f"Record ID: {record.id}, instruction offset: {record.offset}")
        lines.append(f"{len(record.locations)} locations:")
        for number, (kind, size, register, offset) in enumerate(record.locations, 1):
            what = {
                LocationKind.REGISTER: f"Register R#{register}",
                LocationKind.DIRECT: f"Direct R#{register} + {offset}",
                LocationKind.INDIRECT: f"Indirect [R#{register} + {offset}]",
                LocationKind.CONSTANT: f"Constant {offset & 0xFFFFFFFF}",
                LocationKind.CONSTANT_INDEX: f"ConstantIndex #{offset} ({constants[offset:][:1]})",
            }[kind]
            lines.append(f"#{number}: {what}, size: {size}".replace("((", "(").replace(",))", ")"))
        outs = "".join(f"R#{register} ({size}-bytes) " for register, size in record.live_outs)
        lines.append(f"{len(record.live_outs)} live-outs: [ {outs}]")
    return lines


def test_all_is_read_as_llvm_readobj_reads_it(tmp_path):
    objects = []
    for seed in range(14):
        text = random_module(seed)
        source = tmp_path / f"{seed}.ll"
        source.write_text(text)
        for triple in TRIPLES:
            for opt in 0, 2:
                ours, theirs = (tmp_path / f"{seed}-{triple}-{opt}-{by}.o" for by in ("ll", "llc"))
                ours.write_bytes(emitted(text, triple, opt))
                options = f"-O{opt}", f"-mtriple={triple}", "-filetype=obj", "-o", str(theirs)
                run(tool("llc-19"), *options, str(source))
                objects += [ours, theirs]
    assert len(objects) >= 100
    said = run(tool("llvm-readobj-19"), "--stackmap", *map(str, objects))
    printed = said.split("\nFile: ")[1:]
    seen = set()
    for path, text in zip(objects, printed, strict=True):
        lines = [line.strip() for line in text.splitlines()]
        assert Path(lines[0]) == path
        found = as_readobj_prints(section(path.read_bytes()))
        start = lines.index(found[0])
        assert [line for line in lines[start:] if line] == found
        seen.update(line.split()[1] for line in found if line.startswith("#") and "size" in line)
    assert seen == {"Register", "Direct", "Indirect", "Constant", "ConstantIndex"}


def record(*locations: tuple[int, int, int, int], live_outs: int = 0) -> bytes:
    content = struct.pack("<QIHH", 42, 16, 0, len(locations))
    for kind, size, register, offset in locations:
        content += struct.pack("<BBHHHi", kind, 0, size, register, 0, offset)
    content += bytes(-len(content) % 8) + struct.pack("<HH", 0, live_outs)
    content += struct.pack("<HBB", 3, 0, 8) * live_outs
    return content + bytes(-len(content) % 8)


def stackmap(*records: bytes, address: int = 0x1000, constants: tuple[int, ...] = ()) -> bytes:
    head = struct.pack("<BBHIII", 3, 0, 0, 1, len(constants), len(records))
    head += struct.pack("<QQQ", address, 24, len(records))
    return head + struct.pack(f"<{len(constants)}Q", *constants) + b"".join(records)


def test_a_section_may_hold_several_maps_each_with_its_constants():
    one = stackmap(record((5, 8, 0, 0)), constants=(1 << 40,))
    two = stackmap(record(), record((5, 8, 0, 1)), address=0x2000, constants=(2, 3))
    maps = StackMaps(one + two)
    assert [f.constants for f in maps.functions] == [(1 << 40,), (2, 3)]
    assert maps.addresses == [0x1010, 0x2010, 0x2010]
    assert [maps.function(index).address for index in range(3)] == [0x1000, 0x2000, 0x2000]


def test_functions_without_records_do_not_shift_those_of_others():
    content = struct.pack("<BBHIII", 3, 0, 0, 4, 0, 2)
    for address, count in ((0x10, 0), (0x20, 1), (0x30, 0), (0x40, 1)):
        content += struct.pack("<QQQ", address, 8, count)
    maps = StackMaps(content + record() + record())
    assert [maps.function(index).address for index in range(2)] == [0x20, 0x40]


@pytest.mark.parametrize("live_outs", range(6))
def test_live_outs_of_any_number_end_where_the_next_record_begins(live_outs):
    maps = StackMaps(stackmap(record(live_outs=live_outs), record((1, 8, 3, 0))))
    assert [len(found.live_outs) for _, found in maps.records()] == [live_outs, 0]


def test_records_of_changing_shapes_are_found():
    chance = random.Random(1)
    shapes = [[(3, 8, SP, 8)] * chance.randrange(6) for _ in range(300)]
    maps = StackMaps(stackmap(*(record(*shape) for shape in shapes)))
    assert [len(found.locations) for _, found in maps.records()] == list(map(len, shapes))


@pytest.mark.parametrize(
    ("machine", "number", "name"),
    [
        (EM_X86_64, 0, "rax"),
        (EM_X86_64, 1, "rdx"),
        (EM_X86_64, 7, "rsp"),
        (EM_X86_64, 17, "xmm0"),
        (EM_X86_64, 82, "xmm31"),
        (EM_X86_64, 125, "k7"),
        (EM_X86_64, 145, "r31"),
        (EM_X86_64, 999, "reg 999"),
        (EM_AARCH64, 29, "x29"),
        (EM_AARCH64, 31, "sp"),
        (EM_AARCH64, 95, "v31"),
    ],
)
def test_registers_have_their_names(machine, number, name):
    assert register_name(machine, number) == name


# Statepoints

CONSTANT = LocationKind.CONSTANT
META = (Location(CONSTANT, 8, 0, 0), Location(CONSTANT, 8, 0, 0))


def decoded(*locations: Location, deopt: int = 0, constants: tuple[int, ...] = (), flags: int = 0):
    meta = (META[0], Location(CONSTANT, 8, 0, flags), Location(CONSTANT, 8, 0, deopt))
    return decode_statepoint(Record(1, 2, 0, meta + locations, ()), constants, EM_X86_64)


def slot(offset: int, size: int = 8) -> Location:
    return Location(LocationKind.INDIRECT, size, SP, offset)


def test_deopt_values_pairs_and_allocas_are_told_apart():
    found = decoded(
        Location(LocationKind.CONSTANT_INDEX, 8, 0, 0),
        slot(0),
        *(slot(8), slot(8), slot(8), slot(16)),
        Location(LocationKind.DIRECT, 8, FP, -32),
        deopt=2,
        constants=((1 << 64) - 5,),
    )
    assert found.deopt == (Location(CONSTANT, 8, 0, -5), slot(0))
    assert found.pairs == ((slot(8), slot(8)), (slot(8), slot(16)))
    assert found.roots == (
        Root(Slot(SP, 8), Slot(SP, 8)),
        Root(Slot(SP, 8), Slot(SP, 16)),
        Root(Slot(FP, -32), Slot(FP, -32)),
    )


def test_a_location_of_two_pointers_is_two_roots_and_pairs_count_once():
    found = decoded(*[slot(16, 16)] * 4)
    assert found.roots == tuple(Root(Slot(SP, at), Slot(SP, at)) for at in (16, 24))


def test_a_constant_for_a_root_is_null():
    null = Location(CONSTANT, 8, 0, 0)
    assert decoded(null, null).roots == ()
    assert decoded(null, slot(8)).roots == (Root(None, Slot(SP, 8)),)
    assert decoded(slot(8, 16), null).roots == (Root(Slot(SP, 8), None), Root(Slot(SP, 16), None))


@pytest.mark.parametrize(
    ("locations", "options", "problem"),
    [
        ([Location(LocationKind.REGISTER, 8, 3, 0)] * 2, {}, "location 4: a root in a register"),
        ([slot(8), Location(LocationKind.REGISTER, 8, 3, 0)], {}, "location 5: a root in a reg"),
        (
            [Location(LocationKind.DIRECT, 8, SP, 0), slot(8)],
            {},
            "location 4: a root that is the address of",
        ),
        ([slot(8)], {}, "1 locations for pairs"),
        ([slot(8, 4)] * 2, {}, "4 bytes of pointers"),
        ([slot(12)] * 2, {}, "location 4: a root at [+]12, not aligned"),
        ([slot(8, 0)] * 2, {}, "0 bytes of pointers"),
        ([slot(8, 16), slot(8)], {}, "8 bytes of pointers derived from 16"),
        ([Location(LocationKind.INDIRECT, 8, 3, 0)] * 2, {}, "relative to rbx"),
        ([Location(LocationKind.DIRECT, 12, SP, 0)], {}, "an alloca, 12 bytes"),
        ([slot(8)], {"deopt": 2}, "not those of a statepoint"),
        ([Location(LocationKind.CONSTANT_INDEX, 8, 0, 1)], {"deopt": 1}, "constant 1 of 0"),
        ([], {"flags": 4}, "not those of a statepoint"),
    ],
)
def test_what_cannot_be_a_root_is_refused(locations, options, problem):
    with pytest.raises(JITListenerError, match=problem):
        decoded(*locations, **options)


# What is malformed


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\3", "offset 0x0: a header that is cut off"),
        (struct.pack("<BBHIII", 2, 0, 0, 0, 0, 0), "version 2"),
        (struct.pack("<BBHIII", 3, 0, 0, 1 << 31, 0, 0), "functions and 0 constants"),
        (stackmap(record())[:-8], "function at 0x1000: it is cut off"),
        (stackmap(record((3, 8, 7, 0)) + b"")[:-8], "its 1 locations are cut off"),
        (stackmap(record(live_outs=3))[:-8], "its 3 live-outs are cut off"),
        (stackmap(record()) + bytes(8), "a header that is cut off"),
        (struct.pack("<BBHIIIQQQ", 3, 0, 0, 1, 0, 1, 16, 8, 2) + record() * 2, "has 2 records of"),
        (
            struct.pack("<BBHIIIQQQ", 3, 0, 0, 1, 0, 2, 16, 8, 1) + record() * 2,
            "1 have no function",
        ),
    ],
)
def test_what_is_malformed_is_refused_with_the_place(content, problem):
    with pytest.raises(JITListenerError, match=problem) as caught:
        StackMaps(content)
    assert ".llvm_stackmaps, offset" in str(caught.value)


def test_an_unknown_kind_of_location_is_refused_with_function_and_offset():
    maps = StackMaps(stackmap(record((3, 8, 7, 0), (6, 8, 7, 0))))
    with pytest.raises(JITListenerError, match="function at 0x1000: at offset 0x10: .*kind 6"):
        maps.record(0)


def mutants(count: int) -> Iterator[bytes]:
    """Sections cut off, noise, or real ones with a few bytes changed."""
    chance = random.Random(4)
    originals = [
        section(emitted(random_module(seed), triple, 2)) for seed in range(4) for triple in TRIPLES
    ]
    for _ in range(count):
        content = bytearray(chance.choice(originals))
        kind = chance.randrange(8)
        if kind == 0:
            content = bytearray(chance.randbytes(chance.randrange(200)))
            content[:1] = b"\3"
        elif kind == 1:
            del content[chance.randrange(len(content)) :]
        else:
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(content))
                content[at] = chance.choice((0, 1, 3, 0x7F, 0xFF, chance.randrange(256)))
        yield bytes(content)


def test_ten_thousand_malformed_sections_are_refused_or_read_to_the_end():
    refused = statepoints = others = 0
    for content in mutants(10_000):
        try:
            maps = StackMaps(content)
            records = list(maps.records())
        except JITListenerError as error:
            assert "offset 0x" in str(error)
            refused += 1
            continue
        assert len(records) == len(maps)
        for mapped, found in records:
            try:
                decode = decode_statepoint(found, mapped.constants, EM_X86_64)
            except JITListenerError:
                others += 1
                continue
            statepoints += 1
            known = 3 + len(decode.deopt) + 2 * len(decode.pairs) + len(decode.allocas)
            assert known == len(found.locations)
    assert min(refused, statepoints, others) > 2_000
