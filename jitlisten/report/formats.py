"""A profile in the formats of viewers that people already use.

Weights are those of perf: ns of cpu-clock and task-clock, counts of other events.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from .calltree import Node, call_tree
from .locations import Frame, Kind, Location
from .profile import Profile, Recorded, Thread

__all__ = ["collapsed", "firefox", "speedscope"]

# Of stackcollapse-perf.pl --all, heeded by flamegraph.pl --color=java
ANNOTATIONS = {Kind.JIT: "_[j]", Kind.PYTHON: "", Kind.NATIVE: "", Kind.KERNEL: "_[k]"}

# https://github.com/firefox-devtools/profiler, src/types/profile.ts, and
# docs-developer/CHANGELOG-formats.md: later versions of the viewer read earlier formats.
PROCESSED_VERSION, GECKO_VERSION = 60, 33
LIBRARY = 1  # ResourceType
CATEGORIES = {
    Kind.JIT: "orange",
    Kind.PYTHON: "blue",
    Kind.NATIVE: "grey",  # the viewer wants one that is grey
    Kind.KERNEL: "purple",
}


def collapsed(profile: Profile) -> str:
    """A line for each stack: functions from the outermost on, with semicolons, and the weight.

    The format of Brendan Gregg's stackcollapse tools, for flamegraph.pl, inferno, speedscope.
    Python's functions are `py::NAME`. JIT functions end with `_[j]`, inlined ones with `_[i]`, the
    kernel's with `_[k]`, for which `flamegraph.pl --color=java` has colours.
    """
    root = call_tree(profile)
    processes = [node for node in root.callees.values() if node.frame is None]
    lines: list[str] = []
    waiting = [(node, _collapsed_name(node)) for node in processes or [root]]
    while waiting:
        node, path = waiting.pop()
        if node.weight.self:
            lines.append(f"{path} {node.weight.self}\n")
        waiting += [
            (callee, f"{path};{_collapsed_name(callee)}") for callee in node.callees.values()
        ]
    return "".join(sorted(lines))


def _collapsed_name(node: Node) -> str:
    name = node.name.replace(";", ":")
    if node.frame is None:
        return name
    if node.frame.kind is Kind.PYTHON and not node.frame.is_interpreter:
        return f"py::{name}"
    return name + ("_[i]" if node.frame.inlined else ANNOTATIONS[node.frame.kind])


def speedscope(profile: Profile) -> str:
    """JSON by https://www.speedscope.app/file-format-schema.json: each thread in order of time."""
    frames: dict[Frame, int] = {}
    stacks: dict[int, list[int]] = {}
    for sample in profile.samples:
        if sample.stack not in stacks:
            chain = [location.frame for location in profile.chain(sample.stack)]
            stacks[sample.stack] = [
                frames.setdefault(frame, len(frames)) for frame in reversed(chain)
            ]
    profiles = []
    for thread, samples in _by_thread(profile):
        runs = [
            (stack, sum(sample.weight for sample in run))
            for stack, run in groupby(samples, lambda sample: sample.stack)
        ]
        profiles.append(
            {
                "type": "sampled",
                "name": f"{thread.comm} {thread.pid}/{thread.tid}",
                "unit": "nanoseconds" if profile.is_time else "none",
                "startValue": 0,
                "endValue": sum(weight for _, weight in runs),
                "samples": [stacks[stack] for stack, _ in runs],
                "weights": [weight for _, weight in runs],
            }
        )
    return _json(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": _title(profile),
            "exporter": "jit-listeners",
            "shared": {"frames": [{"name": f.name, "file": f.file} for f in frames]},
            "profiles": profiles,
            "activeProfileIndex": 0,
        }
    )


