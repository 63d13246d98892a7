"""`jitlisten list`, `dump` and `symbolize` of core files."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from random import Random

import pytest
from outside import command, functions, listed, refused
from targets import line, target
from tools import gdb, run, tool

import gdbjit

pytestmark = pytest.mark.tools


def test_a_core_file_tells_where_jitted_code_crashed(crashed: Path) -> None:
    names = list(functions(listed("--core", crashed)))
    assert names == ["steps", "longest"]
    assert "longest" in command("list", "--core", crashed)[0]
    trace = run(
        tool("gdb"), "-q", "-nx", "-batch", "-ex", "backtrace", sys.executable, str(crashed)
    )
    assert re.search(r"#0  (0x\w+ in )?steps \(n=1\) at .*collatz.tiny:4", trace)
    assert re.search(r"#1  (0x\w+) in longest \(limit=10000\) at .*collatz.tiny:18", trace)
    (pc,) = re.findall(r"#1  (0x\w+) in longest", trace)
    out, _ = command("symbolize", "--core", crashed, pc)
    assert re.fullmatch(rf"{pc} longest\+0x\w+ at /.*/collatz\.tiny:18\n", out)
    assert "(longest+" in command("symbolize", "--core", crashed, text=trace)[0]


def test_a_core_file_gives_the_code_as_files(crashed: Path, tmp_path: Path) -> None:
    (path,) = command("dump", "--core", crashed, "-o", tmp_path)[0].split()
    assert "<steps>:" in run(tool("objdump"), "-d", path)


def test_a_core_of_gdb_with_little_in_it_is_read_too(tiny: int, tmp_path: Path) -> None:
    """What is mapped from files and unchanged is read from these."""
    core = tmp_path / "core"
    Path(f"/proc/{tiny}/coredump_filter").write_text("0x1")
    gdb("set use-coredump-filter on", f"gcore {core}", pid=tiny)
    assert listed("--core", core) == listed(tiny)


def test_code_of_libraries_need_not_be_in_a_core(tmp_path: Path) -> None:
    """gdb leaves out what is mapped from files, if no debugger has changed it: not even a hole."""
    script = """
import llvmlite.binding as llvm, time
llvm.initialize_native_target(); llvm.initialize_native_asmprinter()
machine = llvm.Target.from_default_triple().create_target_machine()
engine = llvm.create_mcjit_compiler(llvm.parse_assembly("define void @f() { ret void }"), machine)
engine.finalize_object()
say("ready")
time.sleep(60)
"""
    core = tmp_path / "core"
    with target(script) as process:
        assert line(process) == "ready"
        run(tool("gcore"), "-o", str(core), str(process.pid), status=None)
        assert listed("--core", f"{core}.{process.pid}") == listed(process.pid)
    segments = run(tool("readelf"), "--segments", "--wide", f"{core}.{process.pid}")
    assert not re.findall(r"LOAD .* 0x[0-9a-f]{7,} 0x[0-9a-f]+ R E", segments), "a large one"


def test_what_is_no_core_file_is_said_so(tmp_path: Path, crashed: Path) -> None:
    assert "No such file" in refused("list", "--core", tmp_path / "none")
    assert "not a regular file" in refused("list", "--core", tmp_path)
    assert "not an ELF file" in refused("list", "--core", __file__)
    assert "not a core file" in refused("list", "--core", "/proc/self/exe")
    cut = tmp_path / "cut"
    shutil.copy(crashed, cut)
    for size in (10_000, 100, 10):
        os.truncate(cut, size)
        assert str(cut) in refused("list", "--core", cut)


def test_a_process_and_a_core_at_once_are_refused(crashed: Path) -> None:
    with pytest.raises(gdbjit.GDBJITError, match="not both"):
        gdbjit.descriptors(1, core=crashed)


def test_a_core_file_that_was_tampered_with_is_read_or_an_error(
    crashed: Path, tmp_path: Path
) -> None:
    """Its headers and notes are; what they lead to is checked as the memory of a process is."""
    path = tmp_path / "tampered"
    shutil.copy(crashed, path)
    random = Random(11)
    outcomes = set()
    with path.open("r+b") as file:
        start = file.read(1 << 16)
        for _ in range(100):
            changed = bytearray(start)
            for _ in range(random.randrange(1, 4)):
                at = random.randrange(random.choice((64, 4096, 20000)))
                changed[at : at + 8] = random.choice((bytes(8), b"\xff" * 8, random.randbytes(8)))
            file.seek(0)
            file.write(changed[: 1 << 16])
            file.flush()
            try:
                found = [d.images() for d in gdbjit.descriptors(core=path)]
                outcomes.add(sum(1 for images in found for _ in images))
            except gdbjit.GDBJITError:
                outcomes.add(-1)
    assert outcomes >= {-1, 1}
