"""`Safepoints`: the safepoints of all that is loaded, by physical address, for collectors.

A collector that stops at a call in JIT'd code has a return address and needs to know what is live
there. `Safepoints` knows it for every object that its engines have loaded, from before the code can
run until it is freed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from threading import RLock

from ..errors import JITListenerError
from ..events import JITEventListener, LoadedObject
from ..objectfile import SHF_EXECINSTR
from .safepoint import STACKMAPS, ObjectSafepoints, Safepoint

__all__ = ["Safepoints"]


@dataclass(frozen=True, eq=False)
class _Code:
    """A range of loaded code."""

    start: int
    end: int
    object: LoadedObject
    safepoints: ObjectSafepoints | None
    """None where the object records none."""
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
        self._code: tuple[_Code, ...] = ()
        """By address. Replaced, never changed, as others look things up meanwhile."""
        self._objects: dict[int, ObjectSafepoints] = {}
        """By the object's key."""
        self._found: dict[int, Safepoint] = {}
        """What was looked up before."""

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        safepoints = error = None
        if any(section.name == STACKMAPS for section in obj.sections):
            try:
                safepoints = ObjectSafepoints(obj)
                safepoints.by_address  # noqa: B018  # now, not at the first collection
            except JITListenerError as refused:
                error = refused
        code = [
            _Code(section.address, section.address + section.size, obj, safepoints, error)
            for section in obj.sections
            if section.flags & SHF_EXECINSTR
        ]
        with self._lock:
            self._code = tuple(sorted((*self._code, *code), key=_start))
            if safepoints:
                self._objects[obj.key] = safepoints
        if error:
            raise error
        if safepoints and self._on_safepoints:
            self._on_safepoints(obj, safepoints)

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        with self._lock:
            self._code = tuple(code for code in self._code if code.object is not obj)
            if self._objects.pop(obj.key, None):
                # A look-up under way may still put a safepoint of it into the old dictionary.
                self._found = {
                    address: safepoint
                    for address, safepoint in self._found.items()
                    if safepoint.object is not obj
                }

    def __iter__(self) -> Iterator[Safepoint]:
        """All safepoints, by object in the order of loading, as its table has them."""
        for safepoints in self._tables():
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
        code = self.code_at(address)
        if code is None:
            return None
        if code.error:
            raise code.error
        index = code.safepoints.by_address.get(address) if code.safepoints else None
        if index is None or code.safepoints is None:
            return None
        safepoint = found[address] = code.safepoints[index]
        return safepoint

    def by_id(self, identity: int) -> list[Safepoint]:
        """The safepoints with an id, which need not be unique; unsigned, as in the IR."""
        return [s[index] for s in self._tables() for index in s.by_id.get(identity, ())]

    def by_function(self, name: str) -> list[Safepoint]:
        """The safepoints of the functions of that name, mangled or demangled."""
        found = []
        for safepoints in self._tables():
            with suppress(KeyError):
                found += safepoints.of(safepoints.object.function(name))
        return found

    def code_at(self, address: int) -> _Code | None:
        """The loaded code that holds an address, safepoint or not."""
        table = self._code
        at = bisect_right(table, address, key=_start)
        if at and address < table[at - 1].end:
            return table[at - 1]
        return None

    def _tables(self) -> tuple[ObjectSafepoints, ...]:
        with self._lock:
            return tuple(self._objects.values())
