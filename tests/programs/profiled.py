"""Code for perf to sample, that a listener tells it of.

    profiled.py WAY ENGINE SCENE [--frame-pointers] [--keep]

WAY is images, jitdump or map; ENGINE one of LINKERS, and for `hot` numba, too. Scenes:

    hot     `outer` calls `hot` of hot.tiny, a third of a second
    loop    … until standard input ends
    work    `eight`, `four`, `two` and `one` run that many times as long as the last
    reload  `earlier` runs, is freed, `later` runs twice as long at the same address, and is
            freed, or with --keep is not
    fork    parent and child run `inherited`, and `parent_only` or `child_only`
    kill    `before_the_end` runs, and the process is killed
"""

import os
import re
import select
import signal
import sys
import time
from pathlib import Path

import tiny
from jit import Long, Program, initialize, loop_ir

import listeners

SOURCE = Path(__file__).with_name("hot.tiny")
WAYS = {"images": "CodeImages", "jitdump": "JITDump", "map": "PerfMap"}
kept: list[Program] = []
ROUNDS = 25_000_000  # some 30 ms


def load(name: str) -> tuple[Program, int]:
    program = Program(engine)
    (address,) = program.load(loop_ir(name), name)
    return program, address


def load_to_keep(name: str) -> int:
    program, address = load(name)
    kept.append(program)
    return address


def free(program: Program) -> None:
    program.unload()
    program.engine.close()


def load_outer():
    if engine == "numba":
        from numbatiny import compiled

        outer = compiled(SOURCE)["outer"]
    else:
        text = str(tiny.Compiler(SOURCE).module)
        if "--frame-pointers" in sys.argv:
            text = re.sub(r"^(define .*?\))", r'\1 "frame-pointer"="all"', text, flags=re.MULTILINE)
        kept.append(Program(engine))
        outer = Long(kept[0].load(text, "hot", "outer")[1])
    outer(1)
    # perf takes long to find the lines of what has compiled the code: reports leave that out.
    print("started", time.monotonic(), flush=True)
    return outer


def hot() -> None:
    outer = load_outer()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        outer(1_000_000)


def loop() -> None:
    outer = load_outer()
    while not select.select([sys.stdin], [], [], 0)[0]:
        outer(1_000_000)


def work() -> None:
    for times, name in ((8, "eight"), (4, "four"), (2, "two"), (1, "one")):
        Long(load_to_keep(name))(times * ROUNDS)


def reload() -> None:
    names = "_ZN4game7earlierEi", "_ZN4game5laterEi"
    for _ in range(100):  # sometimes the allocator has given the place to something else
        addresses = set()
        for name in names:
            program, address = load(name)
            addresses.add(address)
            free(program)
        if len(addresses) == 1:
            break
    for name, times in zip(names, (6, 12), strict=True):
        program, address = load(name)
        assert {address} == addresses
        Long(address)(times * ROUNDS)
        if name == names[0] or "--keep" not in sys.argv:
            free(program)


def fork() -> None:
    inherited = load_to_keep("inherited")
    child = os.fork()
    own = load_to_keep("parent_only" if child else "child_only")
    Long(own)(6 * ROUNDS)
    Long(inherited)(3 * ROUNDS)
    if not child:
        os._exit(7)
    print("child", child)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def kill() -> None:
    Long(load_to_keep("before_the_end"))(6 * ROUNDS)
    os.kill(os.getpid(), signal.SIGKILL)


way, engine, scene = sys.argv[1:4]
print("pid", os.getpid(), flush=True)
initialize()
listener = getattr(listeners, WAYS[way])()
listeners.attach(None, listener)
SCENES = {one.__name__: one for one in (hot, loop, work, reload, fork, kill)}
SCENES[scene]()
assert not getattr(listener, "problems", ()), listener.problems
