"""The options of `perf record`: those that the user gives, and those chosen for the rest."""

from __future__ import annotations

import os
import re

from . import perfchecks

__all__ = ["TARGETS", "options_chosen", "options_given", "split"]

SHORT_WITH_VALUE = "CDFGcejkmoprtu"
"""Short options of `perf record` that take a value, which may be the next word."""
LONG = {
    "output": "o",
    "event": "e",
    "count": "c",
    "freq": "F",
    "clockid": "k",
    "call-graph": "g",
    "no-call-graph": "g",
    "all-cpus": "a",
    "cpu": "C",
    "pid": "p",
    "tid": "t",
    "uid": "u",
}
TARGETS = set("aCptu")
"""Options that say what is recorded other than the program."""
BUILD_IDS_OF_MAPPINGS = (5, 12)  # since that Linux


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """perf's options, and the command line of the program.

    Whether the word after an option is its value is known to perf alone: hence the `--`.
    """
    if arguments and not arguments[0].startswith("-"):
        return [], arguments
    if "--" not in arguments:
        return arguments, []
    index = arguments.index("--")
    return arguments[:index], arguments[index + 1 :]


def options_given(options: list[str]) -> dict[str, str]:
    """Which options of perf are given, by their letter, and the values of those that have one."""
    found = {}
    words = iter(options)
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            # perf takes any unique beginning. Of one that is not unique among its options it makes
            # an error, so it does not matter which of those here it is taken for.
            letter = next((LONG[known] for known in LONG if known.startswith(name)), "")
            if letter in SHORT_WITH_VALUE and letter and not equals:
                value = next(words, "")
            found[letter] = value
        elif word.startswith("-"):
            for index, letter in enumerate(word[1:], 2):
                found[letter] = ""
                if letter in SHORT_WITH_VALUE:
                    found[letter] = word[index:] or next(words, "")
                    break
    return found


def options_chosen(given: dict[str, str], pid: int) -> list[str]:
    """The options that the user has left to us."""
    # Build-ids come with the mappings. Else perf reads every file for its own when the program has
    # ended, and perf inject copies each function to ~/.debug. Where whole processors are recorded,
    # the kernel would mark the mappings of everybody else's recordings so, too, whose perf aborts.
    whole_processors = given.keys() & set("aC")
    with_mappings = _linux() >= BUILD_IDS_OF_MAPPINGS and not whole_processors
    options = ["--buildid-mmap" if with_mappings else "--no-buildid-cache"]
    # For what the kernel loads perf has a thread, which takes up to a second to end.
    options.append("--no-bpf-event")
    if "k" not in given:
        options.append("--clockid=mono")  # a jitdump's
    if "e" not in given:
        event = "cycles" if perfchecks.counters().state == "ok" else "cpu-clock"
        options.append(f"--event={event}" + ("" if perfchecks.may_sample_kernel() else ":u"))
    if not given.keys() & set("Fc"):
        options.append("--freq=999")
    if "g" not in given:
        # Python is built without frame pointers, and its stacks are deep.
        options.append("--call-graph=dwarf,16384")
    if not given.keys() & TARGETS:
        # Without the files that it has mapped now: of one that the program maps, too, perf would
        # take the first place for the other when it unwinds.
        options += [f"--pid={pid}", "--synth=task"]
    return options


def _linux() -> tuple[int, ...]:
    """The version of the kernel, major and minor."""
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
