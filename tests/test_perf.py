"""perf names the functions of JIT'd code: the map file, read by the real perf."""

import sys

import pytest
from jit import LINKERS
from tools import PROGRAMS, perf_symbols, run, tool

pytestmark = pytest.mark.tools


def record(tmp_path, *program: str) -> dict[str, float]:
    data = tmp_path / "perf.data"
    options = "-q", "-e", "cpu-clock", "-c", "50000"  # one in 50 us
    run(tool("perf"), "record", *options, "-o", str(data), sys.executable, *program)
    return perf_symbols(data)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("linker", LINKERS)
def test_report_names_the_functions(linker, when, tmp_path):
    program = (f"{PROGRAMS}/jit.py", linker, "--attach", when, "--limit", "1000000")
    shares = record(tmp_path, *program)
    assert max(shares, key=shares.__getitem__) == "steps"
    assert shares["longest"] > 0


@pytest.mark.parametrize("linker", LINKERS)
def test_names_are_demangled_and_the_later_code_at_an_address_names_it(linker, tmp_path):
    shares = record(tmp_path, f"{PROGRAMS}/reload.py", linker)
    assert shares["game::later(int)"] > 50
    assert "game::earlier(int)" not in shares


@pytest.mark.parametrize("linker", LINKERS)
def test_code_freed_before_the_end_keeps_its_names(linker, tmp_path):
    shares = record(tmp_path, f"{PROGRAMS}/reload.py", linker, "--free")
    assert shares["game::later(int)"] > 50
