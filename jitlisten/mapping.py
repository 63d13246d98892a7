"""`jitlisten map`: names for perf, in the map file of a process that writes none itself."""

from __future__ import annotations

from argparse import ArgumentParser

from perfmap import write_map

from .command import carry_out, complain
from .outside import Target, process_number

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Write the map file that the command line asks for; gives the exit status."""
    parser = ArgumentParser(
        prog="jitlisten map",
        description="Write the names of a process's JIT'd functions where perf looks for them.",
        allow_abbrev=False,
    )
    parser.add_argument("pid", type=process_number, metavar="PID", help="number of the process")
    options = parser.parse_args(arguments)
    return carry_out("map", lambda: _map(options.pid))


def _map(pid: int) -> int:
    # The file is only touched when all objects have been read.
    read, problems = Target(pid, None).look(lambda found: found.obj.functions)
    if problems:
        return complain("map", problems)
    functions = [function for found in read for function in found]
    path = write_map(pid, [(f.address, f.size, f.demangled) for f in functions])
    print(f"{len(functions)} functions in {path}")
    return 0
