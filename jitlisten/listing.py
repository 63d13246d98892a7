"""`jitlisten list`: the JIT'd code of a process or of a core file, by engine and object.

With `--json`, one object on stdout; addresses are numbers:

    {"process": 4711,       # or null
     "core": null,          # or the file
     "objects": [{
        "engine":           # name of the file that keeps the list which the object is in
        "library":          # its path
        "entry":            # address of its jit_code_entry
        "image_size":       # bytes of what is registered
        "age":              # seconds since --watch first saw it, null if it was there before
        "problem":          # why it cannot be read, else null
        "functions": [{"name":, "demangled":, "address":, "size":}, …],
        "sections": [{"name":, "address":, "size":, "flags":, "index":}, …]
     }, …]}
"""

from __future__ import annotations

import errno
import json
import os
import select
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from math import inf

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.live import Live
from rich.text import Text

import gdbjit
from listeners.errors import JITListenerError
from listeners.events import Function, Section
from perfmap.names import printable

from .command import carry_out
from .outside import NothingLoaded, Registered, Target, chosen_target, target_parser

__all__ = ["main"]

TITLES = "engine", "age", "section", "size", "address", "size", "function"
NUMBERS = "age", "size"
WIDEST = 40  # characters that others are padded to; what is longer is whole
NARROWEST = 16  # characters of a line of a name, however narrow the terminal is
UNLIMITED = 1 << 30  # columns, where nobody's screen ends
LONGEST = 200  # characters of the rule
MOMENT = 1  # second


@dataclass(frozen=True)
class Row:
    """An object of the list, without its bytes."""

    engine: str
    library: str
    entry: int
    image_size: int
    age: float | None
    problem: str | None
    functions: tuple[Function, ...]
    sections: tuple[Section, ...]


