"""perfmap with the real perf as the judge: what `perf report` names."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfmap import read_map

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parent.parent
SAMPLES = ("-q", "-e", "cpu-clock:u", "-c", "100000")  # one in 100 us of user time

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


@pytest.fixture(scope="session")
def perf() -> str:
    found = shutil.which("perf")
    assert found, "perf is missing: apt-get install linux-perf (Ubuntu: linux-tools-generic)"
    return found


@pytest.fixture
def clean_up() -> Iterator[list[int]]:
    """The numbers of processes whose map files go after the test, when perf has read them."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        Path(f"/tmp/perf-{pid}.map").unlink(missing_ok=True)


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(perf: str, data: Path) -> dict[str, float]:
    """Symbols of a recording with their share of the samples, in percent."""
    out = run(perf, "report", "--stdio", "-i", data, "--sort", "sym", "--percent-limit", "0")
    lines = re.findall(r"^ +([\d.]+)% +\[\.\] (.*?) *$", out, re.MULTILINE)
    return {symbol: float(share) for share, symbol in lines}


def profiled(
    perf: str, tmp_path: Path, pids: list[int], program: str, *python: str
) -> dict[str, float]:
    """The report on a program that works on the page of functions; it is shown its own pid."""
    data = tmp_path / "perf.data"
    out = run(
        *(perf, "record", *SAMPLES, "-o", data, "--"),
        *(python or (sys.executable,)),
        *("-c", CODE + program + "\n    print(os.getpid())"),
    )
    pids.append(int(out.split()[-1]))
    return report(perf, data)


def test_names_of_every_kind_are_shown(perf: str, tmp_path: Path, clean_up: list[int]) -> None:
    program = """
    for number, name in enumerate(
        ["f", "g2", "kernel(double*, unsigned long) const", "größe ∑", "two\\nlines", "", "é",
         "long_" + "x" * 5000]
    ):
        map_file.add(slot(number), SIZE, name)
        spin(number)
"""
    symbols = profiled(perf, tmp_path, clean_up, program)
    expected = {
        *("f()", "g2()", "kernel(double*, unsigned long) const", "größe ∑", "two?lines"),
        *("[unnamed]", "é()", "long_" + "x" * 4088 + "..."),
    }
    assert {name for name in expected if symbols.get(name, 0) > 2} == expected


def test_after_an_unload_or_reuse_only_the_later_name_is_shown(
    perf: str, tmp_path: Path, clean_up: list[int]
) -> None:
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
    symbols = profiled(perf, tmp_path, clean_up, program)
    assert b"\n\n\n\n" in Path(f"/tmp/perf-{clean_up[0]}.map").read_bytes()
    for name in ("in a hole", "stays before", "over the second half", "stays after"):
        assert symbols[name] > 2
    assert not symbols.keys() & {"removed", "overlapped", "unloaded for good"}


def test_a_running_forked_child_is_named_from_its_own_file(
    perf: str, tmp_path: Path, clean_up: list[int]
) -> None:
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
    data = tmp_path / "perf.data"
    parent = subprocess.Popen(
        [sys.executable, "-c", CODE + program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent:
        clean_up += map(int, parent.stdout.readline().split())
        try:
            run(perf, "record", *SAMPLES, "-o", data, "-p", str(clean_up[1]), "--", "sleep", "0.4")
        finally:
            os.kill(clean_up[1], signal.SIGKILL)
    symbols = report(perf, data)
    assert symbols["inherited"] > 10
    assert symbols["the child's own"] > 10
    assert "unloaded" not in symbols


@pytest.mark.skipif(sys.version_info < (3, 12), reason="-X perf came with Python 3.12")
def test_python_s_own_lines_and_ours_share_the_file(
    perf: str, tmp_path: Path, clean_up: list[int]
) -> None:
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
    symbols = profiled(perf, tmp_path, clean_up, program, sys.executable, "-X", "perf")
    names = [entry.name for entry in read_map(f"/tmp/perf-{clean_up[0]}.map")]
    assert [name for name in names if name.startswith("py::compiled_")] == [
        f"py::compiled_{number}:<string>" for number in range(2000)
    ]
    assert len([name for name in names if name.startswith("machine")]) == 2
    assert symbols["machine code"] > 2
    assert any(symbol.startswith("py::python_function:") for symbol in symbols)
