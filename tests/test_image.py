"""The linked image: what GNU ld makes of the same object at the same addresses, what the DWARF
tools say of the object, and the bytes that run in the process."""

import ctypes
import io
import random
import re
import struct

import pytest
from elftools.elf.elffile import ELFFile
from jit import Long, source_ir
from objects import (
    OBJECTS,
    assembled,
    changed,
    emitted,
    header_at,
    mutants,
    placed,
)
from tools import run, tool

import listeners
from listeners import JITListenerError
from listeners.image import build_image
from listeners.objectfile import ObjectFile

PAGE = 4096


@pytest.fixture(params=OBJECTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def file(name: str) -> ObjectFile:
    return ObjectFile(emitted(name))


def parsed(image: bytes) -> ELFFile:
    return ELFFile(io.BytesIO(image))


def symbols(image: ELFFile) -> dict[str, int]:
    return {s.name: s["st_value"] for s in image.get_section_by_name(".symtab").iter_symbols()}


def indices(file: ObjectFile) -> dict[str, int]:
    return {file.section_name(index): index for index in range(len(file.sections))}


def written(directory, image: bytes, name: str = "image") -> str:
    path = directory / name
    path.write_bytes(image)
    return str(path)


# What it holds


def test_every_loaded_section_is_at_its_address_and_one_is_called_text(file):
    addresses = placed(file)
    image = parsed(build_image(file, addresses))
    assert image["e_type"] == "ET_EXEC"
    sections = list(image.iter_sections())
    loaded = [section for section in sections if section["sh_flags"] & 2]
    code = next(i for i in addresses if file.sections[i].flags & 4)
    renamed = {file.section_name(i): a for i, a in addresses.items()}
    renamed[".text"] = renamed.pop(file.section_name(code))
    assert {section.name: section["sh_addr"] for section in loaded} == renamed
    assert [section.name for section in sections].count(".text") == 1
    assert not [section.name for section in sections if section.name.startswith(".rel")]
    assert not [section.name for section in sections if section["sh_size"] == 0 and section.name]

    segments = [s for s in image.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [s["p_vaddr"] for s in segments] == sorted(addresses.values())
    for segment in segments:
        assert segment["p_offset"] % PAGE == segment["p_vaddr"] % PAGE
    for section in loaded:
        access = 4 | (section["sh_flags"] & 1) << 1 | (section["sh_flags"] & 4) >> 2
        assert [s["p_flags"] for s in segments if s["p_vaddr"] == section["sh_addr"]] == [access]


def test_symbols_are_absolute_and_what_is_not_here_is_left_out(file):
    addresses = placed(file)
    image = parsed(build_image(file, addresses))
    found = symbols(image)
    tls = {i for i, header in enumerate(file.sections) if header.flags & 0x400}
    for symbol in file.symbols:
        text = file.symbol_name(symbol)
        if symbol.section in addresses and symbol.info & 0xF != 3:
            base = 0 if symbol.section in tls else addresses[symbol.section]
            if not text.startswith("$"):  # AArch64's marks of code and data: many of each name
                assert found[text] == base + symbol.value
        elif symbol.section == 0 and text:
            assert text not in found
    assert {"fact", "pick", "counter", "buffer", "slot"} <= set(found)
    table = image.get_section_by_name(".symtab")
    local = [s["st_info"]["bind"] == "STB_LOCAL" for s in table.iter_symbols()]
    assert local == sorted(local, reverse=True)
    assert sum(local) == table["sh_info"]


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.startswith("x86")])
def test_it_is_byte_for_byte_what_ld_makes_at_these_addresses(file, tmp_path):
    addresses = placed(file)
    image = parsed(build_image(file, addresses))

    # ld merges equal strings and shortens frames' padding: neither is what a loaded object has.
    data = bytearray(file.data)
    for index, header in enumerate(file.sections):
        struct.pack_into("<Q", data, header_at(data, index) + 8, header.flags & ~0x30)
    script = ["external = 0x7f1234560000;", "SECTIONS {"]
    script.append(".got 0x7f1234550000 : { *(.got .got.plt) }")
    for index, address in sorted(addresses.items(), key=lambda item: item[1]):
        section = file.section_name(index)
        script.append(f"{section} {address:#x} : {{ *({section}) }}")
        if section == ".eh_frame":
            end = address + file.sections[index].size
            script.append(f".eh_frame_hdr {-(-end // 4) * 4:#x} : {{ *(.eh_frame_hdr) }}")
    commands = written(tmp_path, "\n".join([*script, "}"]).encode(), "script")
    options = "--eh-frame-hdr", "--no-relax", "-T", commands, "-o", f"{tmp_path}/linked"
    run(tool("ld"), *options, written(tmp_path, data, "object.o"))
    twin = parsed((tmp_path / "linked").read_bytes())

    # Code there has the address of `external`, which is not here, and a GOT's.
    others = {"", ".text", ".eh_frame", ".symtab", ".strtab", ".bss", ".lbss"}
    for section in image.iter_sections():
        if section.name not in others:
            assert section.data() == twin.get_section_by_name(section.name).data(), section.name
    theirs = symbols(twin)
    assert {n: v for n, v in symbols(image).items() if n and theirs[n] != v} == {}


