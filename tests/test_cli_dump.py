"""`jitlisten dump`: the code of a running process, as files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from outside import command, listed
from tools import gdb, run, tool

pytestmark = pytest.mark.tools


def test_dump_writes_files_for_gdb_and_objdump(tiny: int, tmp_path: Path) -> None:
    steps = listed(tiny)[0]["functions"][0]
    out, _ = command("dump", tiny, "-o", tmp_path / "images")
    (path,) = out.split()
    assert path == f"{tmp_path}/images/steps-{steps['address']:x}.elf"
    assert re.search(rf"^0*{steps['address']:x} <steps>:", run(tool("objdump"), "-d", path), re.M)
    said = gdb(f"symbol-file {path}", f"info line *{steps['address']:#x}", program=("-c", "pass"))
    assert re.search(r'Line 3 of ".*collatz.tiny" starts at address \w+ <steps>', said)
