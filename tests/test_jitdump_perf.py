"""What perf shows of a jitdump: names, lines, source text, call chains, each at its time."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jit import EXAMPLES, LINKERS
from tools import PROGRAMS, run, tool

from perfmap import read_jitdump
from perfmap.jitdump import CodeLoad

pytestmark = pytest.mark.tools

ROOT = PROGRAMS.parents[1]
DUMP = str(PROGRAMS / "dump.py")
HOT_LINE = "collatz.tiny:5"  # the test of the inner loop
# Without debug=True, LLVM leaves out the call frame information of what cannot raise.
NUMBA = """
import numba, listeners
listeners.attach(None, listeners.JITDump())

@numba.njit(debug=True)
def inner(n):
    x = 1
    for i in range(n):
        x = (x * 3) ^ i
    return x

@numba.njit(debug=True)
def outer(n):
    return inner(n) + 1

outer(200_000_000)
"""


def record(
    tmp_path: Path, *program: str, options: tuple[str, ...] = (), status: int | None = 0
) -> Path:
    """The recording of a program with its dumps, as `perf inject -j` leaves it."""
    data, injected = tmp_path / "perf.data", tmp_path / "perf.jit.data"
    run(
        *(tool("perf"), "record", "-q", "-k", "mono", "-e", "cpu-clock:u", "-c", "1000000"),
        *(*options, "-o", str(data), "--", *program),
        env={**os.environ, "JITDUMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        status=status,
    )
    run(tool("perf"), "inject", "-j", "-i", str(data), "-o", str(injected))
    return injected


def report(data: Path, fields: str = "sym") -> dict[str, float]:
    """Rows of a report, and the share of the samples that each has, in percent."""
    options = "--stdio", "--fields", f"overhead,{fields}", "--no-children", "-g", "none", "-t", ";"
    text = run(tool("perf"), "report", "-i", str(data), *options)
    rows = re.findall(r"^ *([\d.]+)% *;(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"\[.\] | *(?=;)|(?<=;) *", "", row): float(share) for share, row in rows}


def chains(data: Path) -> list[list[str]]:
    """The functions of each sample's call chain, the innermost first."""
    text = run(tool("perf"), "script", "-i", str(data), "-F", "ip,sym", "--no-inline")
    return [re.findall(r"^\s+[0-9a-f]+ (.*)$", one, re.MULTILINE) for one in text.split("\n\n")]


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


def dumps(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob(".debug/jit/jit-listeners-*/jit-*.dump"))


@pytest.mark.parametrize("linker", LINKERS)
def test_names_lines_source_and_chains_without_frame_pointers(linker: str, tmp_path: Path) -> None:
    options = ("--call-graph", "dwarf,4096")
    data = record(tmp_path, sys.executable, DUMP, linker, "collatz", options=options)

    shares = report(data)
    assert max(shares, key=shares.__getitem__) == "steps"
    lines = report(data, "sym,srcline")
    assert max(lines, key=lines.__getitem__) == f"steps;{HOT_LINE}"
    text = run(tool("perf"), "annotate", "--stdio", "-i", str(data), "steps")
    source = (EXAMPLES / "collatz.tiny").read_text().splitlines()
    for number in (5, 7, 8, 11):
        assert source[number - 1].strip() in text, text

    inside = [chain for chain in chains(data) if chain and chain[0] == "steps"]
    whole = [chain for chain in inside if chain[1] == "longest" and chain[-1] == "_start"]
    assert len(whole) > 0.98 * len(inside) > 20, inside[0]


@pytest.mark.parametrize("linker", LINKERS)
def test_chains_by_frame_pointers(linker: str, tmp_path: Path) -> None:
    data = record(tmp_path, sys.executable, DUMP, linker, "frames", options=("-g",))
    inside = [chain for chain in chains(data) if chain and chain[0] == "steps"]
    whole = [chain for chain in inside if chain[1:2] == ["longest"]]
    assert len(whole) > 0.9 * len(inside) > 20, inside[0]


def test_numba(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(NUMBA)
    options = ("--call-graph", "dwarf,4096")
    data = record(tmp_path, sys.executable, str(tmp_path / "work.py"), options=options)
    shares = report(data)
    names = [name for name in shares if name.startswith("__main__::inner")]
    assert sum(shares[name] for name in names) > 5, shares
    lines = report(data, "sym,srcline")
    hottest = max(lines, key=lambda row: lines[row] if row.startswith("__main__::inner") else 0)
    assert hottest.endswith((";work.py:8", ";work.py:9")), lines
    inside = [chain for chain in chains(data) if chain and chain[0].startswith("__main__::inner")]
    whole = [
        chain
        for chain in inside
        if any("__main__::outer" in name for name in chain) and chain[-1] == "_start"
    ]
    assert len(whole) > 0.98 * len(inside) > 10, inside[0]


@pytest.mark.parametrize("linker", LINKERS)
def test_each_sample_goes_to_what_was_at_its_address_then(linker: str, tmp_path: Path) -> None:
    shares = report(record(tmp_path, sys.executable, DUMP, linker, "reuse"))
    assert shares["later"] / shares["earlier"] == pytest.approx(2, rel=0.35)


def test_parent_and_forked_child_are_named_in_one_recording(tmp_path: Path) -> None:
    data = record(tmp_path, sys.executable, DUMP, "rtdyld", "fork")
    assert len(dumps(tmp_path)) == 2
    shares = report(data)
    for name in ("inherited", "of_parent", "of_child"):
        assert shares[name] > 5, shares
    assert shares["inherited"] / shares["of_child"] == pytest.approx(2, rel=0.35)


def test_a_killed_program_leaves_a_dump_that_can_be_read(tmp_path: Path) -> None:
    data = record(tmp_path, sys.executable, DUMP, "rtdyld", "kill", status=None)
    (path,) = dumps(tmp_path)
    dump = read_jitdump(path)
    assert dump.truncated == 0
    assert [one.name for one in dump.records if isinstance(one, CodeLoad)] == ["before_the_end"]
    path.write_bytes(path.read_bytes()[:-1])
    assert read_jitdump(path).truncated
    assert report(data)["before_the_end"] > 10


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
print(os.getpid())
"""
    data = record(
        tmp_path, python, "-X", "perf_jit", "-c", script, options=("--call-graph", "dwarf")
    )
    try:
        inside = [chain for chain in chains(data) if chain and chain[0] == "machine_code"]
        named = [chain for chain in inside if any("py::python_caller" in name for name in chain)]
        assert len(named) > 0.9 * len(inside) > 20, inside[:1]
    finally:
        pid = run(tool("perf"), "script", "-i", str(data), "-F", "pid").split()[0]
        for left in Path("/tmp").glob(f"jit*-{pid}*"):
            left.unlink()
