"""perfmap with the real perf as the judge: what `perf report` names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from perftools import PATH, Recording, record

from perfmap import read_map

pytestmark = pytest.mark.tools


# A page of functions in machine code that count their argument down to zero.
CODE = """if True:
    import ctypes, mmap, os, platform, sys
    import perfmap

    COUNT_DOWN = {
        "x86_64": "4889f8 48ffc8 75fb c3",  # mov rax, rdi; 1: dec rax; jnz 1b; ret
        "aarch64": "000400f1 e1ffff54 c0035fd6",  # 1: subs x0, x0, 1; b.ne 1b; ret
    }
    SIZE = 64
    page = mmap.mmap(
        -1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
    )
    page.write(bytes.fromhex(COUNT_DOWN[platform.machine()]).ljust(SIZE, b"\\0") * (4096 // SIZE))
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))

    def slot(number):
        return start + SIZE * number

    def spin(number, count=100_000_000):
        ctypes.CFUNCTYPE(None, ctypes.c_uint64)(slot(number))(count)

    map_file = perfmap.MapFile()
"""


def profiled(tmp_path: Path, program: str, *python: str) -> Recording:
    """A recording of a program that works on the page of functions; it is shown its own pid."""
    program = f"{CODE}{program}\n    print('pid', os.getpid())"
    options = ("-c", "100000")  # one in 100 us
    return record(tmp_path, *(python or (sys.executable,)), "-c", program, options=options)


def test_names_of_every_kind_are_shown(tmp_path: Path) -> None:
    program = """
    for number, name in enumerate(
        ["f", "g2", "kernel(double*, unsigned long) const", "größe ∑", "two\\nlines", "", "é",
         "long_" + "x" * 5000]
    ):
        map_file.add(slot(number), SIZE, name)
        spin(number)
"""
    recording = profiled(tmp_path, program)
    symbols = recording.shares()
    expected = {
        *("f()", "g2()", "kernel(double*, unsigned long) const", "größe ∑", "two?lines"),
        *("[unnamed]", "é()", "long_" + "x" * 4088 + "..."),
    }
    assert {name for name in expected if symbols.get(name, 0) > 2} == expected


def test_after_an_unload_or_reuse_only_the_later_name_is_shown(tmp_path: Path) -> None:
    program = """
    map_file.add_all([(slot(0), SIZE, "removed"), (slot(1), SIZE, "stays before"),
                      (slot(2), 2 * SIZE, "overlapped"), (slot(4), SIZE, "unloaded for good")])
    for number in range(5):
        spin(number, 50_000_000)
    map_file.remove_all([slot(0), slot(4)])
    map_file.add(slot(5), SIZE, "stays after")
    map_file.add(slot(3), SIZE, "over the second half")
    map_file.add(slot(0), SIZE, "in a hole")
    for number in (0, 3, 5):
        spin(number, 50_000_000)
"""
    recording = profiled(tmp_path, program)
    symbols = recording.shares()
    assert b"\n\n\n\n" in Path(f"/tmp/perf-{recording.numbers['pid']}.map").read_bytes()
    for name in ("in a hole", "stays before", "over the second half", "stays after"):
        assert symbols[name] > 2
    assert not symbols.keys() & {"removed", "overlapped", "unloaded for good"}


def test_a_running_forked_child_is_named_from_its_own_file(tmp_path: Path) -> None:
    program = """
    map_file.add_all([(slot(0), SIZE, "inherited"), (slot(1), SIZE, "unloaded")])
    child = os.fork()
    if child:
        print(os.getpid(), child, flush=True)
        os.waitpid(child, 0)
        sys.exit()
    map_file.remove(slot(1))
    map_file.add(slot(1), SIZE, "the child's own")
    while os.getppid() != 1:
        spin(0, 10_000_000)
        spin(1, 10_000_000)