def main(arguments: list[str]) -> int:
    """List what the command line asks for; gives the exit status."""
    parser = target_parser("list", "List JIT'd code by object: engine, functions, sections.")
    parser.add_argument("--json", action="store_true", help="write JSON, not a table")
    parser.add_argument(
        "--watch",
        nargs="?",
        const=1.0,
        type=_seconds,
        metavar="SECONDS",
        help="list it again and again",
    )
    options = parser.parse_args(arguments)
    target = chosen_target(parser, options.pid, options.core)
    if options.watch is None:
        return carry_out("list", lambda: _list(target, options.json))
    return carry_out("list", lambda: _watch(target, options.json, options.watch))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _list(target: Target, as_json: bool) -> int:
    rows, problem = _read(target)
    if as_json and (rows or not problem):
        print(_json(target, rows))
    elif rows:
        _show(Console(), rows)
    if problem:
        print(f"jitlisten list: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _watch(target: Target, as_json: bool, interval: float) -> int:
    """List what there is every `interval` seconds, until the process ends.

    That is no error, once there was a listing.
    """
    console = Console()
    seen: dict[tuple[int, tuple[Function, ...]], float] = {}
    looked = False
    with Live(console=console, auto_refresh=False) as live:
        while True:
            now = time.monotonic()
            try:
                rows, problem = _read(target)
            except NothingLoaded:  # yet, or any more
                if target.core is not None:
                    raise
                rows, problem = [], ""
            if problem and not rows:
                if looked and target.pid is not None and _ends(target.pid):
                    return 0
                break
            first = now if looked else -inf
            looked = True
            seen = {key: seen.get(key, first) for row in rows for key in [_key(row)]}
            aged = [replace(row, age=_age(now - seen[_key(row)])) for row in rows]
            if as_json:
                print(_json(target, aged), flush=True)
            elif console.is_terminal:
                live.update(_screen(aged, console), refresh=True)
            else:
                _show(console, aged)
            time.sleep(interval)
    print(f"jitlisten list: {problem}", file=sys.stderr)
    return 1


def _ends(pid: int) -> bool:
    """Whether a process has ended, or does so in a moment: its memory is gone a little earlier."""
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        return error.errno == errno.ESRCH
    try:
        return bool(select.select([process], [], [], MOMENT)[0])
    finally:
        os.close(process)


def _show(console: Console, rows: Sequence[Row]) -> None:
    header, *lines = _table(rows, console)
    console.print(Text(header, "bold"), soft_wrap=True)
    print(*lines, "", _caption(rows), sep="\n", flush=True)


def _screen(rows: Sequence[Row], console: Console) -> Text:
    """The newest rows, as many as a terminal has lines for."""
    header, rule, *lines = _table(rows[-console.height :], console)
    room = max(console.height - 4, 1)
    below = "\n".join([rule, *lines[-room:], "", _caption(rows)])
    return Text.assemble((header, "bold"), "\n", below, no_wrap=True, overflow="ellipsis")


def _key(row: Row) -> tuple[int, tuple[Function, ...]]:
    """What tells an object from others that are, or were, there."""
    return row.entry, row.functions


def _age(seconds: float) -> float | None:
    return None if seconds == inf else round(seconds, 3)


def _read(target: Target) -> tuple[list[Row], str]:
    """What there is, and what is wrong with the rest. Raises NothingLoaded."""
    rows: list[Row] = []
    try:
        rows += map(_row, target.registered())
    except NothingLoaded:
        raise
    except gdbjit.GDBJITError as error:
        return rows, str(error)
    unreadable = sum(row.problem is not None for row in rows)
    return rows, f"{target}: {unreadable} objects cannot be read" if unreadable else ""


def _row(found: Registered) -> Row:
    functions: tuple[Function, ...] = ()
    sections: tuple[Section, ...] = ()
    problem = None
    try:
        functions, sections = found.obj.functions, found.obj.sections
    except JITListenerError as error:
        problem = str(error)
    return Row(
        found.engine, found.library, found.entry, found.image_size,
        None, problem, functions, sections,
    )  # fmt: skip


def _json(target: Target, rows: Sequence[Row]) -> str:
    objects = [
        {
            **vars(row),
            "functions": [
                {"name": f.name, "demangled": f.demangled, "address": f.address, "size": f.size}
                for f in row.functions
            ],
            "sections": [asdict(section) for section in row.sections],
        }
        for row in rows
    ]
    return json.dumps({"process": target.pid, "core": target.core, "objects": objects})


def _table(rows: Sequence[Row], console: Console) -> list[str]:
    """The header, a rule, and a line for each function beside the lines of its object's sections.

    In a terminal the names of functions are folded; elsewhere nothing ends a line, and names are
    last, so that a long one does not widen all. Not by rich: its tables of thousands take seconds.
    """
    columns = [*zip(TITLES, *(line for row in rows for line in _lines(row)), strict=True)]
    if all(row.age is None for row in rows):
        del columns[TITLES.index("age")]
    names = columns.pop()
    padded = [_padded(column) for column in columns]
    prefixes = [" " + "  ".join(cells) + "  " for cells in zip(*padded, strict=True)]
    indent = len(prefixes[0])
    room = max(console.width - indent, NARROWEST) if console.is_terminal else UNLIMITED
    lines = []
    for prefix, name in zip(prefixes, names, strict=True):
        first, *others = chop_cells(name, room) or [""]
        lines += [(prefix + first).rstrip(), *(" " * indent + other for other in others)]
    longest = max(map(cell_len, lines))
    rule = ("-" if console.options.ascii_only else "─") * min(longest + 1, indent + room, LONGEST)
    return [lines[0], rule, *lines[1:]]


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    """Cells of the columns `TITLES`."""
    functions = row.functions
    return zip_longest(
        [printable(row.engine)],
        [] if row.age is None else [f"{row.age:.0f} s"],
        [printable(section.name) for section in row.sections],
        [f"{section.size}" for section in row.sections],
        [f"{function.address:#x}" for function in functions],
        [f"{function.size}" for function in functions],
        [printable(function.demangled) for function in functions] or [printable(row.problem or "")],
        fillvalue="",
    )


def _padded(column: Sequence[str]) -> list[str]:
    """The cells at one width: numbers end together, as their title does."""
    widths = [*map(cell_len, column)]
    wide = min(max(widths), WIDEST)
    blanks = [" " * (wide - width) for width in widths]
    if column[0] in NUMBERS:
        return [blank + cell for blank, cell in zip(blanks, column, strict=True)]
    return [cell + blank for blank, cell in zip(blanks, column, strict=True)]


def _caption(rows: Sequence[Row]) -> str:
    code = sum(function.size for row in rows for function in row.functions)
    objects = "1 object" if len(rows) == 1 else f"{len(rows)} objects"
    return f"{objects}, {code} bytes of functions"
