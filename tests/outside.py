"""Commands that look into processes from outside, and programs for them that know nothing of us."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from targets import line
from tools import JITLISTEN, PROGRAMS, gdb

NOBODY = 65534


def command(
    *arguments: object, status: int = 0, text: str | None = None, **options: Any
) -> tuple[str, str]:
    """What the command prints on stdout and stderr."""
    done = subprocess.run(
        [*JITLISTEN, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def listed(*arguments: object) -> list[dict[str, Any]]:
    """The objects that `list` finds."""
    objects: list[dict[str, Any]] = json.loads(command("list", "--json", *arguments)[0])["objects"]
    return objects


def functions(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["demangled"]: each for found in objects for each in found["functions"]}


def refused(*arguments: object, **options: Any) -> str:
    """The one line in which the command says what is wrong."""
    out, err = command(*arguments, status=1, **options)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith(f"jitlisten {arguments[0]}: ")
    return err


@contextmanager
def running(*program: str, within: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """One of the programs of `unaware.py`, once it has compiled all; `within` is what starts it."""
    with subprocess.Popen(
        [*within, sys.executable, f"{PROGRAMS}/unaware.py", *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert line(process) == "ready"
            yield process
        finally:
            process.kill()
            Path(f"/tmp/perf-{process.pid}.map").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def tiny() -> Iterator[int]:
    """The number of a program in the tiny language that was started without us."""
    with running("mcjit") as process:
        yield process.pid


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core file of a program that has crashed in JIT'd code.

    The kernel writes it here, or hands it to somebody who keeps it: then gdb does.
    """
    directory = tmp_path_factory.mktemp("crashed")
    program = (f"{PROGRAMS}/unaware.py", "mcjit", "--crash")
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    status = subprocess.run(
        [sys.executable, *program],
        cwd=directory,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (limit, limit)),
        stdin=subprocess.DEVNULL,
        check=False,
    ).returncode
    assert status == -signal.SIGSEGV
    for core in directory.glob("core*"):
        return core
    core = directory / "core"
    gdb("run", f"gcore {core}", "kill", program=program)
    return core
