"""Traces as viewers read them, and what writes some."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from tools import run

import listeners

Event = dict[str, Any]
START = """
import os, sys
import listeners
from jit import LINKERS, Long, Program, initialize, source_ir
initialize()
"""
NO_TRACES = [
    "print('hello')",
    '{"traceEvents": [\n',
    "[]",
    "[1, 2, 3]",
    "[mysettings]\nanswer = 42\n",
    json.dumps([{"name": "value"}], indent=2),
    '[\n  "lines",\n  "that may go on",\n',
]


def read(path: Path) -> list[Event]:
    """The events, as viewers read them: of the array, the end may be missing.

    All is checked that the format demands of the events that we write.
    """
    text = path.read_text().rstrip().removesuffix(",")
    events = json.loads(text + "]", parse_float=Decimal)
    for event in events:
        assert event["ph"] in ("b", "e", "X", "M"), event
        assert isinstance(event["name"], str), event
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int), event  # noqa: PT018
        assert event["ts"] >= 0, event
        if event["ph"] != "M":
            assert event["cat"] in ("object", "engine", "listener"), event
    check_nesting([event for event in events if event["ph"] == "X"])
    return events


def check_nesting(complete: list[Event]) -> None:
    """Of two complete events of a thread, one is inside the other, or they are apart."""
    threads = defaultdict(list)
    for event in complete:
        start = event["ts"]
        threads[event["pid"], event["tid"]].append((start, -event["dur"], start + event["dur"]))
    for spans in threads.values():
        around: list[Decimal] = []  # the ends of those that are under way
        for start, _, end in sorted(spans):
            while around and around[-1] <= start:
                around.pop()
            assert not around or end <= around[-1]
            around.append(end)


def lifetimes(events: list[Event]) -> list[tuple[Event, Event | None]]:
    """Each load, and its unload if there is one."""
    pairs = []
    loaded: dict[tuple[int, str], Event] = {}
    for event in events:
        if event["ph"] == "b":
            key = event["pid"], event["id2"]["local"]
            assert key not in loaded, event
            loaded[key] = event
        elif event["ph"] == "e":
            begin = loaded.pop((event["pid"], event["id2"]["local"]))
            assert begin["name"] == event["name"]
            assert begin["ts"] <= event["ts"]
            pairs.append((begin, event))
    return pairs + [(begin, None) for begin in loaded.values()]


def of(events: list[Event], category: str) -> list[Event]:
    return [event for event in events if event.get("cat") == category]


def inside(one: Event, other: Event) -> bool:
    return (
        (one["pid"], one["tid"]) == (other["pid"], other["tid"])
        and other["ts"] <= one["ts"]
        and one["ts"] + one["dur"] <= other["ts"] + other["dur"]
    )


def execute(script: str, *arguments: str) -> str:
    """What a program prints that begins with START."""
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    program = START + textwrap.dedent(script)
    return run(sys.executable, "-c", program, *arguments, env=environment)


class Slow(listeners.JITEventListener):
    """Takes 30 ms of each load, 20 ms of each unload."""

    def notify_object_loaded(self, obj):
        time.sleep(0.03)

    def notify_freeing_object(self, obj):
        time.sleep(0.02)
