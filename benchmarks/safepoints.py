"""Safepoints at 100,000: parsing, look-ups, and walking a deep stack beside glibc and libunwind.

    python benchmarks/safepoints.py

The object is real: LLVM compiles 1,000 functions of 100 statepoints with two roots each. The stack
is of four functions in turn, with frames of different forms and sizes, two roots each; ns a frame
is the difference between a deep and a shallow one, so that entering costs nothing. The unwinders
are given the same frames, and give addresses of code, or what unw_step() finds, but no roots. Each
figure is the best of several, in processor time: the machine's noise only adds.

At last, objects of two safepoints come and go while none and while 10,000 others are loaded.
"""

import ctypes
import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "programs"), str(ROOT / "examples")]

import llvmlite.binding as llvm
from jit import Program, initialize, target_machine
from libunwind import LIBRARY, PACKAGE, LibUnwind
from rich.console import Console
from rich.table import Table
from stacks import call, chained, result
from statepoints import DECLARATIONS, statepoint

import listeners
from listeners.objectfile import SHF_ALLOC, ObjectFile
from listeners.safepoints import NativeWalker, ObjectTables, StackMaps, Stacks, walk
from listeners.safepoints.nativewalk import _packed

FUNCTIONS, CALLS = 1000, 100
RECORDS = FUNCTIONS * CALLS
SHALLOW, DEEP = 1_000, 21_000
FORMS = "plain", "framed", "all_registers", "pushed"
FIRST = 1 << 40
SOME, MANY = 100, 10_000


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
        rate = count / seconds
        millions = f"{rate / 1e6:.2f} M" if rate > 1e5 else f"{rate:,.0f}"
        table.add_row(name, f"{1e9 / rate:,.1f} ns/{unit}", f"{millions} {unit}s/s")

    content = loaded.maps.content
    row("scan of the section", best(lambda: StackMaps(content)), RECORDS, "record")
    at_load = best(lambda: ObjectTables(obj).safepoints)
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
    unwinder = None
    with suppress(OSError):
        unwinder = LibUnwind()
    walks(safepoints, native, program, unwinder, row)
    comings_and_goings(row)
    Console().print(table)
    if unwinder is None:
        print(f"libunwind was left out, as there is no {LIBRARY}: apt-get install {PACKAGE}")


def walks(
    safepoints: listeners.Safepoints,
    native: NativeWalker,
    program: Program,
    unwinder: LibUnwind | None,
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
        depth = len({frame.sp for frame in walk(safepoints, anchors)})
        assert libc.backtrace(frames, len(frames)) > depth
        if unwinder:
            assert unwinder.backtrace(frames, len(frames)) > depth
            assert unwinder.steps(1 << 20) > depth
            ways |= {
                "libunwind's unw_backtrace()": lambda: unwinder.backtrace(frames, len(frames)),
                "libunwind's unw_step(), stack pointers": lambda: unwinder.steps(1 << 20),
            }
        for name, way in ways.items():
            seconds = best(way, 30 if way is compiled else 5) / (10 if way is compiled else 1)
            found.setdefault(name, []).append(seconds)

    entry = stacks.entry(measure)
    (function,) = program.load(chained(entry.address, FORMS), "f0")
    if unwinder:
        with listeners.attach(None, listeners.JITEventListener()) as everything:
            for obj in everything.objects:
                unwinder.tell(obj)

    def work() -> None:
        for depth in SHALLOW, DEEP:
            assert call(function, depth, FIRST) == result(depth, FIRST)

    threading.stack_size(512 << 20)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for name, (shallow, deep) in found.items():
        row(f"walk: {name}", deep - shallow, DEEP - SHALLOW, "frame")


def comings_and_goings(row: Callable[[str, float, int, str], None]) -> None:
    """Objects are announced to the listener and its compiled table, and freed, among others."""
    file = ObjectFile(
        target_machine(opt=2).emit_object(llvm.parse_assembly(chained(0, ("plain",))))
    )
    sections = [index for index, header in enumerate(file.sections) if header.flags & SHF_ALLOC]

    starts = itertools.count(FIRST, 0x100000)

    def objects(count: int) -> list[listeners.LoadedObject]:
        return [
            listeners.LoadedObject(
                lambda: file, ctypes.string_at, {i: start + i * 0x10000 for i in sections}
            )
            for start in itertools.islice(starts, count)
        ]

    safepoints = listeners.Safepoints()
    native = NativeWalker(safepoints)

    def come_and_go() -> None:
        some = objects(SOME)
        for obj in some:
            safepoints.notify_object_loaded(obj)
        assert native.knows(ObjectTables(some[0]).safepoints.maps.addresses[0])
        for obj in some:
            safepoints.notify_freeing_object(obj)

    for others in 0, MANY:
        for obj in objects(others):
            safepoints.notify_object_loaded(obj)
        seconds = best(come_and_go)
        row(f"an object comes and goes, {others:,} are there", seconds, SOME, "object")


if __name__ == "__main__":
    main()
