"""How long engines and listeners take, for the listeners that ask.

An engine opens an `engine_call` around what loads or frees objects, and attachments note in it how
long each listener took. Nothing is measured while no attached listener asks, by having a
`notify_time_spent` of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from .events import JITEventListener, LoadedObject

__all__ = ["EngineCall", "Notification", "Watcher", "call_under_way", "engine_call", "watchers"]


class Notification(NamedTuple):
    """A listener was told of an object, from `start` to `end` (CLOCK_MONOTONIC, ns)."""

    listener: JITEventListener
    obj: LoadedObject
    start: int
    end: int


@dataclass
class EngineCall:
    """Something that an engine did in one thread, from `start` to `end` (CLOCK_MONOTONIC, ns)."""

    name: str
    """What kind of engine it was, and what it did: for people to read."""
    start: int
    end: int = 0
    notifications: list[Notification] = field(default_factory=list, repr=False)
    """What listeners were told of meanwhile, one after the other."""

    def note(self, listener: JITEventListener, obj: LoadedObject, start: int) -> None:
        """For attachments: from `start` until now `listener` was told of `obj`."""
        self.notifications.append(Notification(listener, obj, start, monotonic_ns()))


class Watcher(Protocol):
    """An attachment that has listeners that ask."""

    @property
    def asking(self) -> Sequence[JITEventListener]: ...

    def tell_time(self, listener: JITEventListener, call: EngineCall) -> None: ...


watchers: list[Watcher] = []
"""Those there are now; nothing is measured if there are none."""

_thread = threading.local()


def call_under_way() -> EngineCall | None:
    """The engine call that this thread is in the middle of, if it is measured."""
    return getattr(_thread, "call", None)


@contextmanager
def engine_call(name: str) -> Iterator[None]:
    """Measure what is done inside, if anybody asks; who does is told if objects came or went."""
    if not watchers:
        yield
        return
    asking, outer = tuple(watchers), call_under_way()  # one may end in this very call
    _thread.call = call = EngineCall(name, monotonic_ns())
    try:
        yield
    finally:
        call.end = monotonic_ns()
        _thread.call = outer
        if call.notifications:
            # A listener may be attached several times.
            told = {id(one): (one, watcher) for watcher in asking for one in watcher.asking}
            for listener, watcher in told.values():
                watcher.tell_time(listener, call)
