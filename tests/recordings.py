"""Recordings of `programs/reported.py`, and what `jitlisten report` says of them."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from tools import PROGRAMS, run, tool

import jitlisten

Record = Callable[..., Path]
SHARE = r" *([\d.]+) %"


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Recordings of reported.py, each made once: `record("images", "collatz", "mcjit")`."""
    made: dict[tuple[str, ...], Path] = {}
    pids: list[str] = []

    def record(way: str, *scene: str, graph: str = "fp", python: tuple[str, ...] = ()) -> Path:
        key = (way, *scene, graph, *python)
        if key not in made:
            directory = tmp_path_factory.mktemp("recording")
            data = made[key] = directory / "perf.data"
            said = run(
                *(sys.executable, "-m", "jitlisten", "run", f"--{way}", "--"),
                *(tool("perf"), "record", "-q", "--buildid-mmap", "-k", "mono", "-e", "cpu-clock"),
                *("-F", "999", *(("--call-graph", graph) if graph else ()), "-o", str(data), "--"),
                *(sys.executable, *python, str(PROGRAMS / "reported.py"), *scene),
                env={**os.environ, "JITDUMPDIR": str(directory)},
                cwd=directory,
            )
            pids.extend(re.findall(r"\d+", said))
            if way == "jitdump":
                made[key] = directory / "perf.jit.data"
                run(tool("perf"), "inject", "-j", "-i", str(data), "-o", str(made[key]))
        return made[key]

    yield record
    for pid in pids:
        for pattern in (f"perf-{pid}.map", f"jit-{pid}.dump", f"jitted-{pid}-*.so"):
            for path in Path("/tmp").glob(pattern):
                path.unlink()


@cache
def report(data: Path, *options: str) -> str:
    """What the command prints; once for all tests of a process, for it takes its time."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setenv("COLUMNS", "400")
        assert jitlisten.main(["report", *options, str(data)]) == 0, said.getvalue()
    return said.getvalue()


def table(data: Path) -> dict[str, int]:
    """The JIT functions, and the samples that each has."""
    rows = re.findall(rf"^{SHARE}{SHARE} +([\d,]+)   (\S.*?)(?:  .*)?$", report(data), re.MULTILINE)
    return {name: int(samples.replace(",", "")) for *_, samples, name in rows}


def lines(data: Path) -> dict[tuple[int, str], int]:
    """The source lines under the functions, and the samples that each has."""
    rows = re.findall(rf"^{SHARE}{SHARE} +([\d,]+)  +(\d+)  (.*?) *$", report(data), re.MULTILINE)
    return {(int(line), text): int(samples) for *_, samples, line, text in rows}


def weights(data: Path) -> tuple[int, int]:
    """Of all samples, and of those in `steps`: ns."""
    text = run(tool("perf"), "script", "-i", str(data), "-F", "period,ip,sym", "-G")
    rows = re.findall(r"^ *(\d+) +[0-9a-f]+ (.*)$", text, re.MULTILINE)
    return sum(int(n) for n, _ in rows), sum(int(n) for n, name in rows if "steps" in name)
