"""Loads a function, frees it, and loads another one at the same address, which then works.

    reload.py LINKER [--free]

With --free the second one is freed, too, before the program ends.
"""

import sys

from jit import Long, Program, initialize

import listeners

initialize()
linker = sys.argv[1]
tools = listeners.GDBRegistration(), listeners.PerfMap()


def load(name: str) -> tuple[Program, int]:
    text = f"""
    define i64 @{name}(i64 %n) {{
    entry:
      br label %loop
    loop:
      %i = phi i64 [ 0, %entry ], [ %next, %loop ]
      %x = phi i64 [ 1, %entry ], [ %y, %loop ]
      %y = mul i64 %x, 3
      %next = add i64 %i, 1
      %more = icmp slt i64 %next, %n
      br i1 %more, label %loop, label %done
    done:
      ret i64 %y
    }}
    """
    program = Program(linker)
    listeners.attach(program.engine, *tools)
    (address,) = program.load(text, name)
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
