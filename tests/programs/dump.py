"""Writes a jitdump of what it loads and runs, in every way the tests ask for.

    dump.py LINKER SCENE

Scenes: `collatz`; `frames`, the same with frame pointers; `reuse`, an earlier function unloaded and
a later one at its address; `fork`; `kill`.
"""

import os
import re
import signal
import sys

from jit import Long, Program, initialize, loop_ir, source_ir

import listeners

ROUNDS = 100_000_000

linker, scene = sys.argv[1:]
initialize()
listeners.attach(None, listeners.JITDump())
program = Program(linker)


def load(name: str, factor: int = 3) -> int:
    (address,) = program.load(loop_ir(name, factor), name)
    return address


def run(address: int, rounds: int = ROUNDS) -> None:
    Long(address)(rounds)


def free() -> None:
    global program
    program.unload()
    program.engine.close()
    program = Program(linker)


if scene in ("collatz", "frames"):
    text = source_ir()
    if scene == "frames":
        text = re.sub(r"^(define .*\))", r'\1 "frame-pointer"="all"', text, flags=re.MULTILINE)
    _, longest = program.load(text, "steps", "longest")
    run(longest, 300_000)
elif scene == "reuse":
    # Equal code, too, so that only the time tells one from the other.
    for _ in range(100):
        earlier = load("earlier")
        free()
        if load("later") == earlier:
            break
        free()
    free()
    assert load("earlier") == earlier
    run(earlier)
    free()
    assert load("later") == earlier
    run(earlier, 2 * ROUNDS)
elif scene == "fork":
    inherited = load("inherited")
    child = os.fork()
    run(load("of_parent" if child else "of_child", 5 if child else 7))
    run(inherited)
    if child:
        os.waitpid(child, 0)
    else:
        os._exit(0)
elif scene == "kill":
    run(load("before_the_end"))
    os.kill(os.getpid(), signal.SIGKILL)
