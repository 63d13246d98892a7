"""4 threads run code while others load, unload, and map images over that code.

    stress.py LINKER [CALLS]

The files are in $JITDUMPDIR.
"""

import ctypes
import os
import sys
import threading

from jit import Long, Program, initialize, loop_ir

import listeners
from listeners.engines.calls import lock

CALLS = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000


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


initialize()
images = listeners.CodeImages(os.environ["JITDUMPDIR"])
attachment = listeners.attach(None, images)
stress(sys.argv[1])
assert not images.problems, images.problems
