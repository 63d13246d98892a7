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
        names = self._names
        if obj.key in names.loaded:
            return
        entries = [(address, size, demangle(name)) for name, address, size in obj.functions]
        names.loaded[obj.key] = entries
        for address, _, _ in entries:
            names.freed.pop(address, None)
        names.file.add_all(entries)

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        names = self._names
        entries = names.loaded.pop(obj.key, [])
        names.freed.update((entry[0], entry) for entry in entries)
        names.file.remove_all(address for address, _, _ in entries)


class _Names:
    """The names of this process's code, whichever `PerfMap` has heard of it: the file is one."""

    def __init__(self) -> None:
        self.file = MapFile()
        self.loaded: dict[int, list[Entry]] = {}
        """Of what is loaded, by the object's key."""
        self.freed: dict[int, Entry] = {}
        """By address, of what was freed last there."""
        atexit.register(self._name_freed)

    def _name_freed(self) -> None:
        if self.freed:
            self.file.add_all([*self.freed.values(), *chain(*self.loaded.values())])


_names = cache(_Names)