def firefox(profile: Profile) -> str:
    """JSON in the processed format of profiler.firefox.com, version 60.

    JIT, Python, native and kernel functions are of categories of their own; JIT frames have lines.
    """
    tables = _FirefoxTables(profile)
    start = min(sample.time for sample in profile.samples)
    end = max(sample.time for sample in profile.samples)
    interval = profile.weight / len(profile.samples) / 1e6 if profile.is_time else 1
    processes: dict[int, str] = {}
    threads = []
    for thread, samples in _by_thread(profile):
        threads.append(
            {
                "processType": "default",
                "processStartupTime": 0,
                "processShutdownTime": None,
                "processName": processes.setdefault(thread.pid, thread.comm),
                "registerTime": 0,
                "unregisterTime": None,
                "pausedRanges": [],
                "name": thread.comm,
                "isMainThread": thread.pid == thread.tid,
                "pid": str(thread.pid),
                "tid": thread.tid,
                "samples": {
                    "length": len(samples),
                    "stack": [sample.stack for sample in samples],
                    "time": [(sample.time - start) / 1e6 for sample in samples],
                    "weight": [sample.weight / 1e6 for sample in samples]
                    if profile.is_time
                    else [sample.weight for sample in samples],
                    "weightType": "tracing-ms" if profile.is_time else "samples",
                },
                "markers": _table(
                    ("data", "name", "startTime", "endTime", "phase", "category"), []
                ),
            }
        )
    return _json(
        {
            "meta": {
                "version": GECKO_VERSION,
                "preprocessedProfileVersion": PROCESSED_VERSION,
                "product": _title(profile),
                "importedFrom": "jit-listeners",
                "interval": interval,
                "startTime": 0,
                "profilingStartTime": 0,
                "profilingEndTime": (end - start) / 1e6,
                "processType": 0,
                "stackwalk": 1,
                "symbolicated": True,
                "symbolicationNotSupported": True,
                "usesOnlyOneStackType": True,
                "sourceCodeIsNotOnSearchfox": True,
                "categories": [
                    {"name": kind.value, "color": color, "subcategories": ["Other"]}
                    for kind, color in CATEGORIES.items()
                ],
                "markerSchema": [],
            },
            "libs": [],
            "threads": threads,
            "shared": tables.shared(),
        }
    )


class _FirefoxTables:
    """The tables that all threads share: of stacks, frames, functions, sources, libraries."""

    def __init__(self, profile: Profile) -> None:
        self._strings: dict[str, int] = {}
        self._sources: dict[int, int] = {}
        self._resources: dict[int, int] = {}
        self._functions: dict[Frame, int] = {}
        self._frames: dict[tuple[Frame, int], int] = {}
        self._stacks = [
            (self._frame(location), caller if caller >= 0 else None)
            for caller, location in profile.stacks
        ]

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _frame(self, location: Location) -> int:
        frame = location.frame
        if frame not in self._functions:
            self._functions[frame] = len(self._functions)
            self._string(frame.name)
            if frame.file:
                known = self._sources if _has_source(frame) else self._resources
                known.setdefault(self._string(frame.file), len(known))
        key = frame, location.line
        return self._frames.setdefault(key, len(self._frames))

    def shared(self) -> dict[str, Any]:
        categories = list(CATEGORIES)
        return {
            "stackTable": _table(("frame", "prefix"), self._stacks),
            "frameTable": _table(
                (
                    *("address", "inlineDepth", "category", "subcategory", "func"),
                    *("nativeSymbol", "innerWindowID", "line", "column"),
                ),
                [
                    (
                        *(-1, int(frame.inlined), categories.index(frame.kind), 0),
                        *(self._functions[frame], None, 0, line or None, None),
                    )
                    for frame, line in self._frames
                ],
            ),
            "funcTable": _table(
                (
                    *("name", "isJS", "relevantForJS", "resource"),
                    *("source", "lineNumber", "columnNumber"),
                ),
                [
                    (
                        *(self._string(frame.name), False, False),
                        self._resources.get(self._string(frame.file), -1),
                        *(self._sources.get(self._string(frame.file)), None, None),
                    )
                    for frame in self._functions
                ],
            ),
            "resourceTable": _table(
                ("lib", "name", "host", "type"),
                [(None, name, None, LIBRARY) for name in self._resources],
            ),
            "nativeSymbols": _table(("libIndex", "address", "name", "functionSize"), []),
            "sources": _table(("id", "filename"), [(None, name) for name in self._sources]),
            "stringArray": list(self._strings),
        }


def _has_source(frame: Frame) -> bool:
    return frame.kind is Kind.JIT or (frame.kind is Kind.PYTHON and not frame.is_interpreter)


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Rows as the viewer wants them: by column."""
    by_column = zip(*rows, strict=True) if rows else [()] * len(columns)
    return {"length": len(rows), **dict(zip(columns, map(list, by_column), strict=True))}


def _by_thread(profile: Profile) -> list[tuple[Thread, list[Recorded]]]:
    threads: dict[tuple[int, int], list[Recorded]] = {}
    for sample in profile.samples:
        threads.setdefault(sample.thread[:2], []).append(sample)
    # a thread has its last name
    return [(samples[-1].thread, samples) for samples in threads.values()]


def _title(profile: Profile) -> str:
    return f"{profile.name}: {profile.event}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
