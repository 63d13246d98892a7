"""The model of a recording that every view is made from: who called whom, and how often.

A `Profile` has the samples of one event. Their stacks share what they have in common: a stack is a
number, its entry in `stacks` names its innermost place and the stack of the caller. That is also
how viewers' formats have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar

from .locations import NAMELESS, UNKNOWN, Frame, Kind, Location, Locator
from .samples import Call, Sample

__all__ = ["Profile", "Recorded", "Thread", "Weight", "collect"]

CLOCKS = ("cpu-clock", "task-clock")
UNFOLLOWED = Frame(Kind.NATIVE, UNKNOWN, UNKNOWN)
NOWHERE = Location(UNFOLLOWED, UNFOLLOWED)

Key = TypeVar("Key")


class Thread(NamedTuple):
    """A thread, while it had that name."""

    pid: int
    tid: int
    comm: str


class Recorded(NamedTuple):
    """A sample."""

    thread: Thread
    time: int
    """In ns."""
    stack: int
    weight: int
    """How much of the event it stands for."""


@dataclass
class Weight:
    """How much of the event something has."""

    self: int = 0
    """In its own code."""
    total: int = 0
    """With all that it called."""
    samples: int = 0
    """Their number, of its own code."""


@dataclass
class Profile:
    """The samples of one event."""

    event: str
    samples: list[Recorded] = field(default_factory=list)
    stacks: list[tuple[int, Location]] = field(default_factory=list)
    """By their numbers: the stack of the caller, -1 where there is none, and the innermost place.
    A caller's stack has the lower number."""

    @property
    def is_time(self) -> bool:
        """Whether weights are in ns."""
        return self.event.split(":")[0] in CLOCKS

    @cached_property
    def processes(self) -> dict[int, str]:
        """The name of each process by its number: the one that most of its samples have."""
        comms: dict[int, Counter[str]] = {}
        for sample in self.samples:
            comms.setdefault(sample.thread.pid, Counter())[sample.thread.comm] += 1
        return {pid: _most_common(names) for pid, names in comms.items()}

    @property
    def name(self) -> str:
        """The name that most samples have."""
        return _most_common(Counter(sample.thread.comm for sample in self.samples))

    @property
    def heading(self) -> str:
        """What was recorded."""
        comms = list(dict.fromkeys(sample.thread.comm for sample in self.samples))
        names = ", ".join(comms[:4]) + (", …" if len(comms) > 4 else "")
        pids = len(self.processes)
        processes = f"{pids} processes, " if pids > 1 else ""
        amount = f"{self.weight / 1e9:.2f} s" if self.is_time else f"{self.weight:,}"
        return f"{names}: {processes}{len(self.samples):,} samples, {amount} of {self.event}"

    @cached_property
    def weight(self) -> int:
        """That of all samples; no less than 1."""
        return sum(sample.weight for sample in self.samples) or 1

    @cached_property
    def weights(self) -> list[Weight]:
        """What each stack has, by its number."""
        weights = [Weight() for _ in self.stacks]
        for sample in self.samples:
            weight = weights[sample.stack]
            weight.self += sample.weight
            weight.total += sample.weight
            weight.samples += 1
        for (caller, _), weight in zip(reversed(self.stacks), reversed(weights), strict=True):
            if caller >= 0:
                weights[caller].total += weight.total
        return weights

    def by_kind(self) -> dict[Kind, int]:
        """The weight of the code of each kind."""
        kinds = dict.fromkeys(Kind, 0)
        for (_, location), weight in zip(self.stacks, self.weights, strict=True):
            kinds[location.frame.kind] += weight.self
        return kinds

    @property
    def nameless(self) -> float:
        """The part of the weight, at most 1, that is in JIT code without a name."""
        places = zip(self.stacks, self.weights, strict=True)
        own = sum(weight.self for (_, at), weight in places if at.function == NAMELESS)
        return own / self.weight

    def by(self, key: Callable[[Location], Key | None]) -> dict[Key, Weight]:
        """What all the places have that have the same `key`; those without one are left out."""
        result: dict[Key, Weight] = {}
        active: list[tuple[int, Key | None]] = []  # of the stack that has been come to
        depth: dict[Key, int] = {}  # how many of those have the key
        for stack in self._by_chain:
            caller, location = self.stacks[stack]
            while active and active[-1][0] != caller:
                _, left = active.pop()
                if left is not None:
                    depth[left] -= 1
            found = key(location)
            active.append((stack, found))
            if found is None:
                continue
            weight, own = result.setdefault(found, Weight()), self.weights[stack]
            weight.self += own.self
            weight.samples += own.samples
            if not depth.get(found):  # a recursive call is in the total of the first one
                weight.total += own.total
            depth[found] = depth.get(found, 0) + 1
        return result

    @cached_property
    def _by_chain(self) -> list[int]:
        """The numbers of the stacks, each followed by those of its callees."""
        callees: list[list[int]] = [[] for _ in self.stacks]
        outermost: list[int] = []
        for stack, (caller, _) in enumerate(self.stacks):
            (callees[caller] if caller >= 0 else outermost).append(stack)
        order, waiting = [], outermost[::-1]
        while waiting:
            stack = waiting.pop()
            order.append(stack)
            waiting += reversed(callees[stack])
        return order

    def chain(self, stack: int) -> Iterator[Location]:
        """The places of a stack, innermost first."""
        while stack >= 0:
            stack, location = self.stacks[stack]
            yield location


