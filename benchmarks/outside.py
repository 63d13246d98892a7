"""What it takes to look into a process from outside, and what that costs the process.

    python benchmarks/outside.py [OBJECTS] [SECONDS]

A program holds OBJECTS (10,000) objects and loads and unloads others as fast as it can, for SECONDS
(30) by itself, beside something that is busy and does not look, while `jitlisten list --json` runs
again and again, and while one process does nothing but read it. Every list is checked.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import gdbjit
from listeners.functions import read_functions
from listeners.symfile import read_symfile

PROGRAM = Path(__file__).resolve().parents[1] / "tests" / "programs" / "unaware.py"


def names(pid: int) -> set[str]:
    """Every function of the process."""
    return {
        function.name
        for descriptor in gdbjit.descriptors(pid)
        for _, image in descriptor.images()
        for function in read_functions(read_symfile(image), None)
    }


def command(pid: int) -> set[str]:
    """The same, from the command."""
    line = (sys.executable, "-m", "jitlisten", "list", "--json", str(pid))
    objects = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)["objects"]
    return {function["name"] for found in objects for function in found["functions"]}


def loads_per_second(
    objects: int, seconds: float, beside: str | Callable[[int], set[str]]
) -> tuple[float, list[float]]:
    """What the program gets done, and how long each list took."""
    taken = []
    expected = {f"stay_{number:07}" for number in range(objects)}
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "churn", str(objects)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if beside == "nothing":
                time.sleep(0.1)
                continue
            if beside == "work":
                sum(range(100_000))
                continue
            start = time.perf_counter()
            assert callable(beside)
            found = beside(process.pid)
            taken.append(time.perf_counter() - start)
            assert expected <= found, "an object that stayed is missing"
            wrong = [name for name in found - expected if not name.startswith("pass_")]
            assert not wrong, wrong
        return float(process.communicate()[0]), taken


def main() -> None:
    objects = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 30
    table = Table("", "loads a second", "lists", "median list", "longest list")
    table.add_row("by itself", f"{loads_per_second(objects, seconds, 'nothing')[0]:.0f}")
    table.add_row("beside a busy program", f"{loads_per_second(objects, seconds, 'work')[0]:.0f}")
    for title, listing in (("while it is listed", command), ("while it is read", names)):
        loads, taken = loads_per_second(objects, seconds, listing)
        times = [f"{1000 * value:.0f} ms" for value in (statistics.median(taken), max(taken))]
        table.add_row(title, f"{loads:.0f}", str(len(taken)), *times)
    Console().print(f"{objects} objects, {seconds:.0f} s each", table)


if __name__ == "__main__":
    main()
