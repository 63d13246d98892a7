"""Programs of other shapes: of 32 bits, static, with the interface in the program itself."""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from targets import line

import gdbjit
from gdbjit import elf
from gdbjit.layout import CodeDescriptor, CodeEntry, layout


def test_layouts_by_machine() -> None:
    entries = {
        name: layout(elf_class, 1, machine).entry.pack(1, 2, 3, 4)
        for name, elf_class, machine in (
            ("x86-64", elf.CLASS64, elf.EM_X86_64),
            ("i386", elf.CLASS32, elf.EM_386),
            ("arm", elf.CLASS32, 40),
        )
    }
    sizes = {name: len(data) for name, data in entries.items()}
    assert sizes == {"x86-64": 32, "i386": 20, "arm": 24}
    offsets = {name: data.index(b"\4") for name, data in entries.items()}
    assert offsets == {"x86-64": 24, "i386": 12, "arm": 16}
    assert layout(elf.CLASS64, 1, elf.EM_X86_64).descriptor.size == ctypes.sizeof(CodeDescriptor)
    assert layout(elf.CLASS32, 1, elf.EM_386).descriptor.size == 16
    assert (CodeEntry.size.offset, CodeDescriptor.first.offset) == (24, 16)


def program_of_i386(path: Path) -> bytes:
    """A static 32-bit program that waits, with two entries in its list. Returns their image."""
    form = elf.elf_format(elf.CLASS32, 1)
    structures = layout(elf.CLASS32, 1, elf.EM_386)
    base = 0x08048000
    image = b"\x7fELF of the list"
    strings = b"\0__jit_debug_descriptor\0__jit_debug_register_code\0"
    code_at = form.header.size + form.segment.size
    code = b"\xb8\x1d\0\0\0\xcd\x80\xeb\xf7"  # mov $29 (pause), %eax; int $0x80; jmp back
    descriptor_at = 0x100
    first_at, second_at, image_at, symbols_at, strings_at, sections_at = (
        0x120, 0x140, 0x160, 0x180, 0x200, 0x280,
    )  # fmt: skip
    content = {
        0: form.header.pack(
            elf.MAGIC + b"\1\1\1", elf.ET_EXEC, elf.EM_386, 1, base + code_at, form.header.size,
            sections_at, 0, form.header.size, form.segment.size, 1, form.section.size, 4, 2,
        ),
        form.header.size: form.segment.pack(1, 0, base, base, 0x400, 0x400, 7, 4096),
        code_at: code,
        descriptor_at: structures.descriptor.pack(1, 1, base + first_at, base + first_at),
        first_at: structures.entry.pack(base + second_at, 0, base + image_at, len(image)),
        second_at: structures.entry.pack(0, base + first_at, base + image_at, 4),
        image_at: image,
        symbols_at: form.symbol.pack(0, 0, 0, 0, 0, 0)
        + form.symbol.pack(1, base + descriptor_at, 16, 1, 0, 3)
        + form.symbol.pack(24, base + code_at, len(code), 2, 0, 3),
        strings_at: strings,
        sections_at: bytes(form.section.size)
        + form.section.pack(0, elf.SHT_SYMTAB, 0, 0, symbols_at, 48, 2, 3, 4, 16)
        + form.section.pack(0, elf.SHT_STRTAB, 0, 0, strings_at, len(strings), 0, 0, 1, 0)
        + form.section.pack(0, 1, 7, base + code_at, code_at, 0x100, 0, 0, 1, 0),
    }  # fmt: skip
    data = bytearray(0x400)
    for at, part in content.items():
        data[at : at + len(part)] = part
    path.write_bytes(data)
    path.chmod(0o755)
    return image


def test_a_static_program_of_32_bits(tmp_path: Path) -> None:
    image = program_of_i386(tmp_path / "static32")
    with subprocess.Popen([tmp_path / "static32"]) as process:
        try:
            time.sleep(0.1)
            (descriptor,) = gdbjit.descriptors(process.pid)
            assert descriptor.address == 0x08048100
            assert not descriptor.exported
            second, first = descriptor.entries()
            assert first.symfile == image
            assert second.symfile == image[:4]
        finally:
            process.kill()


def test_a_program_that_exports_the_interface(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.fail("gcc is missing: apt-get install gcc libc6-dev")
    source = tmp_path / "main.c"
    source.write_text(
        "#include <stdint.h>\n#include <unistd.h>\n"
        "struct { uint32_t version, action; void *relevant, *first; }"
        " __jit_debug_descriptor = {1};\n"
        "void __jit_debug_register_code(void) {}\n"
        'int main(void) { write(1, "ready\\n", 6); return pause(); }\n'
    )
    for flags, exported in (
        (["-rdynamic", "-pie"], True),
        (["-no-pie"], False),
        (["-static"], False),
        (["-static-pie"], False),
    ):
        program = tmp_path / "main"
        subprocess.run(["gcc", *flags, "-o", program, source], check=True)
        with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert line(process) == "ready"
                (descriptor,) = gdbjit.descriptors(process.pid)
                assert descriptor.exported == exported
                assert descriptor.library == str(program)
                assert descriptor.entries() == []
                symbols = subprocess.run(
                    ["nm", program], check=True, capture_output=True, text=True
                ).stdout
                (value,) = re.findall(r"(\w+) \w __jit_debug_descriptor", symbols)
                assert (descriptor.address - int(value, 16)) % mmap.PAGESIZE == 0
            finally:
                process.kill()
