"""Safepoints at 100,000: parsing, look-ups, and walking a deep stack beside glibc's backtrace().

    python benchmarks/safepoints.py

The object is real: LLVM compiles 1,000 functions of 100 statepoints with two roots each. The stack
is of four functions in turn, with frames of different forms and sizes, two roots each; ns a frame
is the difference between a deep and a shallow one, so that entering costs nothing. Each figure is
the best of several, in processor time: the machine's noise only adds.
"""

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "programs"), str(ROOT / "examples")]

import llvmlite.binding as llvm
from jit import Program, initialize, target_machine
from rich.console import Console
from rich.table import Table
from stacks import call, chained, result
from statepoints import DECLARATIONS, statepoint

import listeners
from listeners.safepoints import NativeWalker, ObjectTables, StackMaps, Stacks, walk
from listeners.safepoints.nativewalk import _packed

FUNCTIONS, CALLS = 1000, 100
RECORDS = FUNCTIONS * CALLS
SHALLOW, DEEP = 1_000, 21_000
FORMS = "plain", "framed", "all_registers", "pushed"
FIRST = 1 << 40


def many() -> bytes:
    """An object with RECORDS statepoints."""
    live = "ptr addrspace(1) %o", "ptr addrspace(1) %p"
    text = [DECLARATIONS.replace("declare void @poll()", "define void @poll() { ret void }")]
    for number in range(FUNCTIONS):
        text.append(f'define void @g{number}({", ".join(live)}) gc "statepoint-example" {{')
        text += [statepoint(f"t{site}", identity=site, live=live) for site in range(CALLS)]
        text.append("ret void\n}")
    return target_machine().emit_object(llvm.parse_assembly("\n".join(text)))


def best(work: Callable[[], object], times: int = 7) -> float:
    """Seconds of this thread's processor time, the least of several runs."""
    took = []
    for _ in range(times):
        gc.collect()
        gc.disable()
        start = time.thread_time()
        work()
        took.append(time.thread_time() - start)
        gc.enable()
    return min(took)


def main() -> None:
    initialize()
    table = Table("", "", f"with {RECORDS:,} safepoints loaded")
    program = Program("mcjit", opt=2)
    safepoints = listeners.Safepoints()
    attachment = listeners.attach(program.engine, safepoints)
    program.engine.add_object_file(llvm.ObjectFileRef.from_data(many()))
    program.engine.finalize_object()
    (obj,) = attachment.objects
    loaded = ObjectTables(obj).safepoints
    assert len(loaded) == RECORDS

    def row(name: str, seconds: float, count: int, unit: str) -> None:
        rate = f"{count / seconds / 1e6:.2f} M {unit}s/s"
        table.add_row(name, f"{seconds / count * 1e9:,.1f} ns/{unit}", rate)

    content = loaded.maps.content
    row("scan of the section", best(lambda: StackMaps(content)), RECORDS, "record")
    at_load = best(lambda: ObjectTables(obj).safepoints.by_address)
    row("at load: scan, and index by address", at_load, RECORDS, "record")
    row("at load: packed for the compiled walker", best(lambda: _packed(loaded)), RECORDS, "record")

    def decode() -> None:
        for safepoint in ObjectTables(obj).safepoints:
            _ = safepoint.roots

    row("all decoded to their roots", best(decode, 2), RECORDS, "record")

    native = NativeWalker(safepoints)
    addresses = loaded.maps.addresses[::7]
    lookup, knows = safepoints.lookup, native.knows
    for name, way, times in (
        ("look-up, the first of each", lookup, 1),
        ("look-up, again", lookup, 7),
        ("look-up in the compiled table", knows, 7),
    ):
        seconds = best(lambda way=way: list(map(way, addresses)), times)
        row(name, seconds, len(addresses), "look-up")
    walks(safepoints, native, program, row)
    Console().print(table)


def walks(
    safepoints: listeners.Safepoints,
    native: NativeWalker,
    program: Program,
    row: Callable[[str, float, int, str], None],
) -> None:
    """Walks of the same stack, on a thread with room for it."""
    stacks = Stacks()
    libc = ctypes.CDLL(None)
    out = (ctypes.c_uint64 * (8 * DEEP))()
    frames = (ctypes.c_void_p * (2 * DEEP))()
    found: dict[str, list[float]] = {}

    def measure() -> None:
        anchors = stacks.anchors()
        (anchor,) = anchors
        chain = (ctypes.c_uint64 * 4)(*anchor, 0, 0)
        walker = native._functions.walk, native.table_address, chain, out, len(out) // 2
        roots = [root for frame in walk(safepoints, anchors) for root in frame.roots]
        assert native.roots(anchors) == roots

        def compiled() -> None:
            for _ in range(10):
                walker[0](*walker[1:])

        ways = {
            "Python, frames": lambda: [frame.sp for frame in walk(safepoints, anchors)],
            "Python, roots": lambda: [f.roots for f in walk(safepoints, anchors)],
            "compiled, roots in a buffer": compiled,
            "compiled, roots as Python objects": lambda: native.roots(anchors),
            "glibc's backtrace()": lambda: libc.backtrace(frames, len(frames)),
        }
        for name, way in ways.items():
            seconds = best(way, 30 if way is compiled else 5) / (10 if way is compiled else 1)
            found.setdefault(name, []).append(seconds)
        assert libc.backtrace(frames, len(frames)) > len(
            {frame.sp for frame in walk(safepoints, anchors)}
        )

    entry = stacks.entry(measure)
    (function,) = program.load(chained(entry.address, FORMS), "f0")

    def work() -> None:
        for depth in SHALLOW, DEEP:
            assert call(function, depth, FIRST) == result(depth, FIRST)

    threading.stack_size(512 << 20)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for name, (shallow, deep) in found.items():
        row(f"walk: {name}", deep - shallow, DEEP - SHALLOW, "frame")


if __name__ == "__main__":
    main()