"""
    with subprocess.Popen(
        [sys.executable, "-c", CODE + program],
        env={**os.environ, "PYTHONPATH": PATH},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        numbers = dict(zip(("pid", "child"), parent.stdout.readline().split(), strict=True))
        options = ("-p", numbers["child"])
        try:
            recording = record(tmp_path, "sleep", "0.4", options=options)
        finally:
            os.kill(int(numbers["child"]), signal.SIGKILL)
            parent.wait()
    recording.numbers |= numbers
    symbols = recording.shares()
    assert symbols["inherited"] > 10
    assert symbols["the child's own"] > 10
    assert "unloaded" not in symbols


@pytest.mark.skipif(sys.version_info < (3, 12), reason="-X perf came with Python 3.12")
def test_python_s_own_lines_and_ours_share_the_file(tmp_path: Path) -> None:
    program = """
    import threading

    def python_function(number):
        pass

    def compile_functions():
        # The interpreter appends a line the first time that a function is called.
        for number in range(2000):
            scope = {}
            exec(f"def compiled_{number}(): pass", scope)
            scope[f"compiled_{number}"]()

    thread = threading.Thread(target=compile_functions)
    thread.start()
    cycle = 0
    while thread.is_alive() or cycle % 2:
        for number in range(8):
            map_file.add(slot(number), SIZE, f"machine_code_{number}" * (1 + cycle % 3))
        map_file.remove_all([slot(number) for number in range(1, 8)])
        cycle += 1
    map_file.add(slot(9), SIZE, "machine code")
    spin(9)
    for _ in map(python_function, range(4_000_000)):  # each call goes through its trampoline
        pass
"""
    recording = profiled(tmp_path, program, sys.executable, "-X", "perf")
    symbols = recording.shares()
    names = [entry.name for entry in read_map(f"/tmp/perf-{recording.numbers['pid']}.map")]
    assert [name for name in names if name.startswith("py::compiled_")] == [
        f"py::compiled_{number}:<string>" for number in range(2000)
    ]
    assert len([name for name in names if name.startswith("machine")]) == 2
    assert symbols["machine code"] > 2
    assert any(symbol.startswith("py::python_function:") for symbol in symbols)


def interpreter_with_perf_jit() -> str:
    """A Python that writes a dump of its own functions: 3.13 or later."""
    installed = (Path.home() / ".pyenv" / "versions").glob("3.1[3-9]*/bin/python3")
    candidates = [sys.executable, *map(str, installed), *(f"python3.{n}" for n in range(13, 20))]
    check = "import os, sys; os.unlink(f'/tmp/jit-{os.getpid()}.dump')"
    for candidate in filter(None, map(shutil.which, candidates)):
        command = [candidate, "-X", "perf_jit", "-c", check]
        if subprocess.run(command, capture_output=True, timeout=60).returncode == 0:
            return candidate
    pytest.fail("no Python 3.13 or later: apt-get install python3.13, or pyenv install 3.13")


def test_beside_the_interpreter_s_own_dump(tmp_path: Path) -> None:
    """`-X perf_jit` (3.13): Python's functions and ours, in one chain."""
    python = interpreter_with_perf_jit()
    script = """
import ctypes, os, sys
from perfmap import FrameRules, JITCode, JITDumpWriter
import mmap
code = bytes.fromhex("4889f8 48ffc8 75fb c3")
page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
page.write(code)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
# def_cfa rsp+8; the return address at cfa-8
rules = FrameRules(1, -8, 16, bytes([0x0C, 7, 8, 0x90, 1]), b"")
JITDumpWriter().add(JITCode(address, code, "machine_code", (), rules))
def python_caller():
    ctypes.CFUNCTYPE(None, ctypes.c_uint64)(address)(300_000_000)
python_caller()
print('pid', os.getpid())
"""
    recording = record(
        *(tmp_path, python, "-X", "perf_jit", "-c", script),
        options=("--call-graph", "dwarf"),
        inject=True,
    )
    try:
        inside = recording.chains("machine_code")
        named = [chain for chain in inside if any("py::python_caller" in name for name in chain)]
        assert len(named) > 0.9 * len(inside) > 20, inside[:1]
    finally:
        for left in Path("/tmp").glob(f"jit*-{recording.numbers['pid']}*"):
            left.unlink()
