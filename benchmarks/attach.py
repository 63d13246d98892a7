"""What listeners add to the load of one object, beside bare llvmlite in the same run.

    python benchmarks/attach.py [ROUNDS]

Each figure is the median of ROUNDS processes, which take turns, of the median over the objects
that one process loads: ready ones, and modules that it compiles at opt 2. `bare` does not import
listeners; `imported` does and attaches nothing: over JITLink it shows what the section symbols
cost.

On a machine that others use, processes differ by more than the listeners cost. So the small object
is also loaded in pairs, with both listeners attached and with none, in random order in one process:
the figure is the median of the differences, of which again the median of ROUNDS processes is shown.
"""

import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
LINKERS = "mcjit", "rtdyld", "jitlink"
SIZES = {"small": 1, "medium": 20, "large": 200}  # functions a module
WAYS = "bare", "imported", "gdb", "perf map", "both"
CALLS = "address of a loaded function", "name of the host's processor"

FUNCTION = """
def steps{0}(n):
    count = 0
    while n > 1:
        half = n // 2
        if n - 2 * half:
            n = 3 * n + 1
        else:
            n = half
        count = count + 1
    return count
"""


def measure(linker: str, functions: int, way: str) -> dict[str, float]:
    """In a process of its own: µs a load, a compile and load, and calls that load nothing.

    In pairs: what a load and a compile and load take longer, and the latter as a ratio.
    """
    if way == "bare":
        from types import ModuleType

        sys.modules["listeners"] = ModuleType("listeners")
    sys.path[:0] = [str(ROOT / "tests" / "programs"), str(ROOT / "examples")]
    import llvmlite.binding as llvm
    import tiny
    from jit import initialize, target_machine

    import listeners

    initialize()
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "steps.tiny")
        source.write_text("".join(FUNCTION.format(number) for number in range(functions)))
        text = str(tiny.Compiler(source).module)
    elf = target_machine(opt=2).emit_object(llvm.parse_assembly(text))
    tools = {
        "gdb": lambda: [listeners.GDBRegistration()],
        "perf map": lambda: [listeners.PerfMap()],
        "both": lambda: [listeners.GDBRegistration(), listeners.PerfMap()],
    }
    if way in tools:
        listeners.attach(None, *tools[way]())
    if way == "pairs":
        both = tools["both"]()
    if linker != "mcjit":
        lljit = llvm.create_lljit_compiler(target_machine(opt=2), use_jit_link=linker == "jitlink")
    count = itertools.count()

    def load(compiled: bool) -> object:
        if linker == "mcjit":
            module = llvm.parse_assembly("" if compiled else text)
            engine = llvm.create_mcjit_compiler(module, target_machine(opt=2))
            if compiled:
                engine.remove_module(module)
                engine.add_object_file(llvm.ObjectFileRef.from_data(elf))
            engine.get_function_address("steps0")
            return engine
        builder = llvm.JITLibraryBuilder().export_symbol("steps0")
        library = builder.add_object_img(elf) if compiled else builder.add_ir(text)
        return library.link(lljit, f"library{next(count)}")

    if way == "pairs":

        def paired(compiled: bool) -> tuple[float, float]:
            return in_pairs(lambda: load(compiled), lambda: listeners.attach(None, *both), 300)

        (_, loading), (alone, compiling) = paired(True), paired(False)
        return {"load": loading, "compile and load": compiling, "ratio": 1 + compiling / alone}
    found = {
        "load": per_load(lambda: load(True), max(20, 1000 // functions)),
        "compile and load": per_load(lambda: load(False), max(5, 200 // functions)),
    }
    if linker == "mcjit" and functions == 1:
        engine = load(True)
        for what, call in zip(
            CALLS,
            (lambda: engine.get_function_address("steps0"), llvm.get_host_cpu_name),
            strict=True,
        ):
            found[what] = per_call(call)
    return found


def per_load(load: Callable[[], object], times: int) -> float:
    """Median µs; the first one, which pays for what is done once, is left out."""
    load()
    took = []
    for _ in range(times):
        start = time.perf_counter_ns()
        loaded = load()
        took.append((time.perf_counter_ns() - start) / 1e3)
        del loaded  # unloaded here, outside the time
    return statistics.median(took)


def in_pairs(
    load: Callable[[], object], attach: Callable[[], Any], times: int
) -> tuple[float, float]:
    """Median µs of a load that nobody hears, and of how much longer one takes that is heard."""
    alone, longer = [], []
    for _ in range(times):
        took = {}
        for heard in random.sample((False, True), 2):
            attachment = attach() if heard else None
            load()  # and unload, so that both are preceded by the same
            start = time.perf_counter_ns()
            loaded = load()
            took[heard] = (time.perf_counter_ns() - start) / 1e3
            del loaded
            if attachment:
                attachment.detach()
        alone.append(took[False])
        longer.append(took[True] - took[False])
    return statistics.median(alone), statistics.median(longer)


def per_call(call: Callable[[], object]) -> float:
    """µs, the least of several runs: it is a constant cost, the rest is noise."""
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter_ns()
        for _ in range(1000):
            call()
        best = min(best, (time.perf_counter_ns() - start) / 1e6)
    return best


def run(linker: str, functions: int, way: str) -> dict[str, float]:
    """`measure`, in a process of its own."""
    command = [sys.executable, __file__, linker, str(functions), way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(rounds: int) -> None:
    console = Console()
    took: defaultdict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for linker, size in itertools.product(LINKERS, SIZES):
        for way in WAYS * rounds + ("pairs",) * rounds * (size == "small"):
            for what, value in run(linker, SIZES[size], way).items():
                took[linker, what, size, way].append(value)
    median = {key: statistics.median(values) for key, values in took.items()}

    sizes = [f"{size} ({functions})" for size, functions in SIZES.items()]
    for linker in LINKERS:
        table = Table(linker, *sizes)
        for what in "load", "compile and load":
            table.add_row(f"[bold]{what}")
            for base, way in (*(("bare", way) for way in WAYS), ("imported", "both")):
                cells = []
                for size in SIZES:
                    without, value = (median[linker, what, size, one] for one in (base, way))
                    more = f"{value - without:+,.0f} µs ×{value / without:.3f}"
                    cells.append(f"{value:,.0f} µs" if way == base else more)
                table.add_row(way if base == "bare" else f"{way} over {base}", *cells)
            table.add_section()
        console.print(table)

    table = Table("small (1)", "load", "compile and load", title="both over imported, in pairs")
    for linker in LINKERS:
        load, compiling, ratio = (
            median[linker, what, "small", "pairs"] for what in ("load", "compile and load", "ratio")
        )
        table.add_row(linker, f"{load:+,.0f} µs", f"{compiling:+,.0f} µs ×{ratio:.3f}")
    console.print(table)

    table = Table("call that loads nothing", *WAYS, title="attached, with nothing to say")
    for what in CALLS:
        cells = [f"{median['mcjit', what, 'small', way]:.2f} µs" for way in WAYS]
        table.add_row(what, *cells)
    console.print(table)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
