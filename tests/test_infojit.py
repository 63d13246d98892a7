"""`info jit` in the real gdb: of a running program, of a core file, of one without JIT'd code."""

import re
import sys
from pathlib import Path

import pytest
from tools import gdb, run, tool

pytestmark = pytest.mark.tools

COMMAND = Path(run(sys.executable, "-m", "jitlisten.infojit").strip())
OBJECT = (
    r"Object at 0x\w+, \d+ bytes, entry 0x\w+:\n"
    r"  0x\w+ - 0x\w+ is \.ltext\n"
    r"  0x\w+ - 0x\w+ is \.eh_frame\n"
)
STEPS, LONGEST = (
    r"  0x\w+  steps at .*collatz\.tiny:3\n",
    r"  0x\w+  longest at .*collatz\.tiny:14\n",
)


def test_it_lists_objects_with_sections_functions_and_lines(tiny: int) -> None:
    said = gdb(f"source {COMMAND}", "info jit", "print &steps", pid=tiny)
    assert re.search(OBJECT + STEPS + LONGEST, said)
    (address,) = re.findall(r"(0x\w+) <steps>", said)
    assert re.search(rf"^  0x0*{address[2:]}  steps", said, re.MULTILINE)


def test_it_takes_a_regular_expression(tiny: int) -> None:
    said = gdb(f"source {COMMAND}", "info jit (", "info jit ^l", "info jit nothing", pid=tiny)
    assert re.search(OBJECT + LONGEST, said)
    assert "  steps" not in said
    assert "No JIT'd function matches 'nothing'.\n" in said
    assert "Invalid regexp: " in said


def test_it_works_on_a_core_file(crashed: Path) -> None:
    options = ("-q", "-nx", "-batch", "-x", str(COMMAND), "-ex", "info jit")
    said = run(tool("gdb"), *options, sys.executable, str(crashed))
    assert re.search(OBJECT + STEPS + LONGEST, said)


def test_without_jitted_code_it_says_so() -> None:
    assert "No JIT'd code.\n" in gdb(f"source {COMMAND}", "info jit", program=("-c", "pass"))
