"""Call frame information: the frames that readelf and llvm-dwarfdump list, a `.eh_frame_hdr` that
they read, and an error with the offset for what is malformed."""

import io
import random
import re
import struct
from contextlib import suppress

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from objects import OBJECTS, assembled, emit, emitted, placed
from tools import run, tool

from listeners import JITListenerError
from listeners.ehframe import FDE, frame_header, read_frames
from listeners.image import build_image
from listeners.objectfile import ObjectFile

CATCHING = """
declare i32 @__gxx_personality_v0(...)
declare void @may_throw()
define i64 @catching(i64 %n) uwtable personality ptr @__gxx_personality_v0 {
  invoke void @may_throw() to label %fine unwind label %caught
fine:
  ret i64 %n
caught:
  %x = landingpad { ptr, i32 } catch ptr null
  ret i64 0
}
define i64 @plain(i64 %n) uwtable { ret i64 %n }
define void @empty() uwtable { unreachable }
define i64 @cold(i64 %n) uwtable section ".text.unlikely" { ret i64 %n }
"""


def linked(file: ObjectFile) -> ELFFile:
    return ELFFile(io.BytesIO(build_image(file, placed(file))))


def frames_of(image: ELFFile) -> list[FDE]:
    section = image.get_section_by_name(".eh_frame")
    return read_frames(section.data(), section["sh_addr"])


MODELS = sorted({model for model, _ in OBJECTS.values()})
TEXTS = {"debug": emitted, "catching": lambda name: emit(CATCHING, OBJECTS[name][0])}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("model", MODELS)
def test_frames_and_header_are_those_that_the_tools_read(model, text, tmp_path):
    image = linked(ObjectFile(TEXTS[text](model)))
    path = tmp_path / "image"
    path.write_bytes(image.stream.getvalue())
    section, header = (image.get_section_by_name(n) for n in (".eh_frame", ".eh_frame_hdr"))
    frames = frames_of(image)
    assert len(frames) == {"debug": 2, "catching": 4}[text]
    symbols = {s.name: s["st_value"] for s in image.get_section_by_name(".symtab").iter_symbols()}
    assert {frame.pc for frame in frames if frame.size} <= set(symbols.values())

    said = run(tool("readelf"), "--debug-dump=frames", str(path))
    listed = re.findall(r"^(\w+) \w+ \w+ FDE cie=\w+ pc=(\w+)\.\.(\w+)$", said, re.MULTILINE)
    assert [tuple(int(x, 16) for x in row) for row in listed] == [
        (frame.address - section["sh_addr"], frame.pc, frame.pc + frame.size) for frame in frames
    ]

    said = run(tool("llvm-readelf"), "--unwind", str(path))
    said = said[: said.index(".eh_frame section at")]
    rows = re.findall(r"initial_location: 0x(\w+)\s+address: 0x(\w+)", said)
    assert [(int(pc, 16), int(entry, 16)) for pc, entry in rows] == sorted(
        (frame.pc, frame.address) for frame in frames if frame.size
    )
    assert f"eh_frame_ptr: {section['sh_addr']:#x}\n" in said
    assert f"  Address: {header['sh_addr']:#x}\n" in said


def test_frames_of_signal_handlers_and_of_code_addresses_in_every_encoding_are_read(tmp_path):
    file = assembled(
        """
        f:  .cfi_startproc
            .cfi_signal_frame
            nop
            .cfi_endproc
        """,
        tmp_path,
    )
    (frame,) = frames_of(linked(file))
    assert frame[:2] == (min(placed(file).values()), 1)

    address = 0x10000
    for encoding, form, size in ((0, "Q", 8), (3, "I", 4), (2, "H", 2), (4, "Q", 8), (0xC, "q", 8)):
        cie = entry(0, b"\1zR\0\1\x78\x10\1" + bytes([encoding]))
        section = cie + entry(len(cie) + 4, struct.pack(f"<2{form}", 0x1234, 0x20))
        assert read_frames(section, address) == [FDE(0x1234, 0x20, address + len(cie))], size
    for encoding, form in ((0x10, "Q"), (0x1A, "h"), (0x1B, "i"), (0x1C, "q"), (0x13, "I")):
        cie = entry(0, b"\1zR\0\1\x78\x10\1" + bytes([encoding]))
        section = cie + entry(len(cie) + 4, struct.pack(f"<2{form}", 0x34, 0x20))
        field = address + len(cie) + 8
        assert read_frames(section, address) == [FDE(field + 0x34, 0x20, field - 8)]
    old = entry(0, b"\3\0\1\x78\x10")
    section = old + entry(len(old) + 4, struct.pack("<2Q", 1, 2)) + bytes(4) + b"after the end"
    assert read_frames(section, address) == [FDE(1, 2, address + len(old))]


