"""perf sees what is loaded: a listener over `perfmap`."""

from __future__ import annotations

import atexit
from functools import cache
from itertools import chain

from perfmap import MapFile

from .demangle import demangle
from .events import JITEventListener, LoadedObject

__all__ = ["PerfMap"]

Entry = tuple[int, int, str]  # address, size, name


class PerfMap(JITEventListener):
    """Names the functions of loaded objects in `/tmp/perf-PID.map`, for `perf report`.

    The file holds what is loaded: the names of an object go when it is freed, since other code
    may come to the same addresses. perf reads it when it makes the report, mostly after the
    program has ended, and then what was freed last at an address still has samples there: at
    the end of the program its names come back, where nothing has taken its place.
    """

    def __init__(self) -> None:
        self._names = _names()

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        self._names.add(obj)

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        self._names.remove(obj)


class _Names:
    """The names of this process's code, whichever `PerfMap` has heard of it: the file is one."""

    def __init__(self) -> None:
        self._file = MapFile()
        self._loaded: dict[int, list[Entry]] = {}
        self._freed: dict[int, Entry] = {}
        atexit.register(self._name_freed)

    def add(self, obj: LoadedObject) -> None:
        if obj.key in self._loaded:
            return
        entries = [(address, size, demangle(name)) for name, address, size in obj.functions]
        self._loaded[obj.key] = entries
        for address, _, _ in entries:
            self._freed.pop(address, None)
        self._file.add_all(entries)

    def remove(self, obj: LoadedObject) -> None:
        entries = self._loaded.pop(obj.key, [])
        self._freed.update((entry[0], entry) for entry in entries)
        self._file.remove_all(address for address, _, _ in entries)

    def _name_freed(self) -> None:
        if self._freed:
            self._file.add_all([*self._freed.values(), *chain(*self._loaded.values())])


_names = cache(_Names)
