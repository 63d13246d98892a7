"""Images that are cut, lie or are noise: refused with the family's error, or harmless."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import tool

import gdbjit
from gdbjit import elf
from gdbjit.library import build
from gdbjit.symfile import check

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

MACHINE = elf.native()[0].machine
LIBRARY = build(MACHINE)


def compiled() -> bytes:
    module = llvm.parse_assembly("""
@table = global [4 x i32] zeroinitializer
declare i32 @elsewhere(i32)
define i32 @mutated(i32 %x) {
  %p = getelementptr [4 x i32], ptr @table, i32 0, i32 %x
  %v = load i32, ptr %p
  %r = call i32 @elsewhere(i32 %v)
  ret i32 %r
}
""")
    machine = llvm.Target.from_default_triple().create_target_machine()
    return bytes(machine.emit_object(module))


OBJECT = compiled()
IMAGES = (OBJECT, LIBRARY)
REGISTER_CODE = gdbjit.own_descriptor().register_code
HEADER, FORM = elf.read_header(OBJECT)


def refused(image: bytes) -> bool:
    try:
        check(image, REGISTER_CODE)
    except gdbjit.GDBJITError as error:
        assert str(error)
        return True
    return False


def patched(at: int, form: str, value: int, image: bytes = OBJECT) -> bytes:
    data = bytearray(image)
    struct.pack_into(form, data, at, value)
    return bytes(data)


def section_of(kind: int) -> int:
    for index in range(HEADER.shnum):
        at = HEADER.shoff + index * FORM.section.size
        if struct.unpack_from("<I", OBJECT, at + 4)[0] == kind:
            return at
    raise AssertionError(kind)


@pytest.mark.parametrize("image", IMAGES, ids=["object", "library"])
@pytest.mark.parametrize("kind", [elf.ET_REL, elf.ET_EXEC, elf.ET_DYN])
def test_objects_programs_and_libraries_are_accepted(image: bytes, kind: int) -> None:
    check(patched(16, "<H", kind, image), REGISTER_CODE)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (b"", "magic"),
        (b"\x7fEL", "magic"),
        (b"\x7fELF\2\1\1", "magic"),
        (OBJECT[:63], "63 of 64"),
        (b"MZ" + OBJECT[2:], "magic"),
        (patched(4, "<B", 1), "class 1"),
        (patched(4, "<B", 9), "class 9"),
        (patched(5, "<B", 2), "byte order 2"),
        (patched(18, "<H", 243), "machine 243"),
        (patched(16, "<H", 4), "e_type is 4"),
        (patched(0x28, "<Q", 0), "e_shoff is 0"),
        (patched(0x28, "<Q", len(OBJECT) - 32), "section header table"),
        (patched(0x28, "<Q", (1 << 64) - 1), "section header table"),
        (patched(0x3A, "<H", 40), "e_shentsize is 40"),
        (patched(0x3C, "<H", 0xFE00), "section header table"),
        (patched(0x3E, "<H", 0), "e_shstrndx is 0"),
        (patched(0x3E, "<H", 0xFEFF), "e_shstrndx is 65279"),
        (patched(0x3E, "<H", 2), "section 2: not a string table"),
        (patched(section_of(elf.SHT_SYMTAB) + 24, "<Q", len(OBJECT)), "not in an image"),
        (patched(section_of(elf.SHT_SYMTAB) + 32, "<Q", 1 << 63), "not in an image"),
        (patched(section_of(elf.SHT_SYMTAB) + 40, "<I", 99), "sh_link is 99"),
        (patched(section_of(elf.SHT_SYMTAB) + 44, "<I", 99), "sh_info is 99"),
        (patched(section_of(elf.SHT_SYMTAB), "<I", 9999), "sh_name is 9999"),
        (patched(section_of(elf.SHT_SYMTAB) + 56, "<Q", 0), "sh_entsize is 0"),
        (patched(section_of(elf.SHT_SYMTAB) + 32, "<Q", 25), "sh_size 25"),
        (patched(section_of(elf.SHT_NOBITS) + 32, "<Q", 1 << 62), "__jit_debug_register_code"),
        (patched(section_of(elf.SHT_RELA) + 56, "<Q", 16), "sh_entsize is 16"),
        (patched(0x36, "<H", 8, LIBRARY), "e_phentsize is 8"),
        (patched(0x20, "<Q", 1 << 40, LIBRARY), "program header table"),
    ],
)
def test_what_is_wrong_is_said(image: bytes, problem: str) -> None:
    descriptor = gdbjit.own_descriptor()
    before = descriptor.entries()
    with pytest.raises(gdbjit.GDBJITError, match=problem):
        gdbjit.register(image, descriptor)
    assert descriptor.entries() == before


def test_a_trusted_image_is_not_looked_into() -> None:
    descriptor = gdbjit.own_descriptor()
    with gdbjit.register(b"anything", descriptor, trusted=True) as registration:
        (entry,) = (one for one in descriptor.entries() if one.address == registration.entry)
        assert entry.symfile == b"anything"


def test_every_cut_of_an_object_is_refused() -> None:
    end = HEADER.shoff + HEADER.shnum * FORM.section.size
    assert end == len(OBJECT)
    for size in range(len(OBJECT)):
        assert refused(OBJECT[:size]), size


@settings(max_examples=5000, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_noise(noise: bytes, with_header: bool) -> None:
    refused(OBJECT[:64] + noise if with_header else noise)


@settings(max_examples=5000, deadline=None)
@given(
    st.sampled_from(IMAGES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8))),
)
def test_mutations(image: bytes, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(image)
    for where, part in changes:
        at = int(where * len(data))
        data[at : at + len(part)] = part
    refused(bytes(data))


def mutations(seed: int) -> Iterator[bytes]:
    """Images with fields of their tables changed to values that fields take, or nearly."""
    draw = random.Random(seed)
    values = (0, 1, 2, 3, 7, 8, 24, 63, 64, 255, 0xFF00, 0xFFFF, 1 << 31, 1 << 63, (1 << 64) - 1)
    while True:
        image = bytearray(draw.choice(IMAGES))
        header, form = elf.read_header(bytes(image))
        for _ in range(draw.randint(1, 4)):
            size = draw.choice((1, 2, 4, 8))
            table = draw.choice((0, header.shoff, header.shoff, len(image) // 3))
            length = form.header.size if not table else header.shnum * form.section.size
            at = min(table + draw.randrange(length), len(image) - size)
            value = draw.choice((*values, draw.randrange(len(image)))) & ((1 << 8 * size) - 1)
            image[at : at + size] = value.to_bytes(size, "little")
        yield bytes(image)


def test_ten_thousand_lying_tables() -> None:
    images = mutations(1)
    outcomes = [refused(next(images)) for _ in range(10_000)]
    assert 1000 < sum(outcomes) < 9000


@pytest.mark.tools
def test_gdb_survives_what_is_accepted(tmp_path: Path) -> None:
    images = mutations(2)
    accepted: list[bytes] = []
    while len(accepted) < 400:
        # gdb would look for the interface in these too, and put breakpoints there.
        image = next(images).replace(b"__jit_debug", b"__was_debug")
        if not refused(image):
            accepted.append(image)
    blob = b"".join(struct.pack("<Q", len(image)) + image for image in accepted)
    (tmp_path / "images").write_bytes(blob)
    program = tmp_path / "program.py"
    program.write_text(f"""
import struct, sys
sys.path.insert(0, {str(Path(gdbjit.__file__).parent.parent)!r})
import gdbjit
data = open({str(tmp_path / "images")!r}, "rb").read()
at = count = 0
while at < len(data):
    (size,) = struct.unpack_from("<Q", data, at)
    gdbjit.register(data[at + 8 : at + 8 + size]).unregister()
    at += 8 + size
    count += 1
print("all", count, "registered", flush=True)
""")
    # Where gdb refuses an image with an error the program stops, and is told to go on.
    commands = (
        "set debuginfod enabled off",
        "set breakpoint pending on",
        "break no_such_function",
        "run",
        *["continue"] * 100,
    )
    options = [part for command in commands for part in ("-ex", command)]
    done = subprocess.run(
        [tool("gdb"), "-q", "-nx", "-batch", *options, "--args", sys.executable, program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stdout
    assert f"all {len(accepted)} registered" in done.stdout
    assert "exited normally" in done.stdout
    assert "internal-error" not in done.stdout
