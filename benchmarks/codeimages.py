"""Code images under load, for as long as one likes.

    python benchmarks/codeimages.py [CALLS]

On each engine 4 threads make CALLS (2,000,000) calls of a function and check what it gives, while
others load and unload code on neighbouring pages and map images over the running code. The tests
do the same for a moment.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

PROGRAM = Path(__file__).resolve().parents[1] / "tests" / "programs" / "stress.py"
PATH = ":".join(str(PROGRAM.parents[2] / part) for part in ("", "examples"))


def main(calls: int) -> None:
    table = Table("engine", "right calls", "images mapped meanwhile", "seconds")
    for linker in ("mcjit", "rtdyld", "jitlink"):
        with tempfile.TemporaryDirectory() as directory:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, str(PROGRAM), linker, str(calls)],
                env={"JITDUMPDIR": directory, "PYTHONPATH": PATH},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            seconds = time.perf_counter() - start
        right, mapped = map(int, re.findall(r"\d+", done.stdout))
        table.add_row(linker, f"{right:,}", f"{mapped:,}", f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000)
