"""`jitlisten run`: a program as it is, with listeners attached to every llvmlite engine of it.

Two environment variables do it: JITLISTEN names the listeners (and JITLISTEN_TRACE a trace's file),
and PYTHONPATH brings every Python of the program, whatever environment it belongs to, to `startup`
before its first line.
This process then becomes the program, so that all else is as it would be without us.
"""

# Without pathlib, whose import takes longer than all of this.
# ruff: noqa: PTH100, PTH118, PTH119, PTH120, PTH123

from __future__ import annotations

import errno
import os
import signal
import sys
from argparse import ArgumentParser

from .startup import TRACE_VARIABLE, VARIABLE, import_listeners

__all__ = ["become", "listening", "main", "refuse"]

PYTHONPATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pythonpath")
"""A directory that holds a sitecustomize module and nothing else."""

# What a shell gives when a command cannot be executed, and when it cannot be found; what env and
# the like give when they fail themselves.
NOT_EXECUTABLE, NOT_FOUND, FAILED = 126, 127, 125


def main(arguments: list[str]) -> int:
    """Become the program that `arguments`, those after `jitlisten run`, ask for.

    Returns only if that cannot be executed: 127 if there is none, else 126; 125 if the file of a
    trace cannot be written.
    """
    options, command = _split(arguments)
    parser = ArgumentParser(
        prog="jitlisten run",
        usage="jitlisten run [-h] [--gdb | --gdb-all] [--perf-map] [--images] [--jitdump]"
        " [--trace FILE] [--] PROGRAM [ARGUMENT ...]",
        description="Run a program with listeners attached to every llvmlite engine of it and of"
        " the Python programs it starts. Without options: --gdb --perf-map.",
        allow_abbrev=False,
    )
    debuggers = parser.add_mutually_exclusive_group()
    debuggers.add_argument(
        "--gdb",
        action="store_true",
        help="gdb and lldb see the code; with a gdb 15 on PATH, the same as --gdb-all",
    )
    debuggers.add_argument("--gdb-all", action="store_true", help="a gdb 15 elsewhere sees it, too")
    parser.add_argument("--perf-map", action="store_true", help="perf names it")
    parser.add_argument(
        "--images", action="store_true", help="perf knows its lines and callers, too"
    )
    parser.add_argument(
        "--jitdump", action="store_true", help="perf names it, with lines, after perf inject -j"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write a timeline of loads and unloads, for ui.perfetto.dev and chrome://tracing",
    )
    given = vars(parser.parse_args(options))
    chosen = [name for name, value in given.items() if value not in (False, None)]
    if not command:
        parser.error("no program is given")

    names = [name.replace("_", "-") for name in chosen or ["gdb", "perf-map"]]
    environment = listening([_resolved(name, command[0]) for name in names])
    trace = given["trace"]
    if trace is not None:
        try:
            environment[TRACE_VARIABLE] = os.path.abspath(trace)
            _empty(trace)
        except OSError as error:
            reason = error.strerror or error
            print(f"jitlisten run: cannot write {trace!r}: {reason}", file=sys.stderr)
            return FAILED
    return become("run", command, environment)


def listening(names: list[str]) -> dict[str, str]:
    """The environment of a program that every listener of `names` is to be attached to."""
    environment = _given_environment()
    environment[VARIABLE] = ",".join(names)
    others = [entry for entry in [environment.get("PYTHONPATH")] if entry]
    environment["PYTHONPATH"] = os.pathsep.join([PYTHONPATH, *others])
    return environment


def become(name: str, command: list[str], environment: dict[str, str]) -> int:
    """Become a program, for our command `name`.

    Returns only if it cannot be executed: the status that a shell gives.
    """
    # Python ignores these two, and a program would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        problem = error.errno or 0
    except ValueError:  # Python's, of an empty name
        problem = errno.ENOENT
    return refuse(name, command[0], problem)


def refuse(name: str, program: str, problem: int) -> int:
    """Say for our command `name` that a program cannot be executed; `problem` is an error number.

    Gives the status that a shell gives.
    """
    print(f"jitlisten {name}: cannot run {program!r}: {os.strerror(problem)}", file=sys.stderr)
    return NOT_FOUND if problem in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE


def _resolved(name: str, program: str) -> str:
    """The listener of this name for the debugger there is: the program itself, or gdb on PATH.

    It is asked here, once, and not by every Python that is started.
    """
    if name != "gdb":
        return name
    from .gdbtool import asks_for_all

    debugger = program if os.path.basename(program) == "gdb" else "gdb"
    return "gdb-all" if asks_for_all(debugger) else "gdb"


def _empty(trace: str) -> None:
    """Make the file of a trace, or empty that of an earlier one. Raises OSError."""
    with open(trace, "a+b") as file:
        if not import_listeners().trace.is_trace(file.fileno()):
            raise OSError("it is there, and is not a trace")
        file.truncate(0)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our options, and the command line of the program."""
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == "--":
            return arguments[:index], arguments[index + 1 :]
        if not argument.startswith("-"):
            return arguments[:index], arguments[index:]
        index += 2 if argument == "--trace" else 1
    return arguments, []


def _given_environment() -> dict[str, str]:
    """The environment as this process was given it: in the C locale, Python has put LC_CTYPE
    into its own (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        variables = os.fsdecode(file.read()).split("\0")
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)
