"""Loads a function, frees it, and loads another one at the same address, which then works.

    reload.py LINKER [--free]

With --free the second one is freed, too, before the program ends.
"""

import sys

from jit import Long, Program, initialize, loop_ir

import listeners

initialize()
linker = sys.argv[1]
tools = listeners.GDBRegistration(), listeners.PerfMap()


def load(name: str) -> tuple[Program, int]:
    program = Program(linker)
    listeners.attach(program.engine, *tools)
    (address,) = program.load(loop_ir(name), name)
    return program, address


def free(program: Program) -> None:
    program.unload()
    program.engine.close()


for _ in range(100):  # sometimes the allocator has given the place to something else
    earlier, first = load("_ZN4game7earlierEi")
    Long(first)(10)
    free(earlier)
    later, second = load("_ZN4game5laterEi")
    if second == first:
        break
    free(later)
assert second == first
Long(second)(1_000_000_000)
if "--free" in sys.argv:
    free(later)
