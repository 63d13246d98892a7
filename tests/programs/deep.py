"""Four threads, each 1,000 frames deep in two modules, while a collector moves all objects.

    deep.py LINKER COLLECTIONS [--keep-roots]

Each frame holds an object, and pointers into it that its base alone does not tell; halfway down
each thread goes through Python. What each thread computes on its way back needs every object.
With --keep-roots the collector does not rewrite the roots. Prints what was moved.
"""

import argparse
import ctypes
import re
import threading

import llvmlite.binding as llvm
from collector import REFERENCE, Runtime
from jit import LINKERS, initialize, target_machine

from listeners.safepoints import place_statepoints

THREADS, DEPTH = 4, 1000
Function = ctypes.CFUNCTYPE(ctypes.c_int64, *(ctypes.c_int64,) * 5)
TEXT = """
define i64 @{name}(i64 %n, i64 %seed, i64 %polls, ptr %other, {ref} %above) noinline
    gc "statepoint-example" {{
  %object = call {ref} @alloc(i64 1, i64 4)
  %field = getelementptr i64, {ref} %object, i64 1
  store {ref} %above, {ref} %field
  %which = and i64 %n, 3
  %place = add i64 %which, 2
  %inside = getelementptr i64, {ref} %object, i64 %place
  %value = add i64 %n, %seed
  store i64 %value, {ref} %inside
  %middle = icmp eq i64 %n, {half}
  %bottom = icmp eq i64 %n, 1
  %rest = sub i64 %n, 1
  br i1 %bottom, label %collect, label %down
collect:
  %left = phi i64 [ %polls, %0 ], [ %less, %collect ]
  call void @poll()
  %less = sub i64 %left, 1
  %more = icmp ne i64 %less, 0
  br i1 %more, label %collect, label %up
down:
  br i1 %middle, label %through, label %further
through:
  %first = call i64 inttoptr (i64 {python} to ptr)(i64 %rest, i64 %seed, i64 %polls)
  br label %up
further:
  %second = call i64 %other(i64 %rest, i64 %seed, i64 %polls, ptr @{name}, {ref} %object)
  br label %up
up:
  %below = phi i64 [ 0, %collect ], [ %first, %through ], [ %second, %further ]
  %mine = load i64, {ref} %inside
  %start = load {ref}, {ref} %field
  %same = icmp eq {ref} %start, %above
  %linked = zext i1 %same to i64
  %total = add i64 %below, %mine
  %result = add i64 %total, %linked
  ret i64 %result
}}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("linker", choices=LINKERS)
    parser.add_argument("collections", type=int)
    parser.add_argument("--keep-roots", action="store_true")
    options = parser.parse_args()
    initialize()
    runtime = Runtime(options.linker, threads=THREADS)
    runtime.rewrite = not options.keep_roots

    def through_python(n: int, seed: int, polls: int) -> int:
        return Function(addresses[0])(n, seed, polls, addresses[1], 0)

    python = runtime.entry(through_python, "i64", "i64", "i64", "i64")
    addresses: list[int] = []
    passes = llvm.create_pass_builder(
        target_machine(opt=2), llvm.create_pipeline_tuning_options(speed_level=2)
    )
    for name in ("even", "odd"):
        text = TEXT.format(name=name, ref=REFERENCE, half=DEPTH // 2 + 1, python=python.address)
        text = re.sub("@(alloc|poll)", rf"@\1_{name}", runtime.code + text)
        module = llvm.parse_assembly(text)
        passes.getModulePassManager().run(module, passes)
        addresses += runtime.load(place_statepoints(module), name)

    results = {}

    def run(seed: int) -> None:
        results[seed] = Function(addresses[0])(DEPTH, seed, options.collections, addresses[1], 0)

    seeds = [1_000_000 * number for number in range(THREADS)]
    threads = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {seed: DEPTH * (DEPTH + 1) // 2 + DEPTH * seed + DEPTH for seed in seeds}
    print(runtime.heap.moved, runtime.deepest, runtime.derived)
    assert results == expected, f"{results} instead of {expected}"


if __name__ == "__main__":
    main()
