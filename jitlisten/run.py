"""`jitlisten run`: a program as it is, with listeners attached to every llvmlite engine of it.

Two environment variables do it: JITLISTEN names the listeners, and PYTHONPATH brings every
Python of the program, whatever environment it belongs to, to `startup` before its first line.
This process then becomes the program, so that all else is as it would be without us.
"""

# Without pathlib, whose import takes longer than all of this.
# ruff: noqa: PTH100, PTH118, PTH120, PTH123

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentParser

from .startup import VARIABLE

__all__ = ["run"]

PYTHONPATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pythonpath")
"""A directory that holds a sitecustomize module and nothing else."""

# What a shell gives when a command cannot be executed, and when it cannot be found.
NOT_EXECUTABLE, NOT_FOUND = 126, 127


def run(arguments: list[str]) -> int:
    """Become the program that `arguments`, those after `jitlisten run`, ask for.

    Returns only if that cannot be executed: 127 if there is none, else 126.
    """
    options, command = _split(arguments)
    parser = ArgumentParser(
        prog="jitlisten run",
        usage="jitlisten run [-h] [--gdb | --gdb-all] [--perf-map] [--images] [--jitdump]"
        " [--] PROGRAM [ARGUMENT ...]",
        description="Run a program with listeners attached to every llvmlite engine of it and of"
        " the Python programs it starts. Without options: --gdb --perf-map.",
        allow_abbrev=False,
    )
    debuggers = parser.add_mutually_exclusive_group()
    debuggers.add_argument("--gdb", action="store_true", help="gdb and lldb see the code")
    debuggers.add_argument("--gdb-all", action="store_true", help="gdb 15 sees it, too")
    parser.add_argument("--perf-map", action="store_true", help="perf names it")
    parser.add_argument(
        "--images", action="store_true", help="perf knows its lines and callers, too"
    )
    parser.add_argument(
        "--jitdump", action="store_true", help="perf names it, with lines, after perf inject -j"
    )
    chosen = [name for name, given in vars(parser.parse_args(options)).items() if given]
    if not command:
        parser.error("no program is given")

    environment = _given_environment()
    environment[VARIABLE] = ",".join(chosen or ["gdb", "perf-map"]).replace("_", "-")
    others = [entry for entry in [environment.get("PYTHONPATH")] if entry]
    environment["PYTHONPATH"] = os.pathsep.join([PYTHONPATH, *others])
    # Python ignores these two, and a program would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)
    except (FileNotFoundError, NotADirectoryError) as error:
        status, problem = NOT_FOUND, error.strerror
    except OSError as error:
        status, problem = NOT_EXECUTABLE, error.strerror
    print(f"jitlisten run: cannot run {command[0]!r}: {problem}", file=sys.stderr)
    return status


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our options, and the command line of the program."""
    for index, argument in enumerate(arguments):
        if argument == "--":
            return arguments[:index], arguments[index + 1 :]
        if not argument.startswith("-"):
            return arguments[:index], arguments[index:]
    return arguments, []


def _given_environment() -> dict[str, str]:
    """The environment as this process was given it: in the C locale, Python has put LC_CTYPE
    into its own (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        variables = os.fsdecode(file.read()).split("\0")
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)
