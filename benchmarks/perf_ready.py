"""From a program's end to a report with names: code images against jitdump and `perf inject`.

    python benchmarks/perf_ready.py [FUNCTIONS ...]

For 100, 1,000 and 10,000 functions with debug information, which all run, in objects of one
function and of a hundred: seconds that `perf record` takes to end, `perf inject` and `perf report`;
the functions that have samples and so stand in the report; the files that are there then; and what
the load of an object has cost with the listener.

`perf record` has the options of `jitlisten record`, for each way; or none, as in perf's own
documentation of jitdump. perf's copies of what it has seen go to an empty directory.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attach import FUNCTION
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
WAYS = {"none": None, "images": "CodeImages", "jitdump": "JITDump", "map": "PerfMap"}
SOON = ("--buildid-mmap", "--no-bpf-event")
RUNS = [*((way, SOON) for way in WAYS), ("images", ()), ("jitdump", ())]


def program(way: str, functions: int, per_object: int) -> None:
    """Load the functions, run each for 250 µs, and say what the load of an object took, in µs."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "programs"), str(ROOT / "examples")]
    import llvmlite.binding as llvm
    import tiny
    from jit import Long, initialize, target_machine

    import listeners

    initialize()
    if WAYS[way]:
        listeners.attach(None, getattr(listeners, WAYS[way])())
    engine = llvm.create_lljit_compiler(target_machine(opt=2))
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "steps.tiny")
        source.write_text("".join(FUNCTION.format(f"{n:05}") for n in range(per_object)))
        text = str(tiny.Compiler(source).module)
    elf = target_machine(opt=2).emit_object(llvm.parse_assembly(text))
    same = len(str(per_object - 1)) if per_object > 1 else 0  # digits that count inside an object
    took, kept, addresses = 0.0, [], []
    for number in range(functions // per_object):
        ours = f"steps{number:0{5 - same}}"
        builder = llvm.JITLibraryBuilder()
        builder.add_object_img(elf.replace(b"steps" + b"0" * (5 - same), ours.encode()))
        names = [f"{ours}{inner:0{same}}" if same else ours for inner in range(per_object)]
        for name in names:
            builder.export_symbol(name)
        start = time.perf_counter()
        library = builder.link(engine, f"library{number}")
        took += time.perf_counter() - start
        kept.append(library)
        addresses += [library[name] for name in names]
    started = time.monotonic()
    for address in addresses:
        end = time.process_time() + 250e-6
        while time.process_time() < end:
            Long(address)(837799)
    said = {"load": took / len(kept) * 1e6, "started": started, "end": time.monotonic()}
    print(json.dumps(said), flush=True)
    os._exit(0)


def measure(way: str, options: tuple[str, ...], functions: int, per: int) -> dict[str, float]:
    """Seconds by step, what the report names, and what is on the disk then."""
    with tempfile.TemporaryDirectory() as directory:
        perf = ("perf", "--buildid-dir", f"{directory}/.debug/copies")
        data = f"{directory}/perf.data"
        sampling = ("-q", "-k", "mono", "-e", "cpu-clock:u", "-c", "250000", *options)
        command = (sys.executable, __file__, way, str(functions), str(per))
        done = subprocess.run(
            [*perf, "record", *sampling, "-o", data, "--", *command],
            env={**os.environ, "JITDUMPDIR": directory},
            stdout=subprocess.PIPE,
            check=True,
        )
        said = json.loads(done.stdout)
        found = {"load": said["load"], "record": time.monotonic() - said["end"], "inject": 0.0}
        if way == "jitdump":
            start = time.monotonic()
            injected = f"{directory}/injected"
            subprocess.run([*perf, "inject", "-j", "-i", data, "-o", injected], check=True)
            found["inject"] = time.monotonic() - start
            data = injected
        start = time.monotonic()
        report = ("--stdio", "--no-children", "-F", "overhead,sym", "--time", f"{said['started']},")
        text = subprocess.run(
            [*perf, "report", "-i", data, *report],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        ).stdout
        found["report"] = time.monotonic() - start
        found["named"] = len(set(re.findall(r"\] (steps\d+)", text)))
        assert way == "none" or found["named"]
        files = [path for path in Path(directory, ".debug").rglob("*") if path.is_file()]
        found["files"] = len(files)
        found["MB"] = sum(path.stat().st_blocks * 512 for path in files) / 1e6
        return found


def main(sizes: list[int]) -> None:
    columns = ("functions", "an object", "listener", "options", "record ends, s", "inject, s")
    table = Table(*columns, "report, s", "in all, s", "named", "files", "MB", "load, µs")
    for functions, per in itertools.product(sizes, (1, 100)):
        for way, options in RUNS:
            found = measure(way, options, functions, per)
            steps = [found[step] for step in ("record", "inject", "report")]
            cells = [f"{seconds:.2f}" for seconds in (*steps, sum(steps))]
            cells += [f"{found[what]:,.0f}" for what in ("named", "files", "MB", "load")]
            whose = "as jitlisten record" if options else "none"
            table.add_row(f"{functions:,}", str(per), way, whose, *cells)
    Console(width=132).print(table)  # all of it, in a pipe too


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in WAYS:
        program(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main([int(size) for size in sys.argv[1:]] or [100, 1000, 10_000])
