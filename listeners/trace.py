"""A timeline of what a program loads and unloads, for Perfetto and chrome://tracing.

The file is in the JSON Array Format of the Trace Event Format: an array, whose end may be missing.
Events are appended with one write, so it can be read at any moment, also after the program has
been killed, and any number of processes can share it.

Source: "Trace Event Format", N. Duca and D. Sinclair, of the Chromium project.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import stat
import sys
import threading
from pathlib import Path
from time import monotonic_ns
from typing import Any

from .errors import JITListenerError
from .events import JITEventListener, LoadedObject
from .timing import EngineCall

__all__ = ["Trace", "is_trace"]

logger = logging.getLogger("listeners")

BEGIN, SEPARATOR = b"[\n", b",\n"
FIRST_EVENT = b'{"ph": "'  # as every event begins
LONGEST_NAME = 1000  # characters

Event = dict[str, Any]


class Trace(JITEventListener):
    """Writes when objects are loaded and freed, and how long engines and listeners take.

    Each object is a nestable async event ("b", "e") from load to unload, or to the end of the
    program, with its size in bytes and its section addresses. What an engine does, and what each
    listener does meanwhile, are complete events ("X") of the thread. Times are CLOCK_MONOTONIC.

    Events are appended to the file at `path`, by forked children, too, and by all that are given
    the path: remove it before a new run. Raises JITListenerError if it cannot be written or is
    not a trace. If it cannot be written later, that is logged once, and events are missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        _begin(self.path)
        self._process = 0
        """The one that the following are of: a forked child writes its own."""
        self._threads: set[int] = set()
        """Those that have a name in the file."""
        self._loaded: dict[int, LoadedObject] = {}
        """Those that have begun in the file and have not ended, by key."""
        self._failed = False
        atexit.register(self._end_all)

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        if obj.key not in self._loaded and self._write([_load(obj)]):
            self._loaded[obj.key] = obj

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        if obj.key in self._loaded and self._write([_unload(obj)]):
            del self._loaded[obj.key]

    def notify_time_spent(self, call: EngineCall) -> None:
        if not any(one.listener is self for one in call.notifications):
            return  # it is about another engine than those this is attached to
        in_listeners = sum(one.end - one.start for one in call.notifications)
        own = (call.end - call.start - in_listeners) / 1000
        events = [_time("engine", call.name, call.start, call.end, without_listeners_us=own)]
        for listener, obj, start, end in call.notifications:
            name = type(listener).__name__
            events.append(_time("listener", name, start, end, object=_name(obj), key=obj.key))
        self._write(events)

    def _end_all(self) -> None:
        """At the end of the program."""
        if self._process == os.getpid() and self._loaded:
            objects, self._loaded = self._loaded, {}
            self._write([_unload(obj) for obj in objects.values()])

    def _write(self, events: list[Event]) -> bool:
        """Append events of this thread; gives whether they are in the file."""
        process, thread = os.getpid(), threading.get_native_id()
        if process != self._process:
            self._threads = set()
            inherited = map(_load, self._loaded.values())
            events = [_named("process", " ".join(sys.orig_argv)), *inherited, *events]
        if thread not in self._threads:
            events = [_named("thread", threading.current_thread().name), *events]
        common = {"pid": process, "tid": thread}
        data = b"".join(json.dumps(event | common).encode() + SEPARATOR for event in events)
        try:
            _append(self.path, data)
        except OSError as error:
            if not self._failed:
                self._failed = True
                reason = f"cannot write {str(self.path)!r}: {error.strerror}"
                logger.warning("%s; events are missing in this trace from here on", reason)
            return False
        if process != self._process and (util := sys.modules.get("multiprocessing.util")):
            # Its forked children leave by os._exit, after this.
            util.Finalize(None, self._end_all, exitpriority=0)
        self._process = process
        self._threads.add(thread)
        return True


# Events: what is common to all, pid and tid, is added when they are written


def _load(obj: LoadedObject) -> Event:
    args: dict[str, Any] = {"key": obj.key}
    try:
        args["size"] = len(obj.elf)
        args["sections"] = [
            {"name": _text(one.name), "address": hex(one.address), "size": one.size}
            for one in obj.sections
        ]
    except JITListenerError as error:
        args["error"] = _text(str(error))
    return _object("b", obj) | {"args": args}


def _unload(obj: LoadedObject) -> Event:
    return _object("e", obj)


def _object(phase: str, obj: LoadedObject) -> Event:
    # Keys are numbers of this process.
    identity = {"cat": "object", "id2": {"local": hex(obj.key)}}
    return {"ph": phase, "name": _name(obj), "ts": monotonic_ns() / 1000} | identity


def _time(category: str, name: str, start: int, end: int, **args: object) -> Event:
    times = {"ts": start / 1000, "dur": (end - start) / 1000}
    return {"ph": "X", "cat": category, "name": name, "args": args} | times


def _named(what: str, name: str) -> Event:
    return {"ph": "M", "name": f"{what}_name", "ts": 0, "args": {"name": _text(name)}}


def _name(obj: LoadedObject) -> str:
    try:
        return _text(obj.name)
    except JITListenerError:
        return f"object {obj.key}, malformed"


def _text(name: str) -> str:
    """As a viewer can show it: not too long, and without lone surrogates."""
    return name[:LONGEST_NAME].encode(errors="replace").decode()


# The file


def is_trace(descriptor: int) -> bool:
    """Whether an open file is one of ours, by how it begins; an empty one may become one.

    Raises OSError if it cannot be read.
    """
    start = os.pread(descriptor, len(BEGIN + FIRST_EVENT), 0)
    return start in (b"", BEGIN, BEGIN + FIRST_EVENT)


def _begin(path: Path) -> None:
    """Make the file, or see that events can be appended to what is there."""
    try:
        with open(path, "r+b", buffering=0, opener=_open_or_make) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise JITListenerError(f"{str(path)!r} is not a regular file: give another path")
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may be here, too
            size = os.fstat(file.fileno()).st_size
            end = os.pread(file.fileno(), 2, max(size - 2, 0))
            if not size:
                file.write(BEGIN)
            elif not is_trace(file.fileno()) or end not in (BEGIN, SEPARATOR):
                raise JITListenerError(
                    f"{str(path)!r} is not a trace that can be continued: remove it, or give"
                    " another path"
                )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JITListenerError(
            f"cannot write {str(path)!r}: {reason}; give a path that can be written"
        ) from error


def _open_or_make(path: str, _flags: int) -> int:
    # Without O_NONBLOCK, a FIFO would wait for its reader.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def _append(path: Path, data: bytes) -> None:
    """Append whole events or nothing. Raises OSError."""
    # Nothing stays open that the program could close, or take the number of for a file of its own.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        if written and os.fstat(descriptor).st_size == end:
            os.ftruncate(descriptor, end - written)
        raise
    finally:
        os.close(descriptor)
