"""Any engine of this process that speaks the GDB JIT interface, wasmtime for one.

Such an engine tells debuggers, in a list, what it loads and frees. Nobody else is told, so the list
is looked at: when the program asks for it, by a thread every so often, before another engine's load
is announced, and when the program ends. What has come and gone in between is not heard of.

The list is read as that of another process would be, since the engine may edit it meanwhile and
free what it points to.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import gdbjit

from ..errors import JITListenerError
from ..events import EventSink, LoadedObject
from ..order import in_order, late
from ..symfile import registered_object
from ..timing import engine_call

__all__ = ["DescriptorEngine", "engine_of"]

logger = logging.getLogger("listeners")

Key = tuple[gdbjit.Entry, bytes]

_engines: dict[gdbjit.Descriptor, DescriptorEngine] = {}


def engine_of(descriptor: gdbjit.Descriptor) -> DescriptorEngine:
    """What hears the engine of a descriptor of this process; JITListenerError for another one."""
    if descriptor not in gdbjit.descriptors():
        raise JITListenerError(
            f"{descriptor!r} is not in this process: take one of gdbjit.descriptors();"
            " `jitlisten list` looks into others"
        )
    with in_order():
        return _engines.setdefault(descriptor, DescriptorEngine(descriptor))


class DescriptorEngine:
    """The engine, or engines, that register objects in one descriptor."""

    def __init__(self, descriptor: gdbjit.Descriptor) -> None:
        self._descriptor = descriptor
        self._objects: dict[Key, LoadedObject] = {}
        self._sinks: list[EventSink] = []
        self._words = b""
        self._problem = ""
        self._looking = False
        self._interval = 0.0
        self._watcher: threading.Thread | None = None

    def subscribe(self, sink: EventSink) -> None:
        """Send `sink` the events from now on, and announce what is loaded at once."""
        with in_order():
            self.refresh()
            self._sinks.append(sink)
            for obj in tuple(self._objects.values()):
                sink.loaded(obj)
            if len(self._sinks) == 1:
                late.append(self.look)
                atexit.register(self.look)

    def unsubscribe(self, sink: EventSink) -> None:
        with in_order():
            if sink in self._sinks:
                self._sinks.remove(sink)
                if not self._sinks:
                    late.remove(self.look)
                    atexit.unregister(self.look)

    def refresh(self) -> None:
        """Announce what has come and what has gone since the last time.

        Raises JITListenerError if the list is not well-formed.
        """
        with in_order():
            if self._looking:  # a listener asks, in the middle of an announcement
                return
            self._looking = True
            try:
                with engine_call(f"{Path(self._descriptor.library).name}: look"):
                    self._announce()
            except gdbjit.GDBJITError as error:
                raise JITListenerError(f"{self._descriptor.library}: {error}") from error
            finally:
                self._looking = False

    def look(self) -> None:
        """As `refresh`, where something seems to have changed; a problem is logged, once."""
        try:
            if self._descriptor.words() != self._words:
                self.refresh()
        except (JITListenerError, gdbjit.GDBJITError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                logger.warning("%s", error)

    def watch(self, interval: float) -> None:
        """Look every `interval` seconds, in a thread of its own, while somebody listens.

        Raises JITListenerError if that is no time to wait.
        """
        if not 0 < interval <= threading.TIMEOUT_MAX:
            raise JITListenerError(f"an interval of {interval} s: give seconds, more than 0")
        with in_order():
            self._interval = min(interval, self._interval or interval)
            if self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._watch, name="listeners watch", daemon=True
                )
                self._watcher.start()

    def _watch(self) -> None:
        while True:
            time.sleep(self._interval)
            with in_order():
                if not self._sinks:
                    self._watcher = None
                    self._interval = 0.0
                    return
                self.look()

    def start_child(self) -> None:
        """In a forked child: it has no such thread."""
        if self._watcher is not None:
            self._watcher = None
            self.watch(self._interval)

    def _announce(self) -> None:
        """The images tell one object from another; an entry's address may come again at once."""
        words = self._descriptor.words()
        found = {key: None for key in self._descriptor.images() if not _is_ours(key[0])}
        for key in [key for key in self._objects if key not in found]:
            obj = self._objects.pop(key)
            obj.forget_memory()
            for sink in reversed(self._sinks):
                sink.freeing(obj)
        for key in found:
            if key not in self._objects:
                obj = self._objects[key] = registered_object(self._descriptor, key[1])
                for sink in tuple(self._sinks):
                    sink.loaded(obj)
        self._words = words


def _is_ours(entry: gdbjit.Entry) -> bool:
    return gdbjit.is_registered(entry.address)


# A thread may announce something at the fork: the child would wait for its end for ever.
_forking = ExitStack()


def _before_fork() -> None:
    if any(engine._watcher for engine in _engines.values()):
        _forking.enter_context(in_order())


def _after_fork_in_child() -> None:
    _forking.close()
    for engine in _engines.values():
        engine.start_child()


os.register_at_fork(
    before=_before_fork, after_in_parent=_forking.close, after_in_child=_after_fork_in_child
)
