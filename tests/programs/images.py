"""Code with images over it, for perf to sample.

    images.py run LINKER [LIMIT] [--frame-pointers]    collatz; LINKER may be numba
    images.py reload LINKER    `earlier` runs, is freed, `later` runs at the same address
    images.py fork LINKER      `parent_only`, and in a child `child_only`
    images.py stress LINKER    4 threads run code while others load, unload, and map over that code

The files are in $JITDUMPDIR.
"""

import ctypes
import os
import re
import sys
import threading
import time

from jit import Long, Program, initialize, loop_ir, source_ir

import listeners
from listeners.engines.calls import lock

CALLS = 100_000


def numba_longest():
    import numba

    @numba.njit(debug=True)
    def steps(n):
        count = 0
        while n > 1:
            half = n // 2
            n = 3 * n + 1 if n - 2 * half else half
            count = count + 1
        return count

    @numba.njit(debug=True)
    def longest(limit):
        best = 0
        for start in range(1, limit):
            count = steps(start)
            if count > best:
                best = count
        return best

    return longest


def run(linker: str) -> None:
    limit = next((int(word) for word in sys.argv[3:] if word.isdigit()), 600_000)
    if linker == "numba":
        longest = numba_longest()
    else:
        text = source_ir()
        if "--frame-pointers" in sys.argv:
            text = re.sub(r"(define .*?\))", r'\1 "frame-pointer"="all"', text)
        program = Program(linker)
        longest = Long(program.load(text, "steps", "longest")[1])
    longest(10)
    print("started", time.clock_gettime(time.CLOCK_MONOTONIC))
    print("longest", longest(limit))


def reload(linker: str) -> None:
    def load(name: str) -> tuple[Program, int]:
        program = Program(linker)
        (address,) = program.load(loop_ir(name), name)
        return program, address

    def free(program: Program) -> None:
        program.unload()
        program.engine.close()

    for _ in range(100):
        earlier, first = load("earlier")
        Long(first)(10)
        free(earlier)
        later, second = load("later")
        free(later)
        if second == first:
            break
    for name in ("earlier", "later"):
        program, address = load(name)
        assert address == first
        Long(address)(300_000_000)
        free(program)


def fork(linker: str) -> None:
    both = Program(linker)
    (address,) = both.load(loop_ir("inherited"), "inherited")
    child = os.fork()
    name = "parent_only" if child else "child_only"
    own = Program(linker)
    (mine,) = own.load(loop_ir(name), name)
    Long(mine)(200_000_000)
    Long(address)(100_000_000)
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def stress(linker: str) -> None:
    program = Program(linker)
    (address,) = program.load(loop_ir("kept", 3), "kept")
    expected = pow(3, 20_000, 1 << 64)
    ended = threading.Event()
    counts = [0] * 4
    mapped = 0

    def call(number: int) -> None:
        function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_int64)(address)
        while counts[number] < CALLS // 4:
            assert function(20_000) == expected
            counts[number] += 1

    def load() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            other = Program(linker)
            (there,) = other.load(loop_ir("other", number), "other")
            assert Long(there)(2) == number**2
            other.unload()
            other.engine.close()

    def map_again() -> None:  # over pages that other threads are running
        nonlocal mapped
        (kept,) = (obj for obj in attachment.objects if obj.name == "kept")
        while not ended.is_set():
            with lock:
                images.notify_freeing_object(kept)
                images.notify_object_loaded(kept)
            mapped += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    others = [threading.Thread(target=work) for work in (load, load, map_again)]
    for thread in (*threads, *others):
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    for thread in others:
        thread.join()
    print("calls", sum(counts), "mapped", mapped)


if __name__ == "__main__":
    initialize()
    images = listeners.CodeImages(os.environ["JITDUMPDIR"])
    attachment = listeners.attach(None, images)
    {"run": run, "reload": reload, "fork": fork, "stress": stress}[sys.argv[1]](sys.argv[2])
    assert not images.problems, images.problems