def test_the_header_is_sorted_and_leaves_out_frames_of_no_code():
    frames = [FDE(0x3000, 8, 0x9040), FDE(0x1000, 8, 0x9060), FDE(0x2000, 0, 0x9080)]
    header = frame_header(frames, 0x9000, 0xA000)
    assert header == struct.pack(
        "<4BiI4i", 1, 0x1B, 3, 0x3B, -0x1004, 2, -0x9000, -0xFA0, -0x7000, -0xFC0
    )


def test_there_is_no_header_for_code_that_is_out_of_its_reach():
    far = 1 << 31
    assert frame_header([FDE(far - 1, 8, 0)], 0, 0x10) is not None
    assert frame_header([FDE(far + 0x10, 8, 0)], 0, 0x10) is None
    assert frame_header([FDE(0x10, 8, far)], far, far + 0x11) is None
    assert frame_header([FDE(0x10, 8, 0)], far + 4, 0) is None


# What is malformed


def entry(pointer: int, body: bytes) -> bytes:
    """A CIE (pointer 0) or an FDE, whose pointer is the distance back to its CIE."""
    return struct.pack("<II", len(body) + 4, pointer) + body


CIE = entry(0, b"\1zR\0\1\x78\x10\1\x1b")
MALFORMED = {
    "length cut off": (CIE + b"\1\2", 0x11, "cut off"),
    "length beyond the end": (CIE + b"\xff\0\0\0" + bytes(8), 0x11, "an entry of 0xff bytes"),
    "length of 3": (CIE + b"\3\0\0\0\0\0\0", 0x11, "an entry of 0x3 bytes"),
    "64-bit length": (b"\xff\xff\xff\xff" + bytes(20), 0, "64-bit"),
    "no CIE": (CIE + entry(8, bytes(8)), 0x11, "whose CIE is not at 0xd"),
    "CIE before the section": (CIE + entry(0x100, bytes(8)), 0x11, "whose CIE is not at -0xeb"),
    "short FDE": (CIE + entry(0x15, bytes(7)), 0x11, "code addresses are cut off"),
    "version": (entry(0, b"\2zR\0\1\x78\x10\1\x1b"), 0, "version 2"),
    "augmentation": (entry(0, b"\1eh\0\1\x78\x10\1\x1b"), 0, "augmentation 'eh'"),
    "letter": (entry(0, b"\1zX\0\1\x78\x10\1\x1b"), 0, "augmentation 'zX'"),
    "endless augmentation": (entry(0, b"\1zRRRR"), 0, "cut off"),
    "endless number": (entry(0, b"\1zR\0\x80\x80\x80"), 0, "cut off"),
    "no encoding": (entry(0, b"\1zR\0\1\x78\x10\1"), 0, "cut off"),
    "personality cut off": (entry(0, b"\1zPR\0\1\x78\x10\1\0\1\2"), 0, "cut off"),
    "empty CIE": (entry(0, b""), 0, "cut off"),
    "unknown format": (entry(0, b"\1zR\0\1\x78\x10\1\x17"), 0, "encoded as 0x17"),
    "relative to data": (entry(0, b"\1zR\0\1\x78\x10\1\x3b"), 0, "encoded as 0x3b"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_an_error_with_its_offset(case):
    section, offset, message = MALFORMED[case]
    with pytest.raises(JITListenerError, match=rf"\.eh_frame, offset {offset:#x}: .*{message}"):
        read_frames(section, 0x1000)


def test_mutilated_frames_are_read_or_refused():
    chance = random.Random(1)
    originals = [
        image.get_section_by_name(".eh_frame").data()
        for image in (linked(ObjectFile(TEXTS[text](m))) for m in MODELS for text in TEXTS)
    ]
    refused = 0
    for _ in range(10_000):
        data = bytearray(chance.choice(originals))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.choice(
                (0, 1, 0x80, 0xFF, chance.randrange(256))
            )
        try:
            frames = read_frames(data[: chance.choice((len(data), chance.randrange(200)))], 1 << 32)
            frame_header(frames, 1 << 32, 1 << 33)
        except JITListenerError:
            refused += 1
    assert 1_000 < refused < 9_000


@given(st.binary(max_size=100), st.booleans())
def test_random_bytes_are_read_or_refused(data, after_a_cie):
    with suppress(JITListenerError):
        read_frames(CIE + data if after_a_cie else data, 0x1000)
