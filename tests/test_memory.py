"""What is mapped in this process, whatever the files are called, and mapping more."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest
from tools import run

from gdbjit.process import Memory
from perfmap.memory import map_free, mapping_at, mappings

# The kernel escapes the newline alone in names.
NAMES = [b"a b", b"a\rb", b"a\nb", b"a\x1cb", b"\xc2\x85", b"\xff", b" a "]


@pytest.mark.parametrize("name", NAMES)
def test_a_mapped_file_is_found_by_its_name(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"mapped")
    with mmap.mmap(fd, 6, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ):
        os.close(fd)
        (ours,) = (one for one in mappings() if one.name == os.fsdecode(path))
        with Memory(None) as memory:
            (theirs,) = (one for one in memory.mappings() if one.path == os.fsdecode(path))
    assert ours.access == "r"
    assert not ours.anonymous
    assert (ours.start, ours.end) == (theirs.start, theirs.end)


def test_a_program_with_such_files_is_heard(tmp_path: Path) -> None:
    script = """
import mmap, os, sys
import listeners
kept = []
for number, name in enumerate(map(bytes.fromhex, sys.argv[2:])):
    with open(os.fsencode(sys.argv[1]) + b"/" + name, "wb+") as file:
        file.write(b"mapped")
        file.flush()
        kept.append(mmap.mmap(file.fileno(), 6))
import llvmlite.binding as llvm
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
machine = llvm.Target.from_default_triple().create_target_machine()
images = listeners.CodeImages(sys.argv[1])
listeners.attach(None, listeners.GDBRegistration(), images)
module = llvm.parse_assembly("define i32 @answer() { ret i32 42 }")
engine = llvm.create_mcjit_compiler(module, machine)
assert engine.get_function_address("answer")
assert not images.problems, images.problems
"""
    run(sys.executable, "-c", script, str(tmp_path), *(name.hex() for name in NAMES))


def test_the_kernel_s_query_and_its_text_tell_the_same() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_SHARED) as shared:
        addresses = [ctypes.addressof(ctypes.c_char.from_buffer(shared)), id(shared)]
        addresses += [one.start for one in mappings() if one.name.startswith("/")]
        for address in addresses:
            (told,) = (one for one in mappings() if one.start <= address < one.end)
            asked = mapping_at(address)
            assert asked
            assert asked[:4] == told[:4]
    assert mapping_at(mmap.PAGESIZE) is None


def test_a_place_that_is_taken_is_not_given() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as taken:
        address = ctypes.addressof(ctypes.c_char.from_buffer(taken))
        assert not map_free(address, mmap.PAGESIZE, mmap.PROT_READ)
        assert not map_free(address - mmap.PAGESIZE, 2 * mmap.PAGESIZE, mmap.PROT_READ)
        taken[:5] = b"still"