def test_dwarf_says_of_the_image_what_it_says_of_the_object_at_its_address(name, file, tmp_path):
    """The object's own addresses are offsets in its one code section."""
    addresses = placed(file)
    code = next(a for i, a in addresses.items() if file.sections[i].flags & 4)
    counter = next(s for s in file.symbols if file.symbol_name(s) == "counter")
    dump = ("--debug-info", "--debug-line", "--debug-loc", "--debug-loclists", "--debug-addr")
    before = run(tool("llvm-dwarfdump"), *dump, written(tmp_path, file.data))
    after = run(tool("llvm-dwarfdump"), *dump, written(tmp_path, build_image(file, addresses)))

    def relative(address: re.Match[str]) -> str:
        value = int(address[1], 16)
        return f"0x{value - code:016x}" if code <= value < code + 0x10000 else address[0]

    after = re.sub(r"0x(\w{16})\b", relative, after)
    data = addresses[counter.section] + counter.value
    after = after.replace(f"DW_OP_addr 0x{data:x}", f"DW_OP_addr 0x{counter.value:x}")
    after = after.replace(f"0x{data:016x}", f"0x{counter.value:016x}")
    after = re.sub(r' "\.l?text"', "", after)
    before = re.sub(r' "\.l?text"', "", before)
    assert after.split("\n")[1:] == before.split("\n")[1:]
    assert ("program.toy" in after) == ("dwarf" in name)


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.endswith("dwarf4")])
def test_dwarf_is_sound(file, tmp_path):
    said = run(
        tool("llvm-dwarfdump"), "--verify", written(tmp_path, build_image(file, placed(file)))
    )
    assert "No errors." in said


@pytest.mark.parametrize("name", [name for name in OBJECTS if "x86" in name and "dwarf" in name])
def test_objdump_disassembles_it_with_names_and_lines(file, tmp_path):
    addresses = placed(file)
    start = min(addresses.values())
    said = run(tool("objdump"), "-d", "-l", written(tmp_path, build_image(file, addresses)))
    assert f"{start:016x} <fact>:\nfact():\n/src/program.toy:3\n" in said
    assert re.search(rf"/src/program.toy:6\n +{start >> 12:x}", said)


@pytest.mark.tools
@pytest.mark.parametrize("name", [name for name in OBJECTS if "x86" in name and "dwarf" in name])
def test_gdb_reads_lines_and_variables_from_it(file, tmp_path):
    addresses = placed(file)
    start = min(addresses.values())
    asked = ("info line fact", "info address counter", "info scope fact", "info symbol pick")
    options = [part for command in asked for part in ("-ex", command)]
    path = written(tmp_path, build_image(file, addresses))
    said = run(tool("gdb"), "-nx", "-batch", *options, path)
    assert f'Line 3 of "program.toy" starts at address {start:#x} <fact>' in said
    assert "pick in section .text\n" in said
    assert "Symbol n is " in said
    counter = next(s for s in file.symbols if file.symbol_name(s) == "counter")
    assert f'Symbol "counter" is static storage at address {addresses[counter.section]:#x}' in said


