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

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

import gdbjit
from listeners.errors import JITListenerError
from listeners.events import Function, Section

from .outside import Registered, Target, carry_out, chosen_target, target_parser
from .printable import printable

__all__ = ["main"]

UNLIMITED = 100_000  # columns, where nobody's screen ends


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
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(text)
    return value


def _list(target: Target, as_json: bool) -> int:
    rows, problem = _read(target)
    if as_json and (rows or not problem):
        print(_json(target, rows))
    elif rows:
        _console().print(_table(rows))
    if problem:
        print(f"jitlisten list: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _watch(target: Target, as_json: bool, interval: float) -> int:
    """List what there is every `interval` seconds, until it cannot be read any more."""
    console = _console()
    seen: dict[tuple[int, tuple[Function, ...]], float] = {}
    with Live(console=console, auto_refresh=False) as live:
        while True:
            now = time.monotonic()
            rows, problem = _read(target)
            if problem and not rows:
                break
            first = now if seen else -inf
            seen = {key: seen.get(key, first) for row in rows for key in [_key(row)]}
            aged = [replace(row, age=_age(now - seen[_key(row)])) for row in rows]
            if as_json:
                print(_json(target, aged), flush=True)
            elif console.is_terminal:
                newest = _table(aged[-console.height :])  # the rest is not on the screen
                newest.caption = _caption(aged)
                live.update(newest, refresh=True)
            else:
                console.print(_table(aged))
            time.sleep(interval)
    print(f"jitlisten list: {problem}", file=sys.stderr)
    return 1


def _key(row: Row) -> tuple[int, tuple[Function, ...]]:
    """What tells an object from others that are, or were, there."""
    return row.entry, row.functions


def _age(seconds: float) -> float | None:
    return None if seconds == inf else round(seconds, 3)


def _read(target: Target) -> tuple[list[Row], str]:
    """What there is, and what is wrong with the rest."""
    rows: list[Row] = []
    try:
        rows += map(_row, target.registered())
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


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = UNLIMITED
    return console


def _table(rows: Sequence[Row]) -> Table:
    """A line for each function, beside the lines of its object's sections."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("engine", no_wrap=True)
    table.add_column("address", no_wrap=True)
    table.add_column("size", justify="right")
    table.add_column("function", overflow="fold")
    table.add_column("section", no_wrap=True)
    table.add_column("size", justify="right")
    with_age = any(row.age is not None for row in rows)
    if with_age:
        table.add_column("age", justify="right")
    for row in rows:
        functions = row.functions
        cells = [
            row.engine,
            "\n".join(f"{function.address:#x}" for function in functions),
            "\n".join(f"{function.size}" for function in functions),
            printable(row.problem or "")
            or "\n".join(printable(function.demangled) for function in functions),
            "\n".join(printable(section.name) for section in row.sections),
            "\n".join(f"{section.size}" for section in row.sections),
        ]
        if with_age:
            cells.append("" if row.age is None else f"{row.age:.0f} s")
        table.add_row(*cells)
    table.caption = _caption(rows)
    table.caption_justify = "left"
    return table


def _caption(rows: Sequence[Row]) -> str:
    code = sum(function.size for row in rows for function in row.functions)
    return f"{len(rows)} objects, {code} bytes of functions"
