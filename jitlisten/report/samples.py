"""The samples of a perf.data file, as `perf script` tells them, one after the other.

perf has unwound the stacks and found the names. Its text is taken apart here and nowhere else.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from listeners.errors import JITListenerError
from perfmap.names import printable

from ..checks import run
from ..perftool import STARTER, perf_tool

__all__ = ["Call", "Sample", "parse_samples", "read_samples", "recorded_events"]

FIELDS = "comm,pid,tid,time,period,event,ip,sym,symoff,dso"
# python 28900/28900 12026.312099000:    1001001 cpu-clock: 7f3a40 name+0x1f (/usr/lib/libc.so.6)
# The call stands there in recordings without call chains. With them, each call has a line that
# begins with a tab. There may be no time. Names may have newlines.
HEADER = re.compile(r" *(.*?) +(-?\d+)/(-?\d+) +(?:(\d+)\.(\d{9}): +)?(\d+) +(\S+): *")
BEFORE_CALL = re.compile(r"\n\t *(?=[0-9a-f]+ )")
CALL = re.compile(r"([0-9a-f]+) (?:(.*)\+0x([0-9a-f]+)|\[unknown\]) \((.*)\)", re.DOTALL)
WITHOUT_TIME = "do not have TIME attribute"  # perf record --no-timestamp


@dataclass(frozen=True, eq=False)
class Call:
    """A place in a call chain. Equal ones of a recording are the same object."""

    address: int
    """In the file `dso` as perf counts (an offset, if its version maps addresses), or in memory."""
    name: str
    """Empty if perf knows none. Characters that cannot be printed are `?`."""
    offset: int
    """From the start of the function, in bytes."""
    dso: str
    """The file mapped there, `/tmp/perf-PID.map` for anonymous memory, or a name in brackets."""


class Sample(NamedTuple):
    event: str
    comm: str
    pid: int
    tid: int
    time: int
    """In ns, by the clock of the recording; 0 if it has no times."""
    period: int
    """How much of the event it stands for; ns of cpu-clock and task-clock."""
    calls: tuple[Call, ...]
    """Innermost first; one if no call chains were recorded. Empty if perf could not follow the
    chain: then it does not tell the sample's own address either."""


def read_samples(path: str | os.PathLike[str]) -> Iterator[Sample]:
    """The samples of a recording, in the order of time, or as they were recorded if it has none,
    without those of what started the program.

    Raises JITListenerError if there is no perf, or it cannot read the file, or not all of it: then
    after the samples that there are.
    """
    path = Path(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise JITListenerError(f"{path}: {error.strerror}") from error
    try:
        yield from _script(path, FIELDS)
    except JITListenerError as error:
        if WITHOUT_TIME not in str(error):
            raise
        yield from _script(path, FIELDS.replace("time,", ""))


def _script(path: Path, fields: str) -> Iterator[Sample]:
    """The samples as perf tells them with these fields."""
    command = perf_tool(), "script", "-i", str(path), "--no-inline", "--ns", "-F", fields
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(
            command,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
        ) as perf,
    ):
        assert perf.stdout
        with ExitStack() as undo:
            undo.callback(perf.kill)
            lines = io.TextIOWrapper(perf.stdout, "utf-8", "replace", newline="\n")
            yield from (sample for sample in parse_samples(lines) if sample.comm != STARTER)
            undo.pop_all()
        if perf.wait():
            messages.seek(0)
            problem = _problem(messages.read().decode("utf-8", "replace"), perf.returncode)
            raise JITListenerError(f"{path}: perf cannot read it: {problem}")


def recorded_events(path: str | os.PathLike[str]) -> list[str]:
    """The names of the events of a recording, as they were given to perf; none if it cannot tell.

    Raises JITListenerError if there is no perf.
    """
    return run(perf_tool(), "evlist", "-i", str(path)).stdout.splitlines()


def parse_samples(lines: Iterable[str]) -> Iterator[Sample]:
    """The samples in the output of `perf script --ns -F comm,pid,tid,…`, with or without time.

    Raises JITListenerError if that is something else.
    """
    known: dict[str, Call] = {}
    blocks = _blocks(lines)
    before = next(blocks)
    strange = next((line for line in before if line != "\n"), None)
    for block in blocks:
        strange = None
        yield _sample("".join(block), known)
    if strange:
        raise JITListenerError(f"perf script says what is no sample: {printable(strange)[:200]!r}")


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """What comes before the first sample, and the lines of each sample."""
    block: list[str] = []
    for line in lines:
        # Most lines are calls, which cost least this way.
        may_be_header = line[0] != "\t" or line[-2:] != ")\n"
        if may_be_header and HEADER.match(line):
            yield block
            block = []
        block.append(line)
    yield block


def _sample(block: str, known: dict[str, Call]) -> Sample:
    """A sample from its text, which begins with the header; `known` has the calls by their text."""
    header = HEADER.match(block)
    assert header
    comm, pid, tid, seconds, nanoseconds, period, event = header.groups()
    time = int(seconds or 0) * 1_000_000_000 + int(nanoseconds or 0)
    calls = []
    _, *texts = BEFORE_CALL.split("\n\t" + block[header.end() :])
    for text in texts:
        text = text[: text.rfind(")") + 1] or text
        if text not in known:
            known[text] = _call(text)
        calls.append(known[text])
    return Sample(event, printable(comm), int(pid), int(tid), time, int(period), tuple(calls))


def _call(text: str) -> Call:
    match = CALL.fullmatch(text)
    if not match:  # it breaks off
        return Call(0, printable(text.strip()), 0, "[unknown]")
    address, name, offset, dso = match.groups()
    return Call(int(address, 16), printable(name or ""), int(offset or "0", 16), printable(dso))


def _problem(messages: str, status: int) -> str:
    """The line of perf's messages that says what is wrong: the last one that is no warning."""
    if status < 0:  # SIGBUS where a part of the file is missing
        return f"it ended by {signal.Signals(-status).name}: is the file truncated?"
    lines = [printable(line.strip()) for line in messages.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if not line.startswith("WARNING")), "no reason")
