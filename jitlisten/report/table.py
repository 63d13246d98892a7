"""The hottest JIT functions and their hottest source lines, and the shares of all code."""

from __future__ import annotations

from typing import TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from .locations import Frame, Kind
from .looks import STYLES, base_name, console, kinds, share, source_line
from .profile import Profile, Weight

__all__ = ["show_table"]

FUNCTIONS, LINES = 20, 5  # as many are shown
FEWEST = 10  # functions that are, however cold
LEAST = 0.005  # of all samples, for another row

Key = TypeVar("Key")


def show_table(profile: Profile) -> None:
    """Print it."""
    out = console()
    out.print(Text(profile.heading))
    out.print()
    out.print(kinds(profile))
    functions = _hottest(
        {
            frame: weight
            for frame, weight in profile.by(lambda location: location.function).items()
            if frame.kind is Kind.JIT
        }
    )
    if not functions:
        out.print("There is no sample in JIT code: was it recorded with `jitlisten record`?")
        return
    shown = functions[:FEWEST] + [
        (frame, weight)
        for frame, weight in functions[FEWEST:FUNCTIONS]
        if weight.total >= LEAST * profile.weight
    ]
    out.print(_table(profile, shown))
    if rest := functions[len(shown) :]:
        own = sum(weight.self for _, weight in rest)
        out.print(f"{len(rest)} more JIT functions: {100 * own / profile.weight:.1f} % self")


def _table(profile: Profile, functions: list[tuple[Frame, Weight]]) -> Table:
    lines: dict[Frame, dict[tuple[str, int], Weight]] = {}
    for (frame, file, line), weight in profile.by(
        lambda location: (location.function, location.file, location.line)
    ).items():
        if frame.file:
            lines.setdefault(frame, {})[file, line] = weight

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("self", "total", "samples"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("JIT functions and their hottest lines", overflow="fold")
    for frame, weight in functions:
        name = Text(frame.name, STYLES[Kind.JIT])
        table.add_row(
            *_figures(weight, profile.weight), name.append(f"  {frame.file}", "not bold dim")
        )
        for (file, line), of_line in _hottest(lines.get(frame, {}))[:LINES]:
            if of_line.self >= LEAST * profile.weight:
                if not line:
                    text = Text("    –  code without a source line", "dim")
                else:
                    place = f"{line:5}" if file == frame.file else f"{base_name(file)}:{line}"
                    text = Text.assemble((place, "dim"), "  ", source_line(file, line))
                text.no_wrap, text.overflow = True, "ellipsis"
                table.add_row(*_figures(of_line, profile.weight), text)
        table.add_section()
    return table


def _figures(weight: Weight, whole: int) -> tuple[Text, Text, Text]:
    return share(weight.self, whole), share(weight.total, whole), Text(f"{weight.samples:,}")


def _hottest(weights: dict[Key, Weight]) -> list[tuple[Key, Weight]]:
    return sorted(weights.items(), key=lambda item: (-item[1].self, -item[1].total))
