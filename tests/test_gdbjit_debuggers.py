"""gdb and lldb see what `gdbjit` registers, and nothing of it after it was unregistered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from tools import gdb, lldb, run

import gdbjit
from gdbjit import elf
from gdbjit.library import build

pytestmark = pytest.mark.tools

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

# A program that puts an object's code in memory by itself, as far as that goes without a linker.
PRELUDE = f"""
import ctypes, mmap, os, signal, struct, sys, time
sys.path.insert(0, {str(Path(gdbjit.__file__).parent.parent)!r})
import gdbjit

kept = []

def place(path):
    "The image with its load addresses, and the function at its beginning."
    with open(path, "rb") as file:
        emitted = file.read()
    memory = mmap.mmap(-1, len(emitted), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    memory.write(emitted)
    kept.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    image = bytearray(emitted)
    (table,) = struct.unpack_from("<Q", image, 0x28)
    (count,) = struct.unpack_from("<H", image, 0x3C)
    for at in range(table, table + 64 * count, 64):
        flags, _, offset = struct.unpack_from("<QQQ", image, at + 8)
        if flags & 2:
            struct.pack_into("<Q", image, at + 16, base + offset)
        if flags & 4:
            code = base + offset
    return bytes(image), ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(code)

def stop():
    signal.raise_signal(signal.SIGTRAP)

image, function = place({{path!r}})
"""


@pytest.fixture
def prelude(tmp_path: Path) -> str:
    """The beginning of a program that has the code of `jit_answer`."""
    module = llvm.parse_assembly(
        "define i32 @jit_answer(i32 %x) { %r = add i32 %x, 1  ret i32 %r }"
    )
    machine = llvm.Target.from_default_triple().create_target_machine()
    path = tmp_path / "jit_answer.o"
    path.write_bytes(machine.emit_object(module))
    return PRELUDE.format(path=str(path))


@contextmanager
def running(program: Path) -> Iterator[subprocess.Popen[str]]:
    """The program, once it has printed its first line."""
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


LIST = (r"echo list:\n", "maint info jit", r"echo end of list\n")


def listed(output: str) -> list[list[str]]:
    """The entries at each LIST in gdb's output, by address."""
    tables = re.findall(r"^list:$(.*?)^end of list$", output, re.MULTILINE | re.DOTALL)
    return [re.findall(r"^(0x\w+)\s+0x\w+\s+\d+", table, re.MULTILINE) for table in tables]


def test_gdb_stops_by_name_in_a_process_with_no_descriptor(tmp_path: Path, prelude: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        prelude
        + """
assert gdbjit.descriptors() == []
registration = gdbjit.register(image)
assert [d.library for d in gdbjit.descriptors()] == [gdbjit.own_descriptor().library]
print("result", function(41), flush=True)
stop()
registration.unregister()
stop()
print("result", function(41), flush=True)
"""
    )
    output = gdb(
        "break jit_answer",
        "run",
        "bt",
        "delete",
        "continue",
        *LIST,
        "info functions jit_answer",
        "signal 0",
        *LIST,
        "info functions jit_answer",
        "signal 0",
        program=(str(program),),
    )
    assert re.search(r"Breakpoint 1, 0x\w+ in jit_answer \(\)", output)
    assert re.search(r"^#0 .* jit_answer \(\)", output, re.MULTILINE)
    assert re.search(r"^#\d+ .* _start \(\)", output, re.MULTILINE)
    before, after = listed(output)
    assert len(before) == 1
    assert after == []
    assert output.count(" jit_answer\n") == 1
    assert output.count("result 42") == 2
    assert "exited normally" in output


def test_gdb_attaches_to_a_running_process(tmp_path: Path, prelude: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        prelude
        + """
gdbjit.register(image)
print("ready", flush=True)
while True:
    function(1)
    time.sleep(0.01)
"""
    )
    with running(program) as process:
        output = gdb("break jit_answer", "continue", "bt", "kill", pid=process.pid)
    assert re.search(r"Breakpoint 1, 0x\w+ in jit_answer \(\)", output)
    assert re.search(r"^#\d+ .* _start \(\)", output, re.MULTILINE)


def test_lldb_stops_by_name_in_a_process_with_no_descriptor(tmp_path: Path, prelude: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        prelude
        + """
with gdbjit.register(image):
    print("result", function(41), flush=True)
print("result", function(41), flush=True)
"""
    )
    output = lldb(
        "settings set plugin.jit-loader.gdb.enable on",
        "breakpoint set --name jit_answer",
        "run",
        "bt",
        "breakpoint delete 1",
        "continue",
        program=(str(program),),
    )
    assert re.search(r"stop reason = breakpoint 1\.1", output)
    assert "jit_answer" in output.split("stop reason")[1]
    assert "_start" in output
    assert "exited with status = 0" in output


def test_a_forked_child_whose_parent_has_ended_is_debugged(tmp_path: Path, prelude: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        prelude
        + """
gdbjit.register(image)
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
while True:
    function(1)
    time.sleep(0.01)
"""
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.wait()
        output = gdb("break jit_answer", "continue", "kill", pid=pid)
    assert re.search(r"Breakpoint 1, 0x\w+ in jit_answer \(\)", output)


@pytest.mark.parametrize("ours_goes_first", [True, False])
def test_gdb_lists_our_entries_among_those_of_llvm(
    tmp_path: Path, prelude: str, ours_goes_first: bool
) -> None:
    program = tmp_path / "program.py"
    ways = ["ours.unregister()", "engines[1].close()"]
    if not ours_goes_first:
        ways.reverse()
    program.write_text(
        prelude
        + f"""
import llvmlite.binding as llvm
llvm.initialize_native_target(); llvm.initialize_native_asmprinter()
machine = llvm.Target.from_default_triple().create_target_machine()
engines = []
def load(name):
    module = llvm.parse_assembly("define i32 @" + name + "() {{ ret i32 1 }}")
    target = llvm.Target.from_default_triple().create_target_machine()
    engines.append(llvm.create_mcjit_compiler(module, target))
    engines[-1].finalize_object()
load("llvm_first")
ours = gdbjit.register(image)
assert ours.descriptor.library.endswith("libllvmlite.so")
load("llvm_second")
function(1)
stop()
{ways[0]}
stop()
{ways[1]}
stop()
engines[0].close()
stop()
"""
    )
    output = gdb(
        "break jit_answer",
        "break llvm_second",
        "run",
        "bt",
        "delete",
        "continue",
        *[*LIST, "signal 0"] * 4,
        program=(str(program),),
    )
    assert re.search(r"Breakpoint 1, 0x\w+ in jit_answer \(\)", output)
    assert "Breakpoint 2 (llvm_second) pending" in output
    assert [len(entries) for entries in listed(output)] == [3, 2, 1, 0]
    assert "exited normally" in output


# Our own library


@pytest.mark.parametrize("machine", [elf.EM_X86_64, elf.EM_AARCH64])
def test_the_library_is_well_formed(tmp_path: Path, machine: int) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(build(machine))
    readobj = shutil.which("llvm-readobj") or shutil.which("llvm-readobj-14")
    if readobj is None:
        pytest.fail("llvm-readobj is missing: apt-get install llvm-14")
    output = run(readobj, "--all", "--dyn-symbols", "--dyn-relocations", str(path))
    assert "warning" not in output
    assert "Library soname: [libgdbjit.so]" in output
    assert re.search(r"Name: __jit_debug_descriptor.*\n.*\n\s+Size: 24\n", output)
    assert re.search(r"Name: __jit_debug_register_code.*\n.*\n\s+Size: [1-9]", output)
    lint = run("readelf", "--wide", "--all", "--lint", str(path), status=None)
    assert "Warning" not in lint
    assert re.search(r"GNU_STACK .* RW ", lint)
    assert " RWE " not in lint


@pytest.mark.parametrize("machine", [elf.EM_X86_64, elf.EM_AARCH64])
def test_the_library_s_function_only_returns(tmp_path: Path, machine: int) -> None:
    objdump = shutil.which("llvm-objdump") or shutil.which("llvm-objdump-14")
    if objdump is None:
        pytest.fail("llvm-objdump is missing: apt-get install llvm-14")
    path = tmp_path / "library.so"
    path.write_bytes(build(machine))
    output = run(objdump, "-d", "--no-show-raw-insn", str(path))
    code = output.split("__jit_debug_register_code>:")[1]
    instructions = re.findall(r"^\s+\w+:\s+(\w+)", code, re.MULTILINE)
    assert instructions[-1].startswith("ret")
    assert set(instructions[:-1]) <= {"nop", "endbr64"}


def test_the_library_is_in_a_directory_of_the_user_s_own(tmp_path: Path) -> None:
    script = "import gdbjit; print(gdbjit.own_descriptor().library)"
    root = str(Path(gdbjit.__file__).parent.parent)

    def library(**places: str) -> str:
        environment = {**os.environ, "PYTHONPATH": root, "HOME": "/nonexistent", **places}
        return run(sys.executable, "-c", script, env=environment).strip()

    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    first = library(XDG_CACHE_HOME=str(cache))
    assert Path(first).parent == cache / "gdbjit"
    assert Path(first).parent.stat().st_mode & 0o777 == 0o700
    assert library(XDG_CACHE_HOME=str(cache)) == first
    assert os.listdir(cache / "gdbjit") == [Path(first).name]

    Path(first).write_bytes(b"somebody else's")
    assert library(XDG_CACHE_HOME=str(cache)) == first
    assert Path(first).read_bytes() == build(elf.native()[0].machine)

    # Where others can write, or nothing can be written, the next place is taken.
    (cache / "gdbjit").chmod(0o777)
    elsewhere = library(XDG_CACHE_HOME=str(cache), TMPDIR=str(temporary))
    assert Path(elsewhere).parent == temporary / f"gdbjit-{os.geteuid()}"
    unwritable = library(XDG_CACHE_HOME="/proc/nowhere", TMPDIR=str(temporary))
    assert unwritable == elsewhere


def test_nothing_is_left_of_a_library_that_there_is_no_room_for(tmp_path: Path) -> None:
    script = f"""
import resource
from gdbjit.library import _write
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    _write(Path({str(tmp_path)!r}), "library.so", bytes(1000))
except OSError as error:
    print(error)
"""
    root = str(Path(gdbjit.__file__).parent.parent)
    said = run(sys.executable, "-c", script, env={**os.environ, "PYTHONPATH": root})
    assert "File too large" in said
    assert os.listdir(tmp_path) == []
