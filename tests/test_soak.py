"""Thousands of loads and unloads leave nothing behind."""

import sys

import pytest
from jit import LINKERS
from tools import PROGRAMS, run

CYCLES = 2000


@pytest.mark.tools
@pytest.mark.parametrize("linker", LINKERS)
def test_two_thousand_cycles_leave_no_entry_no_line_no_descriptor_and_no_memory(linker):
    bare = growth(run(sys.executable, f"{PROGRAMS}/cycles.py", linker, str(CYCLES)))
    heard = run(sys.executable, f"{PROGRAMS}/cycles.py", linker, str(CYCLES), "--attach")
    assert "entries 0" in heard
    assert "map lines 0" in heard
    assert "file descriptors +0" in heard
    allowance = 2 << 20  # 1 KB a cycle: malloc does not come out the same each time
    assert growth(heard) <= bare + allowance, f"bare {bare} bytes"


def growth(said: str) -> int:
    return int(next(line for line in said.splitlines() if line.startswith("growth")).split()[1])
