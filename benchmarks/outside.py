"""What it takes to look into a process from outside, and what that costs the process.

    python benchmarks/outside.py [OBJECTS] [SECONDS]

A program of 1,000 objects that is stopped is looked at first: what it takes from this process,
already started, and from the command. Then a program holds OBJECTS (10,000) objects and loads and
unloads others as fast as it can, for SECONDS (30) by itself, beside something that is busy and does
not look, while `jitlisten list --json` runs again and again, and while one process does nothing but
read it. Every list is checked.
"""

import json
import os
import signal
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

STILL = 1000
PROGRAM = Path(__file__).resolve().parents[1] / "tests" / "programs" / "unaware.py"


def names(pid: int) -> set[str]:
    """Every function of the process."""
    return {
        function.name
        for descriptor in gdbjit.descriptors(pid)
        for _, image in descriptor.images()
        for function in read_functions(read_symfile(image), None)
    }


def images(pid: int) -> None:
    """Every image of the process, not looked into."""
    assert sum(1 for found in gdbjit.descriptors(pid) for _ in found.images()) >= STILL


def listed(pid: int, *options: str) -> bytes:
    """What the command prints."""
    line = (sys.executable, "-m", "jitlisten", "list", *options, str(pid))
    return subprocess.run(line, check=True, capture_output=True).stdout


def command(pid: int) -> set[str]:
    """Every function of the process, from the command."""
    objects = json.loads(listed(pid, "--json"))["objects"]
    return {function["name"] for found in objects for function in found["functions"]}


def churning(objects: int) -> subprocess.Popen[str]:
    """A program that holds so many objects while others come and go."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "churn", str(objects)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def still() -> Table:
    """How long it takes to look at a program that does not change meanwhile."""
    table = Table("", "median")
    with churning(STILL) as process:
        os.kill(process.pid, signal.SIGSTOP)
        looks: dict[str, Callable[[int], object]] = {
            "where its descriptors are": gdbjit.descriptors,
            "and their images": images,
            "and their functions": names,
            "jitlisten list --json": lambda pid: listed(pid, "--json"),
            "jitlisten list": listed,
        }
        for title, look in looks.items():
            seconds = []
            for _ in range(9):
                start = time.perf_counter()
                look(process.pid)
                seconds.append(time.perf_counter() - start)
            table.add_row(title, f"{1000 * statistics.median(seconds):.1f} ms")
        os.kill(process.pid, signal.SIGCONT)
        process.communicate()
    return table


def loads_per_second(
    objects: int, seconds: float, beside: str | Callable[[int], set[str]]
) -> tuple[float, list[float]]:
    """What the program gets done, and how long each list took."""
    taken = []
    expected = {f"stay_{number:07}" for number in range(objects)}
    with churning(objects) as process:
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
    Console().print(f"{STILL} objects, stopped", still())
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
