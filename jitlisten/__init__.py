"""The command `jitlisten`.

It stands beside `listeners` and not inside: `run` only starts a program, a Python which that
program starts need not use llvmlite at all, and `doctor` has to say it when llvmlite cannot be
loaded.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # without the import of typing, which every Python of `run` would pay for
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments `argv`, or those of the process.

    Gives the exit status.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["run"]:
        from .run import run

        return run(arguments[1:])
    if arguments[:1] == ["record"]:
        from .record import record

        return record(arguments[1:])
    if arguments[:1] == ["report"]:
        from .report import report

        return report(arguments[1:])

    from argparse import ArgumentParser

    parser = ArgumentParser(
        prog="jitlisten",
        description="gdb, lldb and perf see the code that llvmlite's engines load.",
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    commands.add_parser("run", help="run a program with listeners attached to all its engines")
    commands.add_parser("record", help="record a program with perf, JIT'd code in full")
    commands.add_parser("report", help="show where a recording of perf spent its time")
    doctor = commands.add_parser("doctor", help="say what works on this machine, and why not")
    doctor.add_argument("--json", action="store_true", help="write JSON instead of a table")
    commands.add_parser("clean", help="remove what ended programs have left for perf")
    stackmap = commands.add_parser(
        "stackmap", help="show what an object records of call sites, roots, faults and exceptions"
    )
    stackmap.add_argument("file", metavar="FILE", help="an object file, as compilers emit it")
    stackmap.add_argument("--json", action="store_true", help="write JSON instead of tables")
    _add_outside(commands)
    options = parser.parse_args(arguments)

    if options.version:
        from importlib.metadata import version

        print("jitlisten", version("jit-listeners"))
        return 0
    if options.command == "doctor":
        from .doctor import report as show_checks

        return show_checks(as_json=options.json)
    if options.command == "clean":
        from .clean import clean

        return clean()
    if options.command == "stackmap":
        from .stackmap import stackmap as show_stackmap

        return show_stackmap(options.file, as_json=options.json)
    if options.command:
        from .outside import look

        return look(parser, options)
    parser.print_help()
    return 0


def _add_outside(commands: Any) -> None:
    """What looks at a process that we did not start, or at a core file."""
    texts = {
        "list": "list the JIT'd code of a process or core file: engines, functions, sections",
        "map": "write the map file from which perf names the JIT'd code of a process",
        "dump": "write the JIT'd code of a process or core file as ELF files",
        "symbolize": "say what function and line of JIT'd code an address is in",
    }
    parsers = {name: commands.add_parser(name, help=text) for name, text in texts.items()}
    for name, parser in parsers.items():
        parser.set_defaults(core=None)
        if name != "symbolize":
            parser.add_argument(
                "pid", nargs="?" if name != "map" else None, type=int, metavar="PID"
            )
        if name != "map":
            parser.add_argument("--core", metavar="FILE", help="a core file, not a process")
    parsers["list"].add_argument("--json", action="store_true", help="write JSON, not a table")
    parsers["list"].add_argument(
        "--watch",
        nargs="?",
        const=1.0,
        type=seconds,
        metavar="SECONDS",
        help="list it again and again",
    )
    parsers["dump"].add_argument(
        "-o", "--output", metavar="DIR", default=".", help="where to write; default: here"
    )
    parsers["symbolize"].usage = "jitlisten symbolize [-h] (PID | --core FILE) [ADDRESS ...]"
    parsers["symbolize"].add_argument(
        "words",
        nargs="*",
        metavar="ADDRESS",
        help="a hexadecimal number; without any, those in the text on stdin are explained",
    )


def seconds(text: str) -> float:
    """A time to wait, as the command line has it."""
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(text)
    return value
