"""gdb and lldb in JIT'd code: every linker, attached before and after, both code models, with
debug information and without."""

import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
from jit import LINKERS
from tools import PROGRAMS, gdb, lldb

pytestmark = pytest.mark.tools

JIT = f"{PROGRAMS}/jit.py"
matrix = [
    pytest.param(linker, when, small, debug, id="-".join((linker, when, *small, *debug)))
    for linker in LINKERS
    for when in ("before", "after")
    for small in ((), ("--small",))
    for debug in ((), ("--no-debug",))
]
every_way = pytest.mark.parametrize(("linker", "when", "small", "debug"), matrix)


@every_way
def test_gdb_stops_by_name_and_by_line(linker, when, small, debug):
    program = (JIT, linker, "--attach", when, *small, *debug)
    if debug:
        said = gdb("break steps", "run", "backtrace", program=program)
        assert re.search(r"Breakpoint 1, 0x\w+ in steps \(\)", said)
        assert re.search(r"#0  0x\w+ in steps \(\)\n#1  0x\w+ in longest \(\)\n", said)
    else:
        said = gdb(
            "break steps",
            "break collatz.tiny:8 if n == 27",
            "run",
            "info args",
            "disable 1",
            "continue",
            "info locals",
            "backtrace",
            program=program,
        )
        assert "Breakpoint 1, steps (n=1) at collatz.tiny:4\n4\t    count = 0\nn = 1\n" in said
        assert "Breakpoint 2, steps (n=27) at collatz.tiny:8\n8\t            n = 3 * n + 1" in said
        assert "count = 0\nhalf = 13\n" in said
        assert re.search(r"#1  0x\w+ in longest \(limit=1000\) at collatz.tiny:18\n", said)
    assert re.search(r"#\d+ .* in _start \(\)", said)


@every_way
def test_gdb_attaches_to_the_running_program(linker, when, small, debug):
    with running(JIT, linker, "--attach", when, "--loop", *small, *debug) as pid:
        said = gdb("break steps", "continue", "backtrace", "detach", pid=pid)
    frame = r"longest \(\)" if debug else r"longest \(limit=1000\) at collatz.tiny:18"
    assert re.search(rf"#1  0x\w+ in {frame}\n", said)
    assert re.search(r"#\d+ .* in _start \(\)", said)


@every_way
def test_lldb_stops_by_name(linker, when, small, debug):
    program = (JIT, linker, "--attach", when, *small, *debug)
    said = lldb("breakpoint set --name steps", "run", "thread backtrace", program=program)
    assert "stop reason = breakpoint 1.1" in said
    where = "" if debug else r"\(n=1\) at collatz.tiny:\d"
    assert re.search(rf"\* frame #0: 0x\w+ JIT\(0x\w+\)`steps{where}", said)
    assert re.search(r"frame #1: 0x\w+ JIT\(0x\w+\)`longest", said)


@pytest.mark.parametrize("linker", LINKERS)
def test_all_is_registered_where_gdb_15_sees_it_and_shown_once(linker):
    """gdb 15 sees exported descriptors only; this gdb sees both."""
    said = gdb("break steps", "run", "info breakpoints", program=(JIT, linker, "--all"))
    assert "exported entries: 1" in said
    assert said.count("Breakpoint 1, steps (n=1)") == 1
    assert "1.1" not in said  # one location


@pytest.mark.parametrize("linker", LINKERS)
def test_gdb_lists_the_objects_while_they_are_loaded(linker):
    """`maint info jit` before an unload and after it, at two calls of ours in the program."""
    said = gdb(
        "break getppid",
        "run",
        "maint info jit",
        "continue",
        "maint info jit",
        program=(f"{PROGRAMS}/unload.py", linker),
    )
    before, after = said.split("Breakpoint 1, ")[1:]
    assert len(re.findall(r"^0x\w+ +0x\w+ +\d+", before, re.MULTILINE)) == 1
    assert len(re.findall(r"^0x\w+ +0x\w+ +\d+", after, re.MULTILINE)) == 0


@contextmanager
def running(*program: str):
    """The pid of a program of this Python that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline()
        yield process.pid
        process.communicate(timeout=30)
        assert process.returncode == 0
