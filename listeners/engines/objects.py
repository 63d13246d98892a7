"""The objects that llvmlite's engines hold in memory, and who is told of them.

Used with llvmlite's lock held. That lock is re-entrant: a listener may use LLVM, and the garbage
collector may free an engine, in the middle of an announcement. What comes of that waits in
`Objects._tasks` for its turn, the call that frees the memory included.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from perfmap.memory import mappings

from ..errors import JITListenerError
from ..events import EventSink, LoadedObject
from ..objectfile import SHF_EXECINSTR
from ..order import catch_up, late
from . import jitlink
from .targets import TargetOptions

__all__ = ["Engine", "Loaded", "Objects"]

logger = logging.getLogger("listeners")

Sinks = Iterable[tuple[EventSink, "Engine | None"]]


@dataclass(eq=False, slots=True)
class Loaded:
    """An object in memory."""

    make: Callable[[], LoadedObject]
    engine: Engine | None
    """None if it was loaded before we were here to see by whom."""
    library: bytes | None = None
    """In an LLJIT, the name of the library it is part of."""
    obj: LoadedObject | None = None

    def object(self) -> LoadedObject:
        """Made when somebody first listens."""
        if self.obj is None:
            self.obj = self.make()
        return self.obj


class Engine:
    """An engine of llvmlite's, from its creation to its end."""

    def __init__(
        self, *, made_here: bool, is_lljit: bool = False, uses_jitlink: bool | None = False
    ) -> None:
        self.made_here = made_here
        """Whether it was made after this module was imported; else much of it is not known."""
        self.is_lljit = is_lljit
        self.uses_jitlink = uses_jitlink
        """None if that is not known yet."""
        self.target: TargetOptions | None = None
        """How it generates code, where that is known."""
        self.objects: dict[int, Loaded] = {}
        self.libraries: dict[bytes, jitlink.Library] = {}
        """Those of JITLink."""
        self.latent: dict[bytes, set[bytes]] = {}
        """Of RuntimeDyld's libraries, the symbols that are linked and not in memory."""
        self.reported: set[str] = set()
        """Why parts of what it has linked are not heard of, as far as that was logged."""
        self.trackers = 0
        """An LLJIT lives until it is closed and the last of its trackers is, too."""
        self.closed = False

    @property
    def kind(self) -> str:
        """What to call it to people."""
        if not self.is_lljit:
            return "MCJIT"
        if self.uses_jitlink is None:
            return "LLJIT"
        return f"LLJIT over {'JITLink' if self.uses_jitlink else 'RuntimeDyld'}"


