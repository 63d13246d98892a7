"""The command `jitlisten`.

It stands beside `listeners` and not inside: `run` only starts a program, a Python which that
program starts need not use llvmlite at all, and `doctor` has to say it when llvmlite cannot be
loaded. Each command is a module with a `main`, loaded when it is asked for.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # without the import of typing, which every Python of `run` would pay for
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

COMMANDS = {
    "run": ("run", "run a program with listeners attached to all its engines"),
    "record": ("record", "record a program with perf, JIT'd code in full"),
    "report": ("report", "show where a recording of perf spent its time"),
    "list": ("listing", "list the JIT'd code of a process or core file"),
    "map": ("mapping", "write the map file from which perf names the JIT'd code of a process"),
    "dump": ("dump", "write the JIT'd code of a process or core file as ELF files"),
    "symbolize": ("symbolize", "say what function and line of JIT'd code an address is in"),
    "stackmap": ("stackmap", "show what objects record of call sites, roots, faults, exceptions"),
    "doctor": ("doctor", "say what works on this machine, and why not"),
    "clean": ("clean", "remove what ended programs have left for perf"),
}
"""By name: the module, and what it does. A module `list` would hide Python's own here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments `argv`, or those of the process.

    Gives the exit status.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    _replace_closed_streams()
    if arguments and arguments[0] in COMMANDS:
        return _run(COMMANDS[arguments[0]][0], arguments[1:])

    from argparse import ArgumentParser

    parser = ArgumentParser(
        prog="jitlisten",
        description="gdb, lldb, perf and you see the code that JIT compilers load.",
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (_, help_) in COMMANDS.items():
        commands.add_parser(name, help=help_)
    if parser.parse_args(arguments).version:
        from .command import carry_out

        return carry_out("--version", _show_version)
    parser.print_help()
    return 0


def _replace_closed_streams() -> None:
    """What is written to one that was closed goes nowhere, and not to another file."""
    if sys.stdout is None or sys.stderr is None:
        import os

        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


def _show_version() -> int:
    from importlib.metadata import version

    print("jitlisten", version("jit-listeners"))
    return 0


def _run(module: str, arguments: list[str]) -> int:
    try:
        from importlib import import_module

        from .startup import cancel

        cancel()
        status: int = import_module(f".{module}", __package__).main(arguments)
    except KeyboardInterrupt:
        return 130  # as of a program that SIGINT has ended
    return status
