"""`jitlisten report`: where a recording of perf spent its time, JIT code by source line.

A package, each module of which can be read alone: `samples` reads perf.data through perf,
`locations` and `codefiles` find what kind of code it is and its source, `profile` is the model; the
others are the views.
"""

from __future__ import annotations

import io
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from listeners.errors import JITListenerError

from ..command import carry_out
from .locations import Locator
from .profile import Profile, collect
from .samples import read_samples, recorded_events

__all__ = ["main"]

FORMATS = ("collapsed", "speedscope", "firefox")
NOTABLE = 0.05  # of all samples, in JIT code without names, for a hint


def main(arguments: list[str]) -> int:
    """Show what the command line `arguments`, those after `jitlisten report`, ask for.

    Gives the exit status: 1 if something is wrong, even if the rest could be shown.
    """
    options = _parse(arguments)
    return carry_out("report", lambda: _report(options))


def _report(options: Namespace) -> int:
    locator = Locator()
    profiles: dict[str, Profile] = {}
    problems: list[str] = []
    hints: list[str] = []
    try:
        try:
            collect(read_samples(options.data), locator, profiles)
        except JITListenerError as error:
            if not profiles:
                raise
            problems.append(f"{error}; this is what comes before")
        profile = _chosen(profiles, options)
        if profile.nameless >= NOTABLE and not locator.missing:
            hints.append(
                f"{profile.nameless:.0%} are in JIT code without names: record the program with"
                " `jitlisten record`, or do `jitlisten map PID` while it runs"
            )
        _show(profile, locator, options)
        sys.stdout.flush()
    except JITListenerError as error:
        problems.append(str(error))
    if locator.missing:
        files = "; ".join(locator.missing[:3]) + ("; …" if len(locator.missing) > 3 else "")
        problems.append(
            "names and lines of JIT code are gone with its files, which `jitlisten clean` or"
            f" somebody else has removed; record again: {files}"
        )
    for line in problems + locator.problems + hints:
        print("jitlisten report:", " ".join(line.split()), file=sys.stderr)
    return 1 if problems or locator.problems else 0


def _parse(arguments: list[str]) -> Namespace:
    parser = ArgumentParser(
        prog="jitlisten report",
        description="Show where a recording of perf spent its time: the hottest JIT functions and"
        " their hottest source lines, and the shares of JIT, Python, native and kernel code.",
        allow_abbrev=False,
    )
    parser.add_argument("data", nargs="?", default="perf.data", help="default: perf.data")
    parser.add_argument("--event", help="which one, if several were recorded; default: the first")
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--tree", action="store_true", help="show who called whom")
    views.add_argument(
        "--annotate", metavar="NAME", help="show the source of a JIT function, with shares by line"
    )
    views.add_argument(
        "--format", choices=FORMATS, help="write it for flamegraph.pl, speedscope.app or"
        " profiler.firefox.com",
    )  # fmt: skip
    views.add_argument("--svg", metavar="FILE", help="write a flame graph for any browser")
    parser.add_argument("-o", "--output", metavar="FILE", help="where --format writes to")
    options = parser.parse_args(arguments)
    if options.output is not None and not options.format:
        parser.error("-o goes with --format")
    return options


def _chosen(profiles: dict[str, Profile], options: Namespace) -> Profile:
    if not profiles:
        raise JITListenerError(f"{options.data}: it has no samples")
    if options.event is None:
        # The samples are in the order of time.
        order = recorded_events(options.data) if len(profiles) > 1 else []
        return next(profiles[event] for event in [*order, *profiles] if event in profiles)
    if options.event not in profiles:
        raise JITListenerError(
            f"{options.data}: no samples of {options.event!r}, only of {', '.join(profiles)}"
        )
    return profiles[options.event]


def _show(profile: Profile, locator: Locator, options: Namespace) -> None:
    if options.svg is not None:
        from .flamegraph import flame_graph

        return _write(flame_graph(profile), options.svg)
    if options.format:
        from . import formats

        text = getattr(formats, options.format)(profile)
        if options.output is not None:
            return _write(text, options.output)
        if isinstance(sys.stdout, io.TextIOWrapper):  # viewers want this, whatever a terminal does
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        sys.stdout.write(text)
        return None
    if options.annotate is not None:
        from .annotate import show_source

        return show_source(profile, options.annotate, locator)
    if options.tree:
        from .tree import show_tree

        return show_tree(profile)
    from .table import show_table

    return show_table(profile)


def _write(text: str, path: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise JITListenerError(f"cannot write {path!r}: {error.strerror}") from error
