"""`perf inject -j` at the end of a recording: the names that are in jitdumps come into it."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path

from listeners.errors import JITListenerError

from .checks import first_line
from .perftool import messages

__all__ = ["name_dumped"]

DUMP_NAME = re.compile(rb"/[^\0]*/jit-\d+\.dump(?=\0)")


def name_dumped(perf: str, data: Path) -> None:
    """Run `perf inject -j` if a dump is in the recording; what it makes takes the place of it."""
    with data.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as recording:
        found = {Path(os.fsdecode(name)) for name in DUMP_NAME.findall(recording)}
    dumps = {path: path.stat().st_size for path in found if path.exists()}
    if not dumps:
        return
    injected = data.with_name(f"{data.name}.injected")
    command = [perf, "inject", "--jit", "-f", f"--input={data}", f"--output={injected}"]
    try:
        with messages() as said:
            with subprocess.Popen(command, stdout=said, stderr=said) as process:
                _show_progress(process, dumps)
            said.seek(0)
            if process.returncode:
                problem = first_line(said.read()) or f"status {process.returncode}"
                raise JITListenerError(f"perf inject: {problem}; {data} is as perf recorded it")
        injected.replace(data)
    finally:
        injected.unlink(missing_ok=True)


def _show_progress(process: subprocess.Popen[bytes], dumps: dict[Path, int]) -> None:
    """A bar of how much of the dumps perf has read, until it ends."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("perf inject", total=sum(dumps.values()))
        done: dict[Path, int] = {}
        while process.poll() is None:
            done |= _read_by(process.pid, dumps)
            progress.update(task, completed=sum(done.values()))
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)


def _read_by(pid: int, files: dict[Path, int]) -> dict[Path, int]:
    """How many bytes a process has read of those files that it has open."""
    found = {}
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if (path := descriptor.readlink()) in files:
                information = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
                found[path] = int(information.split()[1])
    return found