def _most_common(names: Counter[str]) -> str:
    ((name, _),) = names.most_common(1)
    return name


def collect(samples: Iterable[Sample], locator: Locator, profiles: dict[str, Profile]) -> None:
    """Put the samples into `profiles`, by event; new events come behind those there are.

    What has come before an error of `samples` is in them.
    """
    builders: dict[str, _Builder] = {}
    for sample in samples:
        builder = builders.get(sample.event)
        if builder is None:
            profile = profiles.setdefault(sample.event, Profile(sample.event))
            builder = builders[sample.event] = _Builder(profile, locator)
        builder.add(sample)


class _Builder:
    """Gives stacks their numbers."""

    def __init__(self, profile: Profile, locator: Locator) -> None:
        self._profile = profile
        self._locator = locator
        self._located: dict[tuple[Call, bool], list[Location]] = {}
        self._locations: dict[Location, Location] = {}
        self._chains: dict[tuple[Call, ...], int] = {}
        self._stacks: dict[tuple[int, int], int] = {}

    def add(self, sample: Sample) -> None:
        stack = self._chains.get(sample.calls)
        if stack is None:
            stack = self._chains[sample.calls] = self._stack(sample.calls)
        thread = Thread(sample.pid, sample.tid, sample.comm)
        self._profile.samples.append(Recorded(thread, sample.time, stack, sample.period))

    def _stack(self, calls: tuple[Call, ...]) -> int:
        stack = -1
        for depth in range(len(calls) - 1, -1, -1):
            for location in self._locate(calls[depth], depth == 0):
                # Runs of calls without names tell nothing. Without frame pointers there are many.
                frame = location.frame
                is_unnamed = frame.kind is not Kind.JIT and frame.name[0] == "["
                if not is_unnamed or stack < 0 or frame != self._profile.stacks[stack][1].frame:
                    stack = self._callee(stack, location)
        return self._callee(-1, NOWHERE) if stack < 0 else stack

    def _callee(self, caller: int, location: Location) -> int:
        stack = self._stacks.setdefault((caller, id(location)), len(self._stacks))
        if stack == len(self._profile.stacks):
            self._profile.stacks.append((caller, location))
        return stack

    def _locate(self, call: Call, is_innermost: bool) -> list[Location]:
        located = self._located.get((call, is_innermost))
        if located is None:
            located = self._locator.locate(call, is_innermost)
            located = [self._locations.setdefault(location, location) for location in located]
            self._located[call, is_innermost] = located
        return located
