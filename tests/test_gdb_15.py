"""gdb 15 sees exported descriptors only: `jitlisten run --gdb` minds it by itself.

There is no gdb 15 here. What `run` decides by, a program called gdb that says its version, is one
of the test's; what it must lead to is judged as that gdb would see the process: `.dynsym` alone of
each file that is mapped leads to a descriptor, and the list of that one to the objects.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from tools import JITLISTEN, PROGRAMS

import gdbjit
from listeners.symfile import registered_object

pytestmark = pytest.mark.tools

GDB_15 = "GNU gdb (Ubuntu 15.0.50.20240403-0ubuntu1) 15.0.50.20240403-git"
GDB_16 = "GNU gdb (Debian 16.3-1) 16.3"
NUMBA = (f"{PROGRAMS}/unaware.py", "numba")


def exported_descriptors(pid: int) -> set[int]:
    """Addresses of `__jit_debug_descriptor` that the files mapped in a process export."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        path = fields[5] if len(fields) > 5 else ""
        if not path.startswith("/") or int(fields[2], 16) or ".so" not in path:
            continue
        with open(path, "rb") as file:
            elf = ELFFile(file)
            symbols = elf.get_section_by_name(".dynsym")
            assert isinstance(symbols, SymbolTableSection), path
            first = next(segment for segment in elf.iter_segments("PT_LOAD"))
            bias = int(fields[0].split("-")[0], 16) - first["p_vaddr"]
            for symbol in symbols.get_symbol_by_name("__jit_debug_descriptor") or ():
                found.add(bias + symbol["st_value"])
    return found


def functions(pid: int, seen: set[int] | None = None) -> dict[str, int]:
    """Addresses of functions by name, as the list of each descriptor has them, or of those seen."""
    return {
        function.name: function.address
        for descriptor in gdbjit.descriptors(pid)
        if seen is None or descriptor.address in seen
        for _, image in descriptor.images()
        for function in registered_object(descriptor, image).functions
    }


def gdb_saying(directory: Path, version: str) -> Path:
    """A gdb that says its version, and notes that it was asked."""
    program = directory / "gdb"
    program.write_text(f"#!/bin/sh\necho asked >>{directory}/asked\necho '{version}'\n")
    program.chmod(0o755)
    return program


@contextmanager
def running(directory: Path, option: str, *program: str) -> Iterator[tuple[int, str]]:
    """The pid of a program of this Python under `run`, and the first line that it prints."""
    with subprocess.Popen(
        [*JITLISTEN, "run", option, "--", sys.executable, *program],
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            yield process.pid, process.stdout.readline()
        finally:
            process.kill()


def test_all_that_numba_compiles_is_where_gdb_15_looks(tmp_path: Path) -> None:
    gdb_saying(tmp_path, GDB_15)
    with running(tmp_path, "--gdb", *NUMBA) as (pid, _):
        seen = functions(pid, exported_descriptors(pid))
        assert seen == functions(pid)
        assert any("steps" in name for name in seen)


@pytest.mark.parametrize("linker", ["mcjit", "rtdyld", "jitlink"])
def test_all_that_llvmlite_loads_is_where_gdb_15_looks(tmp_path: Path, linker: str) -> None:
    gdb_saying(tmp_path, GDB_15)
    program = (f"{PROGRAMS}/jit.py", linker, "--attach", "never", "--loop")
    with running(tmp_path, "--gdb", *program) as (pid, line):
        seen = functions(pid, exported_descriptors(pid))
        assert seen.keys() == {"steps", "longest"}
        assert line == f"steps {seen['steps']:#x}\n"


def test_another_gdb_is_left_with_what_llvm_has_registered(tmp_path: Path) -> None:
    gdb_saying(tmp_path, GDB_16)
    with running(tmp_path, "--gdb", *NUMBA) as (pid, _):
        assert functions(pid, exported_descriptors(pid)) == {}
        assert any("steps" in name for name in functions(pid))


def listeners_of(directory: Path, *command: str) -> str:
    """What a program under `run` finds in JITLISTEN."""
    return subprocess.run(
        [*JITLISTEN, "run", *command],
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_gdb_is_asked_once_for_all_pythons_and_only_where_it_matters(tmp_path: Path) -> None:
    gdb_saying(tmp_path, GDB_15)
    again = f"import os; os.system('{sys.executable} -c \"{{}}\"; echo $JITLISTEN')"
    program = again.format("import llvmlite.binding")
    assert listeners_of(tmp_path, sys.executable, "-c", program) == "gdb-all,perf-map"
    assert (tmp_path / "asked").read_text() == "asked\n"
    show = ("sh", "-c", "echo $JITLISTEN")
    assert listeners_of(tmp_path, "--perf-map", *show) == "perf-map"
    assert listeners_of(tmp_path, "--gdb-all", *show) == "gdb-all"
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_gdb_that_is_the_program_itself_is_the_one_that_is_asked(tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    gdb_saying(other, GDB_16)
    chosen = gdb_saying(tmp_path, GDB_15)
    chosen.write_text(chosen.read_text() + "echo JITLISTEN=$JITLISTEN\n")
    assert listeners_of(other, "--gdb", str(chosen)).endswith("JITLISTEN=gdb-all")
    assert not (other / "asked").exists()


@pytest.mark.parametrize("says", ["something else", "GNU gdb (GDB) 15abc"])
def test_a_gdb_of_no_known_version_is_taken_for_an_ordinary_one(tmp_path: Path, says: str) -> None:
    gdb_saying(tmp_path, says)
    assert listeners_of(tmp_path, "--gdb", "sh", "-c", "echo $JITLISTEN") == "gdb"
