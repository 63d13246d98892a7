"""How the views in the terminal look: colours by kind of code, shares, source text."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.text import Text

from .locations import Kind
from .profile import Profile

__all__ = [
    "STYLES",
    "base_name",
    "console",
    "kinds",
    "share",
    "source_line",
    "source_lines",
]

STYLES = {
    Kind.JIT: "bold dark_orange",
    Kind.PYTHON: "dodger_blue1",
    Kind.NATIVE: "",
    Kind.KERNEL: "medium_orchid",
}
BAR, WIDE = 40, 160  # characters


def console() -> Console:
    """Where views are printed: as wide as the terminal or $COLUMNS; in a file, as `WIDE`."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if narrow else WIDE)


def share(weight: int, whole: int) -> Text:
    """A percentage; the higher, the more it stands out."""
    percent = 100 * weight / whole
    style = "bold red" if percent >= 10 else "yellow" if percent >= 2 else ""
    return Text(f"{percent:5.1f} %", style if weight else "dim")


def kinds(profile: Profile) -> Text:
    """The share of each kind of code, as bars."""
    text = Text()
    for kind, weight in profile.by_kind().items():
        bar = "█" * round(BAR * weight / profile.weight)
        text.append(f"  {kind.value:7}")
        text.append(f"{100 * weight / profile.weight:5.1f} %  ")
        text.append(bar + "\n", STYLES[kind])
    return text


@cache
def source_lines(file: str) -> tuple[str, ...]:
    """The lines of a source file; none if it cannot be read."""
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ()
    return tuple(
        "".join(c if c.isprintable() else "?" for c in line.expandtabs()).rstrip()
        for line in text.split("\n")  # as compilers and debuggers count lines
    )


def source_line(file: str, line: int) -> str:
    """The text of a line, counted from 1; empty if it cannot be read."""
    lines = source_lines(file)
    return lines[line - 1] if 0 < line <= len(lines) else ""


def base_name(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]
