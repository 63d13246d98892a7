"""`Safepoints`: the safepoints of all that is loaded, by physical address, for collectors.

A collector that stops at a call in JIT'd code has a return address and needs to know what is live
there. `Safepoints` knows it for every object that its engines have loaded, from before the code can
run until it is freed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from threading import RLock
from typing import Protocol

from ..errors import JITListenerError
from ..events import JITEventListener, LoadedObject
from ..objectfile import SHF_EXECINSTR
from .lsda import CallSite
from .safepoint import ObjectSafepoints, Safepoint
from .tables import ObjectTables

__all__ = ["Safepoints"]


class Watcher(Protocol):
    """Who is told first of what comes, and of what goes: before it can run, while it still can."""

    def loaded(
        self, obj: LoadedObject, code: list[tuple[int, int]], found: ObjectSafepoints | None
    ) -> None:
        """`code` is where it has code: start and end; `found` is None if nothing is recorded."""

    def freeing(self, obj: LoadedObject) -> None: ...


@dataclass(frozen=True, eq=False)
class _Code:
    """A range of loaded code."""

    start: int
    end: int
    object: LoadedObject
    tables: ObjectTables | None
    """None where the object records nothing."""
    error: JITListenerError | None
    """Why what it records is not known."""


_start = attrgetter("start")


class Safepoints(JITEventListener):
    """The safepoints of the loaded objects.

    `on_safepoints(obj, safepoints)` is called for every object that has some, before anybody can
    run it, with the engine's lock held: a runtime keeps its own tables by it.

    An object whose tables are malformed is as one that is not understood: whoever asks for an
    address in its code gets the JITListenerError.
    """

    def __init__(
        self, on_safepoints: Callable[[LoadedObject, ObjectSafepoints], None] | None = None
    ) -> None:
        self._on_safepoints = on_safepoints
        self._lock = RLock()
        self._watchers: list[Watcher] = []
        self._code: list[_Code] = []
        """By address. It changes with the lock held, while others look things up."""
        self._loaded: dict[int, list[_Code]] = {}
        """The code of each object, by the object's key."""
        self._tables: dict[int, ObjectTables] = {}
        """By the object's key."""
        self._found: dict[int, Safepoint] = {}
        """What was looked up before."""

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        with self._lock:
            if obj.key in self._loaded:
                return  # heard by way of another attachment
            self._loaded[obj.key] = []
        tables = error = None
        if ObjectTables.are_in(obj):
            tables = ObjectTables(obj)
            try:  # now, not at the first collection or fault
                _ = tables.safepoints, tables.handlers
            except JITListenerError as refused:
                error = refused
        code = [
            _Code(section.address, section.address + section.size, obj, tables, error)
            for section in obj.sections
            if section.flags & SHF_EXECINSTR
        ]
        with self._lock:
            self._loaded[obj.key] = code
            for part in code:
                insort(self._code, part, key=_start)
            if tables and not error:
                self._tables[obj.key] = tables
            for watcher in self._watchers:
                _tell(watcher, obj, code)
        if error:
            raise error
        if tables and tables.safepoints and self._on_safepoints:
            self._on_safepoints(obj, tables.safepoints)

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        with self._lock:
            if obj.key not in self._loaded:
                return
            for watcher in self._watchers:
                watcher.freeing(obj)
            for part in self._loaded.pop(obj.key):
                at = bisect_left(self._code, part.start, key=_start)
                while self._code[at] is not part:
                    at += 1
                del self._code[at]
            if self._tables.pop(obj.key, None):
                # A look-up under way may still put a safepoint of it into the old dictionary.
                self._found = {}

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of what is loaded, and of all that comes and goes from now on."""
        with self._lock:
            for code in self._loaded.values():
                if code:
                    _tell(watcher, code[0].object, code)
            self._watchers.append(watcher)

    def __iter__(self) -> Iterator[Safepoint]:
        """All safepoints, by object in the order of loading, as its table has them."""
        for safepoints in self._safepoints():
            yield from safepoints

    def lookup(self, address: int) -> Safepoint | None:
        """The safepoint at an address: a statepoint by its return address; None if there is none.

        Raises JITListenerError for an address in the code of an object whose tables are malformed.
        """
        found = self._found
        try:
            return found[address]
        except KeyError:
            pass
        # A call that never returns may be the last thing in the code.
        for place in (address - 1, address):
            tables = self._tables_at(place)
            if tables and (safepoint := tables.safepoints.at(address)):
                found[address] = safepoint
                return safepoint
        return None

    def landing_pad(self, return_address: int) -> CallSite | None:
        """Where the call with that return address goes on if it throws: `landing_pad` of what this
        gives, None there for no handler in the function.

        None if no table has the call: of a function with such a table it must not throw. Raises
        JITListenerError if the table of the object that has the call is malformed.
        """
        tables = self._tables_at(return_address - 1)
        return tables.call_site(return_address) if tables else None

    def fault_handler(self, address: int) -> int | None:
        """Where to go on if the load or store at an address has faulted; None if not recorded."""
        tables = self._tables_at(address)
        return tables.handlers.get(address) if tables else None

    def by_id(self, identity: int) -> list[Safepoint]:
        """The safepoints with an id, which need not be unique; unsigned, as in the IR."""
        return [s[index] for s in self._safepoints() for index in s.by_id.get(identity, ())]

    def by_function(self, name: str) -> list[Safepoint]:
        """The safepoints of the functions of that name, mangled or demangled."""
        found = []
        for safepoints in self._safepoints():
            with suppress(KeyError):
                found += safepoints.of(safepoints.object.function(name))
        return found

    def code_name(self, address: int) -> str | None:
        """What to call the loaded code at an address: its function; None if there is none."""
        code = self._code_at(address)
        if code is None:
            return None
        function = code.object.function_at(address)
        return function.demangled if function else repr(code.object)

    def _code_at(self, address: int) -> _Code | None:
        code = self._last_before(address)
        if code is None:
            with self._lock:  # the list may have changed while it was looked through
                code = self._last_before(address)
        return code

    def _last_before(self, address: int) -> _Code | None:
        """The last code that begins before an address, if it has that address."""
        at = bisect_right(self._code, address, key=_start)
        for code in self._code[max(at - 1, 0) : at]:
            if code.start <= address < code.end:
                return code
        return None

    def _tables_at(self, address: int) -> ObjectTables | None:
        """The tables of the loaded object that has code at an address."""
        code = self._code_at(address)
        if code is None:
            return None
        if code.error:
            raise code.error
        return code.tables

    def _safepoints(self) -> list[ObjectSafepoints]:
        with self._lock:
            return [tables.safepoints for tables in self._tables.values()]


def _tell(watcher: Watcher, obj: LoadedObject, code: list[_Code]) -> None:
    ranges = [(part.start, part.end) for part in code]
    tables = code[0].tables if code and not code[0].error else None
    watcher.loaded(obj, ranges, tables.safepoints if tables else None)
