"""The source of a JIT function with the share of each line, and the instructions of the hot ones.

Where there is no source, the machine code.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import NamedTuple

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from listeners.errors import JITListenerError

from .codefiles import CodeFile, Function
from .locations import Frame, Kind, Location, Locator
from .looks import STYLES, base_name, console, share, source_lines
from .profile import Profile, Weight

__all__ = ["show_source"]

GAP = 6  # lines without code that are shown between lines with code
HOT = 0.1  # of the function's samples, for the instructions of a line to be shown
WARM = 0.01  # of them, for one of those instructions
ARGUMENTS = re.compile(r"(?<=[^:\s])\(.*\)( const)?$")
QUALIFIERS = re.compile(r".*(::|\.)(?=.)")


_ByLine = dict[tuple[str, int], Weight]
_ByAddress = dict[tuple[str, int], Weight]


class _Code(NamedTuple):
    """The machine code of a function, of which there may be several versions."""

    file: CodeFile
    dso: str
    function: Function


def show_source(profile: Profile, name: str, locator: Locator) -> None:
    """Print the source of the JIT functions called `name`, which may go without its qualifiers.

    Raises JITListenerError if there is none, or nothing is known of it but the name.
    """
    functions = _find(profile, name)
    out = console()
    out.print(Text(profile.heading))
    for frame, weight in functions:
        own = f"{100 * weight.self / profile.weight:.1f} % self"
        total = f"{100 * weight.total / profile.weight:.1f} % total"
        title = Text.assemble((frame.name, STYLES[Kind.JIT]), f": {own}, {total}\n")
        codes = _codes(profile, frame, locator)
        if not codes:
            raise JITListenerError(
                f"{frame.name}: there is neither source nor code of it, only the name;"
                " record with code images, or inject a jitdump: `jitlisten record`"
            )
        out.print()
        out.print(title, end="")
        _show_function(out, profile, frame, codes, weight)


def _find(profile: Profile, name: str) -> list[tuple[Frame, Weight]]:
    """The functions meant, the hottest first; of several, those with samples of their own."""
    weights = profile.by(lambda location: location.function)
    functions = {frame: w for frame, w in weights.items() if frame.kind is Kind.JIT}
    # by all names that the code of a function goes by, those of what is inlined there, too
    names = {
        (location.frame.name, location.function)
        for _, location in profile.stacks
        if location.function in functions
    }
    found = {frame for known, frame in names if known == name}
    found = found or {frame for known, frame in names if name in _short(known)}
    if not found:
        known = {short for full, _ in names for short in (full, *_short(full))}
        near = get_close_matches(name, known, 3) or [k for k in sorted(known) if name in k][:3]
        hint = f"; there is {', '.join(map(repr, near))}" if near else ""
        raise JITListenerError(f"no sample is in a JIT function called {name!r}{hint}")
    shown = [frame for frame in found if functions[frame].self] or found
    return [(frame, functions[frame]) for frame in sorted(shown, key=lambda f: -functions[f].self)]


def _short(name: str) -> tuple[str, str]:
    """The name without its arguments, and that without its qualifiers."""
    short = ARGUMENTS.sub("", name)
    return short, QUALIFIERS.sub("", short)


def _codes(profile: Profile, frame: Frame, locator: Locator) -> list[_Code]:
    places = {
        (location.dso, location.address)
        for _, location in profile.stacks
        if location.function == frame
    }
    codes = {}
    for dso, address in places:
        file = locator.code_file(dso)
        if file is None:
            continue
        for function in file.functions:
            if function.address <= address < function.address + function.size:
                codes[dso, function] = _Code(file, dso, function)
    return list(codes.values())


def _show_function(
    out: Console, profile: Profile, frame: Frame, codes: list[_Code], weight: Weight
) -> None:
    def line(location: Location) -> tuple[str, int] | None:
        return (location.file, location.line) if location.function == frame else None

    lines = profile.by(line)
    addresses = profile.by(
        lambda location: (location.dso, location.address) if location.function == frame else None
    )
    listed = _listed(codes)
    if not any(source_lines(file) for file in listed):
        for code in codes:
            _show_code(out, code, addresses, profile.weight)
        return
    instructions = _hot_instructions(codes, lines, addresses, weight)
    without = lines.pop(("", 0), Weight())
    for file, numbers in listed.items():
        out.print(Text(file, "dim"))
        texts = _highlighted(file)
        before = None
        for number in numbers:
            if before is not None and number > before + 1:
                out.print(Text(f"{'⋮':>28}", "dim"))
            before = number
            found = lines.get((file, number), Weight())
            source = texts[number - 1] if number <= len(texts) else Text()
            _print(out, found, profile.weight, Text.assemble((f"{number:6}  ", "dim"), source))
            for address, own, text in instructions.get((file, number), ()):
                _print(out, own, profile.weight, Text(f"{'':10}{address:x}  {text}", "cyan"))
    if without.self:
        _print(out, without, profile.weight, Text("     –  code without a source line", "dim"))


def _listed(codes: list[_Code]) -> dict[str, list[int]]:
    """The lines to show, by file: those that have code, and what is between close ones."""
    with_code: dict[str, set[int]] = {}
    for file, _, function in codes:
        for line in file.lines:
            if line.line and function.address <= line.address < function.address + function.size:
                with_code.setdefault(line.file, set()).add(line.line)
    listed = {}
    for name, numbers in with_code.items():
        shown: list[int] = []
        for number in sorted(numbers):
            if shown and number - shown[-1] <= GAP:
                shown += range(shown[-1] + 1, number)
            shown.append(number)
        listed[name] = shown
    return listed


def _hot_instructions(
    codes: list[_Code], lines: _ByLine, addresses: _ByAddress, weight: Weight
) -> dict[tuple[str, int], list[tuple[int, Weight, str]]]:
    """The hot instructions of each hot line: address, weight, text."""
    hot = {line for line, own in lines.items() if own.self >= max(1, HOT * weight.self)}
    found: dict[tuple[str, int], list[tuple[int, Weight, str]]] = {}
    for file, dso, function in codes if hot else ():
        for address, text in file.instructions(function):
            own = addresses.get((dso, address), Weight())
            line = file.places(address)[-1][1:]
            if line in hot and own.self >= max(1, WARM * weight.self):
                found.setdefault(line, []).append((address, own, text))
    return found


def _show_code(out: Console, code: _Code, addresses: _ByAddress, whole: int) -> None:
    out.print(Text(code.dso, "dim"))
    for address, text in code.file.instructions(code.function):
        place = code.file.places(address)[-1]
        line = f"{base_name(place.file)}:{place.line}" if place.line else ""
        own = addresses.get((code.dso, address), Weight())
        row = Text.assemble(f"  {address:x}  ", (f"{text:<50} ", "cyan"), (line, "dim"))
        _print(out, own, whole, row)


def _print(out: Console, weight: Weight, whole: int, text: Text) -> None:
    figures = [
        share(part, whole) if part else Text(" " * 7) for part in (weight.self, weight.total)
    ]
    row = Text("  ").join([*figures, text])
    row.rstrip()
    out.print(row, no_wrap=True, overflow="ellipsis")


def _highlighted(file: str) -> list[Text]:
    lines = source_lines(file)
    text = "\n".join(lines)
    syntax = Syntax(text, Syntax.guess_lexer(file, text), theme="ansi_dark")
    highlighted = syntax.highlight(text).split("\n")
    return [*highlighted, *(Text(line) for line in lines[len(highlighted) :])]
