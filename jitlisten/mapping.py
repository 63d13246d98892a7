"""`jitlisten map`: names for perf, in the map file of a process that writes none itself."""

from __future__ import annotations

from argparse import Namespace

from perfmap import write_map

from .outside import registered

__all__ = ["main"]


def main(options: Namespace) -> int:
    """Write the names of all functions there are now where perf looks for them; gives the status.

    The file is only touched when all objects have been read.
    """
    functions = [function for found in registered(options) for function in found.obj.functions]
    path = write_map(options.pid, [(f.address, f.size, f.demangled) for f in functions])
    print(f"{len(functions)} functions in {path}")
    return 0