class Objects:
    """What is in memory by key, in load order, and the sinks that hear of it.

    An object's key is the address of LLVM's entry for it. What JITLink has loaded is numbered from
    -1 down.
    """

    def __init__(self) -> None:
        self.strays: set[int] = set()
        """Objects whose end is only seen afterwards: their engine was made before we were here."""
        self.waiting: list[int] = []
        """Objects in memory that cannot run yet."""
        self.loaded: dict[int, Loaded] = {}
        """Those in memory, by key, in load order."""
        self._jitlinked = 0
        self._sinks: list[tuple[EventSink, Engine | None]] = []
        self._tasks: deque[Callable[[], None]] = deque()
        self.busy = False
        """Whether something is being announced."""

    # Who listens

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._sinks)

    def subscribe(self, sink: EventSink, engine: Engine | None) -> None:
        """Tell `sink` of the objects of `engine`, or of all, and at once of those there are."""
        self._sinks.append((sink, engine))
        self._do(lambda: self._tell_loaded(tuple(self.loaded), [(sink, engine)]))

    def end(self, engine: Engine) -> None:
        """Who listens to `engine` alone has nothing more to hear."""
        for sink, heard in tuple(self._sinks):
            if heard is engine:
                sink.end()

    def unsubscribe(self, sink: EventSink) -> None:
        self._sinks = [(other, engine) for other, engine in self._sinks if other is not sink]

    # What comes and goes

    def new_key(self) -> int:
        """A key for an object of JITLink's."""
        self._jitlinked += 1
        return -self._jitlinked

    def add(self, found: dict[int, Loaded], executable: bool = True) -> None:
        """Note objects, by key; when all are noted, announce them if they can run."""
        self.loaded.update(found)
        for key, loaded in found.items():
            engine = loaded.engine
            if engine is not None:
                engine.objects[key] = loaded
            if engine is None or not engine.made_here:
                self.strays.add(key)
        if not executable:
            self.waiting += found
        elif self._sinks and found:
            self._do(partial(self._tell_loaded, list(found), self._sinks))

    def announce_executable(self, engine: Engine | None) -> None:
        """Announce what `engine` has made executable, which it has loaded before.

        MCJIT registers an object of `add_object_file` before it has relocated it, and makes its
        pages executable when it finalizes all there is. Of objects whose engine is not known, the
        memory tells.
        """
        for key in tuple(self.waiting):
            if key not in self.waiting:
                continue  # a listener has freed it in the meantime
            loaded = self.loaded[key]
            if loaded.engine is engine if loaded.engine else _is_executable(loaded.object()):
                self.waiting.remove(key)
                if self._sinks:
                    self._do(partial(self._tell_loaded, [key], self._sinks))

    def free(self, freed: Callable[[], list[int]], call: Callable[[], Any]) -> Any:
        """Announce the end of the objects `freed()`, then make the call that frees them.

        Gives what the call gives, or None if it waits for its turn.
        """
        result = None

        def free() -> None:
            nonlocal result
            result = call()

        def task() -> None:
            with ExitStack() as stack:  # whatever a listener raises, all is done, last things first
                stack.callback(free)
                for key in freed():
                    stack.callback(self.forget, key)

        self._do(task)
        return result

    def forget(self, key: int) -> None:
        """Announce the end of an object, for the last time that its memory may be read."""
        loaded = self.loaded.pop(key)
        self.strays.discard(key)
        if loaded.engine is not None:
            del loaded.engine.objects[key]
        if key in self.waiting:
            self.waiting.remove(key)
        if loaded.obj is not None:
            with ExitStack() as stack:
                stack.callback(loaded.obj.forget_memory)
                for sink, engine in self._sinks:
                    if engine is None or _is_heard(loaded, engine):
                        stack.callback(sink.freeing, loaded.obj)

    def _tell_loaded(self, keys: Iterable[int], sinks: Sinks) -> None:
        if late:
            catch_up()
        interrupt = None
        for key in keys:
            loaded = self.loaded.get(key)
            if loaded is None or key in self.waiting:
                continue
            for sink, engine in tuple(sinks):
                if engine is None or _is_heard(loaded, engine):
                    try:
                        sink.loaded(loaded.object())
                    except BaseException as error:
                        interrupt = error
        if interrupt is not None:
            raise interrupt

    def _do(self, task: Callable[[], None]) -> None:
        """Run `task` now, or when those before it have run.

        Whatever interrupts the program, Ctrl-C in a listener, all is done before it goes on.
        """
        self._tasks.append(task)
        if self.busy:
            return
        self.busy = True
        interrupt = None
        try:
            while self._tasks:
                try:
                    self._tasks.popleft()()
                except BaseException as error:
                    interrupt = error
        finally:
            self.busy = False
        if interrupt is not None:
            raise interrupt


def _is_heard(loaded: Loaded, engine: Engine) -> bool:
    """Whether who listens to `engine` hears of the object.

    One whose engine is not known may be of any engine made before we were here.
    """
    if loaded.engine is engine:
        return True
    return loaded.engine is None and not engine.made_here and not engine.uses_jitlink


def _is_executable(obj: LoadedObject) -> bool:
    try:
        code = [section for section in obj.sections if section.flags & SHF_EXECINSTR]
    except JITListenerError:
        return True  # whoever looks into it is told why not
    executable = _executable_memory()
    return all(any(start <= section.address < end for start, end in executable) for section in code)


def _executable_memory() -> list[tuple[int, int]]:
    """The executable address ranges of this process."""
    return [(mapping.start, mapping.end) for mapping in mappings() if "x" in mapping.access]
