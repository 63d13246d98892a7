"""Checks of a machine, and how what they tell is found out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import llvmlite.binding as llvm

__all__ = [
    "DO_NOTHING",
    "PYTHON",
    "TIMEOUT",
    "Check",
    "State",
    "first_line",
    "probe_engine",
    "run",
    "setting",
    "version_of",
]

TIMEOUT = 30  # seconds, for any one program
PYTHON = (sys.executable, "-I", "-S", "-c")
DO_NOTHING = (*PYTHON, "")
State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Check:
    """Whether something works here, what was found, and what to do about it."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program without input, in English. One that cannot be run has failed."""
    try:
        return subprocess.run(
            command,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {TIMEOUT} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", f"{error}")


def version_of(program: str, pattern: str, package: str = "") -> re.Match[str] | Check:
    """The match of `pattern` in what a program says is its version, or why there is none."""
    outcome = run(program, "--version")
    if match := re.search(pattern, outcome.stdout, re.MULTILINE):
        return match
    problem = first_line(outcome.stderr) or f"its version is not known: {outcome.stdout[:80]!r}"
    return Check(program, "missing", problem, f"apt-get install {package or program}")


def first_line(message: str) -> str:
    """What a program says is wrong."""
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in lines if line and line != "Error:"), "")


def setting(path: str) -> str | None:
    """What a file of the kernel's says; None if there is none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def probe_engine() -> llvm.ExecutionEngine:
    """An engine with one function, `jitlisten_doctor`."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly("define void @jitlisten_doctor() { ret void }")
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_mcjit_compiler(module, machine)
