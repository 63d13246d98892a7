"""Recordings by the real perf, and what it reports of them."""

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools import PROGRAMS, perf_symbols, run, tool

# By the CPU's time, so that a busy machine does not matter.
SAMPLING = ("-q", "--buildid-mmap", "-k", "mono", "-e", "cpu-clock:u", "-c", "1000000")  # one a ms

ROOT = PROGRAMS.parents[1]
PATH = ":".join(map(str, (ROOT, ROOT / "examples", PROGRAMS)))


@dataclass
class Recording:
    """A `perf.data`, and what its program has said."""

    data: Path
    said: str = ""
    numbers: dict[str, str] = field(default_factory=dict)
    """Of lines `NAME NUMBER` that the program has said, the number by name."""

    def shares(self) -> dict[str, float]:
        """The functions, and the share of the samples that each has, in percent."""
        return perf_symbols(self.data)

    def rows(self, fields: str) -> list[tuple[float, ...]]:
        """A report's rows since the program has said `started`: share and fields."""
        options = (
            "--no-children",
            "--no-inline",
            "-g",
            "none",
            "-t",
            ";",
            "--time",
            f"{self.started},",
        )
        text = self._perf("report", "--stdio", "-F", f"overhead,{fields}", *options)
        found = re.findall(r"^ *([\d.]+)% *;(.*)$", text, re.MULTILINE)
        return [
            (float(share), *(re.sub(r"^\[.\] ", "", part.strip()) for part in rest.split(";")))
            for share, rest in found
        ]

    def chains(self, innermost: str = "") -> list[list[str]]:
        """The call chains of the samples in the function `innermost`, which is first in each."""
        text = self._perf("script", "--no-inline", "--time", f"{self.started},", "-F", "ip,sym")
        every = (re.findall(r"^\s+[0-9a-f]+ (.*)", one, re.MULTILINE) for one in text.split("\n\n"))
        return [chain for chain in every if chain and innermost in chain[0]]

    def annotation(self, symbol: str) -> str:
        return self._perf("annotate", "--stdio", "-s", symbol)

    @property
    def started(self) -> str:
        return self.numbers.get("started", "0")

    def _perf(self, command: str, *options: str) -> str:
        return run(tool("perf"), command, "-i", str(self.data), *options)


def record(
    directory: Path,
    *program: str,
    options: tuple[str, ...] = (),
    inject: bool = False,
    status: int | None = 0,
) -> Recording:
    """A recording of a Python program; its images and dumps are in `directory`, as it is.

    With `inject`, it is what `perf inject -j` makes of it.
    """
    data = directory / "perf.data"
    said = run(
        *(tool("perf"), "record", *SAMPLING, *options, "-o", str(data), "--", *program),
        env={**os.environ, "JITDUMPDIR": str(directory), "PYTHONPATH": PATH},
        status=status,
    )
    if inject:
        raw, data = data, directory / "perf.jit.data"
        run(tool("perf"), "inject", "-j", "-i", str(raw), "-o", str(data))
    return Recording(data, said, dict(re.findall(r"^(\w+) ([\d.]+)$", said, re.MULTILINE)))


def profile(
    directory: Path, way: str, engine: str, scene: str, *options: str, **settings: object
) -> Recording:
    """A recording of `programs/profiled.py`; `settings` are those of `record`."""
    program = (f"{PROGRAMS}/profiled.py", way, engine, scene, *options)
    return record(directory, sys.executable, *program, inject=way == "jitdump", **settings)


def container(directory: Path, *command: str) -> tuple[str, ...]:
    """A command in pid and mount namespaces of its own, with an empty /tmp but for `directory`
    and this project."""
    hidden = directory / "outside"
    hidden.mkdir(exist_ok=True)
    script = f"""
        set -e
        mount --rbind / {hidden}
        cd {hidden}
        mount -t tmpfs none /tmp
        for place in {directory} {ROOT}; do
            mkdir -p $place
            mount --bind ./$place $place
        done
        exec "$@"
    """
    unshare = (tool("unshare"), "--mount", "--pid", "--mount-proc", "--fork")
    return (*unshare, "sh", "-c", script, "sh", *command)


def clean(directory: Path) -> str:
    """What `jitlisten clean` says of `directory`. It has a /tmp of its own: in the real one is what
    others may still want to report."""
    command = container(directory, sys.executable, "-m", "jitlisten", "clean")
    return run(*command, env={**os.environ, "JITDUMPDIR": str(directory), "PYTHONPATH": PATH})
