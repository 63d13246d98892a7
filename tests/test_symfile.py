"""Images that engines register, whatever their kind, read as objects."""

import struct

import pytest
from jit import source_ir, target_machine
from llvmlite import binding as llvm

from gdbjit.library import build
from listeners import JITListenerError, LoadedObject
from listeners.functions import read_functions
from listeners.objectfile import HEADER, SECTION, SHF_EXECINSTR, ObjectFile
from listeners.symfile import read_symfile


def linked() -> tuple[LoadedObject, bytes]:
    """An object at some addresses, and the image of it."""
    file = ObjectFile(bytes(target_machine().emit_object(llvm.parse_assembly(source_ir()))))
    addresses = {
        index: 0x10000 * index for index, header in enumerate(file.sections) if header.flags & 2
    }
    obj = LoadedObject(lambda: file, lambda _, size: b"\x90" * size, addresses)
    return obj, obj.image()


def code_section(image: bytes) -> tuple[int, int]:
    """The index of the one with code, and the offset of its header."""
    (number,) = (
        index
        for index, header in enumerate(read_symfile(image).sections)
        if header.flags & 4 and header.size
    )
    return number, HEADER.unpack_from(image)[11] + number * SECTION.size


def test_a_linked_image_is_the_object_again() -> None:
    obj, image = linked()
    again = LoadedObject(lambda: read_symfile(image), lambda _, size: b"\x90" * size)
    assert again.functions == obj.functions
    assert again.lines() == obj.lines()
    assert [s.address for s in again.sections] == [s.address for s in obj.sections if s.size]
    final = LoadedObject(lambda: read_symfile(again.image()), lambda _, size: b"\x90" * size)
    assert final.functions == obj.functions
    assert final.lines() == obj.lines()


def test_an_object_is_left_as_it_is() -> None:
    emitted = bytes(target_machine().emit_object(llvm.parse_assembly(source_ir())))
    assert read_symfile(emitted).data == emitted


def test_code_without_a_size_has_that_of_its_segment() -> None:
    """As some versions of wasmtime register it."""
    obj, image = linked()
    number, at = code_section(image)
    data = bytearray(image)
    data[at + 32 : at + 40] = bytes(8)  # sh_size
    file = read_symfile(bytes(data))
    assert file.sections[number].size == read_symfile(image).sections[number].size
    again = LoadedObject(lambda: file, lambda _, size: b"\x90" * size)
    assert [f.address for f in again.functions] == [f.address for f in obj.functions]


def test_code_without_a_size_that_is_not_in_the_file_is_none() -> None:
    _, image = linked()
    number, at = code_section(image)
    data = bytearray(image)
    data[at + 24 : at + 40] = struct.pack("<QQ", 1 << 40, 0)  # sh_offset, sh_size
    assert read_symfile(bytes(data)).sections[number].size == 0


def test_a_shared_object_is_read() -> None:
    file = read_symfile(build(62))
    code = [index for index in file.allocated if file.sections[index].flags & SHF_EXECINSTR]
    assert [file.section_name(index) for index in code] == [".text"]
    assert read_functions(file, None) == []  # it has dynamic symbols alone


def test_malformed_images_are_errors() -> None:
    _, image = linked()
    with pytest.raises(JITListenerError):
        read_symfile(b"")
    for size in range(0, len(image), 97):
        with pytest.raises(JITListenerError):
            read_symfile(image[:size])
    for at in range(64):
        for value in (0, 1, 0x7F, 0xFF):
            data = bytearray(image)
            data[at] = value
            try:
                file = read_symfile(bytes(data))
                obj = LoadedObject(lambda file=file: file, lambda _, size: bytes(size))
                obj.functions, obj.sections, obj.image()
            except JITListenerError:
                pass
