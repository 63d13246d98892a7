"""Programs under `jitlisten record`, and what is left of them removed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools import JITLISTEN, PROGRAMS, run, tool

RECORD = [*JITLISTEN, "record"]
COLLATZ = f"""
import os, sys
sys.path[:0] = [{str(PROGRAMS)!r}]
from jit import Long, Program, initialize, source_ir
initialize()
program = Program("mcjit")
longest = Long(program.load(source_ir(), "steps", "longest")[1])

def work(limit):
    return longest(limit)

print(os.getpid(), work(300_000))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory; programs that are Pythons have their number in its file `pids`."""
    yield tmp_path
    pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
    for pattern in ("perf-*.map", "jit-*.dump", "jitted-*.so"):
        for path in Path("/tmp").glob(pattern):
            if re.split(r"[-.]", path.name)[1] in pids:
                path.unlink()


@pytest.fixture
def app(home: Path) -> Path:
    """A program that works in JIT'd code, and says its number."""
    (home / "app.py").write_text(COLLATZ)
    return home / "app.py"


def record(
    home: Path,
    *arguments: str,
    status: int = 0,
    before: Callable[[], Any] | None = None,
    **variables: str,
) -> tuple[str, str]:
    """What the program and the command say, on stdout and stderr."""
    outcome = subprocess.run(
        [*RECORD, *arguments],
        cwd=home,
        env={**os.environ, "JITDUMPDIR": str(home), **variables},
        preexec_fn=before,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome.returncode == status, outcome.stderr
    with (home / "pids").open("a") as pids:
        pids.write(outcome.stdout)
    return outcome.stdout, outcome.stderr


def events(data: Path) -> str:
    return run(tool("perf"), "evlist", "-v", "-i", str(data))