# What varies


def test_the_largest_code_section_is_text_and_the_others_keep_names_of_their_own(tmp_path):
    file = assembled(
        """
        .globl a, b, c
        .text
        a: nop
        .section .text.hot, "ax"
        b: .skip 100
        .section .text.unlikely, "ax"
        c: nop
        """,
        tmp_path,
    )
    image = parsed(build_image(file, placed(file)))
    names = {
        symbol.name: image.get_section(symbol["st_shndx"]).name
        for symbol in image.get_section_by_name(".symtab").iter_symbols()
        if symbol.name in ("a", "b", "c")
    }
    text = indices(file)[".text"]
    assert names == {"a": f".text.{text}", "b": ".text", "c": ".text.unlikely"}


def test_what_was_not_loaded_is_left_out_and_debug_information_has_0_for_it(name, file):
    addresses = placed(file)
    counter = next(s for s in file.symbols if file.symbol_name(s) == "counter")
    without = {**addresses, counter.section: 0}
    image = parsed(build_image(file, without))
    assert "counter" not in symbols(image)
    assert "fact" in symbols(image)
    data = addresses[counter.section]
    ends = [(s["sh_addr"], s["sh_addr"] + s["sh_size"]) for s in image.iter_sections()]
    assert not [start for start, end in ends if start <= data < end]

    def mentioned(image: ELFFile) -> bool:
        debug = [s.data() for s in image.iter_sections() if s.name.startswith(".debug")]
        return any(data.to_bytes(8, "little") in content for content in debug)

    assert mentioned(parsed(build_image(file, addresses))) == ("dwarf" in name)
    assert not mentioned(image)
    assert list(parsed(build_image(file, {})).iter_segments()) == []


def test_the_process_gives_the_bytes_but_of_frames(file):
    addresses = placed(file)
    asked = []

    def read(address: int, size: int) -> bytes:
        asked.append((address, size))
        return bytes([len(asked)]) * size

    image = parsed(build_image(file, addresses, read))
    frames = indices(file)[".eh_frame"]
    no_bits = {index for index, header in enumerate(file.sections) if header.type == 8}
    assert sorted(asked) == sorted(
        (address, file.sections[index].size)
        for index, address in addresses.items()
        if index not in no_bits | {frames}
    )
    for number, (address, size) in enumerate(asked, 1):
        (section,) = [s for s in image.iter_sections() if s["sh_addr"] == address]
        assert section.data() == bytes([number]) * size
    alone = parsed(build_image(file, addresses))
    assert (
        image.get_section_by_name(".eh_frame").data()
        == alone.get_section_by_name(".eh_frame").data()
    )


def test_compressed_debug_information_is_expanded_and_relocated(tmp_path):
    file = ObjectFile(emitted("x86-small-pic-dwarf5"))
    path, small = written(tmp_path, file.data), tmp_path / "small.o"
    run(tool("objcopy"), "--compress-debug-sections=zlib", path, str(small))
    again = ObjectFile(small.read_bytes())
    assert any(header.flags & 0x800 for header in again.sections)
    one, two = (parsed(build_image(f, placed(f))) for f in (file, again))
    for section in one.iter_sections():
        if section.name.startswith(".debug"):
            assert two.get_section_by_name(section.name).data() == section.data()
            assert not two.get_section_by_name(section.name)["sh_flags"] & 0x800


def test_code_too_far_from_the_frames_has_an_image_without_their_table():
    file = ObjectFile(emitted("x86-default-dwarf4"))
    addresses = placed(file)
    addresses[indices(file)[".eh_frame"]] += 1 << 32
    image = parsed(build_image(file, addresses))
    assert image.get_section_by_name(".eh_frame_hdr") is None
    assert image.get_section_by_name(".eh_frame") is not None


