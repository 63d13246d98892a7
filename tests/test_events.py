"""`LoadedObject`: what it is asked for, by listeners and by people."""

import random
from bisect import bisect_right

import llvmlite.binding as llvm
import pytest
from jit import Program, source_ir, target_machine

import listeners
from listeners.lines import read_lines
from listeners.objectfile import ObjectFile


@pytest.fixture(params=[False, True], ids=["default", "small"])
def collatz(request, linker) -> listeners.LoadedObject:
    """The object of collatz.tiny, loaded."""
    program = Program(linker, small=request.param)
    attachment = listeners.attach(program.engine)
    program.load(source_ir(), "steps")
    yield attachment.objects[0]
    program.unload()


def test_functions_are_found_by_name_and_by_address(collatz):
    steps = collatz.function("steps")
    assert [function.name for function in collatz.functions] == ["steps", "longest"]
    assert collatz.function_at(steps.address) == steps
    assert collatz.function_at(steps.address + steps.size - 1) == steps
    assert collatz.function_at(steps.address - 1) is None
    assert collatz.function_at(collatz.function("longest").address).name == "longest"
    with pytest.raises(KeyError):
        collatz.function("no such function")


def test_sections_are_those_in_memory(collatz):
    for section in collatz.sections:
        assert collatz.section(section.name) is section
        assert section.size > 0
    steps = collatz.function("steps")
    code = next(s for s in collatz.sections if s.name in (".text", ".ltext"))
    assert code.address <= steps.address < code.address + code.size
    with pytest.raises(KeyError):
        collatz.section(".debug_info")


def test_the_debug_object_is_the_emitted_one_with_load_addresses(collatz):
    debug_object = ObjectFile(collatz.debug_object())
    loaded = {section.index: section.address for section in collatz.sections}
    assert loaded.items() <= debug_object.addresses.items()
    assert set(debug_object.allocated) == set(loaded)
    assert debug_object.emitted == collatz.elf != collatz.debug_object()


def test_lines_are_absolute_and_name_the_source(collatz):
    lines = collatz.lines()
    addresses = [line.address for line in lines]
    at = bisect_right(addresses, collatz.function("longest").address) - 1
    assert lines[at].file.endswith("/examples/collatz.tiny")
    assert lines[at].line == 14
    assert {line.line for line in lines} >= {4, 5, 6, 7, 8, 10, 11, 12, 18}


def test_an_object_without_debug_information_has_no_lines(linker):
    program = Program(linker)
    attachment = listeners.attach(program.engine)
    program.load(source_ir(debug=False), "steps")
    assert attachment.objects[0].lines() == ()


def test_names_are_demangled_for_people(linker):
    program = Program(linker)
    attachment = listeners.attach(program.engine)
    program.load("define void @_ZN4game5laterEi() { ret void }", "_ZN4game5laterEi")
    (obj,) = attachment.objects
    assert obj.name == "game::later(int)"
    assert obj.function("game::later(int)") == obj.function("_ZN4game5laterEi")


def test_keys_are_never_used_again(linker):
    keys = set()
    for _ in range(3):
        program = Program(linker)
        attachment = listeners.attach(program.engine)
        program.load("define void @f() { ret void }", "f")
        keys |= {obj.key for obj in attachment.objects}
        program.unload()
    assert len(keys) == 3


def test_a_freed_object_can_be_read_but_its_memory_cannot(linker):
    program = Program(linker)
    attachment = listeners.attach(program.engine)
    program.load(source_ir(), "steps")
    (obj,) = attachment.objects
    program.unload()
    assert obj.functions[0].name == "steps"
    assert obj.sections
    with pytest.raises(listeners.JITListenerError, match="freed its memory"):
        obj.image()


def test_an_image_asked_for_in_time_stays(linker):
    program = Program(linker)
    attachment = listeners.attach(program.engine)
    program.load(source_ir(), "steps")
    (obj,) = attachment.objects
    image = obj.image()
    program.unload()
    assert obj.image() is image


def test_malformed_line_tables_are_an_error_of_the_family():
    elf = target_machine().emit_object(llvm.parse_assembly(source_ir()))
    obj = listeners.LoadedObject(
        lambda: ObjectFile(elf), lambda address, size: bytes(size), {2: 0x10000}
    )
    image = bytearray(obj.image())
    random.seed(1)
    for _ in range(300):
        broken = bytearray(image)
        for _ in range(8):
            broken[random.randrange(len(broken))] = random.randrange(256)
        try:
            read_lines(bytes(broken))
        except listeners.JITListenerError:
            continue
