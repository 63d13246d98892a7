"""`jitlisten dump`: the code of a running process, as files."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from outside import command, listed
from tools import JITLISTEN, gdb, run, tool

pytestmark = pytest.mark.tools


def test_dump_writes_files_for_gdb_and_objdump(tiny: int, tmp_path: Path) -> None:
    steps = listed(tiny)[0]["functions"][0]
    out, _ = command("dump", tiny, "-o", tmp_path / "images")
    (path,) = out.split()
    assert path == f"{tmp_path}/images/steps-{steps['address']:x}.elf"
    assert re.search(rf"^0*{steps['address']:x} <steps>:", run(tool("objdump"), "-d", path), re.M)
    said = gdb(f"symbol-file {path}", f"info line *{steps['address']:#x}", program=("-c", "pass"))
    assert re.search(r'Line 3 of ".*collatz.tiny" starts at address \w+ <steps>', said)


def test_paths_are_written_as_the_bytes_they_are(tiny: int, tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/\xff\xfe"
    out = subprocess.check_output([*JITLISTEN, "dump", str(tiny), "-o", directory], timeout=60)
    (path,) = out.splitlines()
    assert path.startswith(directory)
    assert os.path.getsize(path)