def test_an_engine_s_object_has_the_bytes_that_run(program):
    """Every linker: symbols where the engine says they are, code as it is in memory."""
    heard = []

    class Listener(listeners.JITEventListener):
        def notify_object_loaded(self, obj: listeners.LoadedObject) -> None:
            heard.append(obj)

    with listeners.attach(program.engine, Listener()):
        steps, longest = program.load(source_ir(), "steps", "longest")
        image = parsed(heard[-1].image())
        found = symbols(image)
        assert (found["steps"], found["longest"]) == (steps, longest)
        text = image.get_section_by_name(".text")
        assert text.data() == ctypes.string_at(text["sh_addr"], text["sh_size"])
        assert Long(longest)(10) == 19


# What is refused


def test_sections_that_overlap_or_end_beyond_memory_are_an_error(file):
    addresses = placed(file)
    code = next(i for i in addresses if file.sections[i].flags & 4)
    other = next(i for i in addresses if i != code)
    for address in (addresses[other], addresses[other] - 1):
        with pytest.raises(JITListenerError, match="overlaps section"):
            build_image(file, {**addresses, code: address})
    for address in (-1, (1 << 64) - 1, 1 << 70):
        with pytest.raises(JITListenerError, match=r"overlaps|beyond the end of memory"):
            build_image(file, {**addresses, code: address})


def test_memory_that_cannot_be_read_whole_is_an_error(file):
    with pytest.raises(JITListenerError, match=r"section \d+: 0 bytes could be read of the \d+"):
        build_image(file, placed(file), lambda _address, _size: b"")


def test_another_machine_is_an_error():
    data = changed(18, b"\xf3\0")
    with pytest.raises(JITListenerError, match="machine 243"):
        build_image(ObjectFile(data), placed(ObjectFile(data)))


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 1 << 40, "relocation of type 10 at offset 0x10000000000: outside"),
        (0, (1 << 64) - 1, "relocation of type 10 at offset 0xffffffffffffffff: outside"),
        (8, 9, "type 9 .* not a type for data on this machine"),
        (12, 5000, r"symbol 5000 of \d+"),
        (16, 1 << 33, "its value does not fit"),
    ],
)
def test_a_relocation_of_debug_information_that_cannot_be_applied_is_an_error(at, value, message):
    file = ObjectFile(emitted("x86-small-pic-dwarf4"))
    relocations = file.sections[indices(file)[".rela.debug_info"]].offset
    size = {0: 8, 8: 4, 12: 4, 16: 8}[at]
    broken = ObjectFile(changed(relocations + at, value.to_bytes(size, "little")))
    with pytest.raises(JITListenerError, match=rf"\(\.debug_info\), .*{message}"):
        build_image(broken, placed(broken))


def test_a_frame_of_code_elsewhere_is_an_error():
    file = ObjectFile(emitted("x86-small-pic-dwarf4"))
    addend = file.sections[indices(file)[".rela.eh_frame"]].offset + 16
    broken = ObjectFile(changed(addend, (0x5000).to_bytes(8, "little")))
    with pytest.raises(JITListenerError, match="an FDE of .* not in a code section"):
        build_image(broken, placed(broken))


def test_mutilated_objects_have_an_image_or_are_refused():
    chance = random.Random(3)
    refused = 0
    for data in mutants(10_000, seed=2):
        try:
            file = ObjectFile(data)
            addresses = {
                index: 0x1000 * index + (chance.randrange(1 << 47) if chance.random() < 0.1 else 0)
                for index, header in enumerate(file.sections)
                if header.flags & 2
            }
            memory = chance.choice((None, lambda _address, size: bytes(size)))
            assert len(build_image(file, addresses, memory)) < 20 * len(data) + 20 * PAGE
        except JITListenerError:
            refused += 1
    assert 2_000 < refused < 9_000
