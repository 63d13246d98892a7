"""`attach`: from now on listeners hear what an engine loads and frees."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from time import monotonic_ns
from types import TracebackType
from typing import Any, Protocol

import gdbjit
from gdbjit import GDBJITError
from perfmap import PerfMapError

from .engines.arrival import hear_llvmlite
from .errors import JITListenerError
from .events import EventSink, JITEventListener, LoadedObject
from .timing import EngineCall, call_under_way, watchers

__all__ = ["Attachment", "attach"]

logger = logging.getLogger("listeners")


def attach(engine: Any | None, *listeners: JITEventListener) -> Attachment:
    """Tell `listeners` of every object that `engine` loads and frees, from now on.

    `engine` is an `ExecutionEngine` or `LLJIT` of llvmlite, an engine or code library of Numba,
    or None for every llvmlite engine of this process, Numba's and future ones included. What is
    loaded already is announced before this returns.

    It may also be one of `gdbjit.descriptors()`, which stands for any other engine that registers
    its code with debuggers, as wasmtime does with `Config.debug_info`. What such an engine loads
    and frees is announced at `refresh()`, or soon after it happens with `watch()`.

    A listener that is attached twice hears all twice. To tell engines apart attach one to each.

    Raises JITListenerError if `engine` is none of these or is closed, if this build of LLVM cannot
    be heard, or if one of `listeners` is none.
    """
    source: Source
    if isinstance(engine, gdbjit.Descriptor):
        from .engines.descriptor import engine_of

        source = engine_of(engine)
        subscribe = source.subscribe
    else:
        import_module("llvmlite.binding")  # first: who waits for this import may come here, too
        from .engines.llvmlite import engines

        source = engines
        heard = None if engine is None else _llvmlite_engine(engine)
        subscribe = partial(engines.subscribe, engine=heard)
    attachment = Attachment(source, *listeners)
    if attachment.asking:
        watchers.append(attachment)
    with ExitStack() as undo:
        undo.callback(attachment.end)
        subscribe(attachment)
        undo.pop_all()
    return attachment


class Source(Protocol):
    """What sends events to attachments: the engines of one kind."""

    def unsubscribe(self, sink: EventSink) -> None: ...

    def refresh(self) -> None: ...

    def watch(self, interval: float) -> None: ...


class Attachment:
    """Listeners attached to an engine. A context manager: leaving it detaches them."""

    def __init__(self, source: Source, *listeners: JITEventListener) -> None:
        for listener in listeners:
            _check_listener(listener)
        self.listeners = listeners
        self._source = source
        self._objects: dict[int, LoadedObject] = {}
        self._attached = True
        self._reported: set[int] = set()
        base = JITEventListener.notify_time_spent
        self.asking = [one for one in listeners if type(one).notify_time_spent is not base]
        """Those that want to know what time is spent."""

    @property
    def objects(self) -> tuple[LoadedObject, ...]:
        """The objects that have been announced and are still loaded, in the order of loading."""
        return tuple(self._objects.values())

    def refresh(self) -> None:
        """Announce now what has been loaded and freed since the last time.

        Only where a descriptor was attached to; of llvmlite's engines all is announced as it
        happens. Raises JITListenerError if the engine's list of objects is not well-formed.
        """
        self._source.refresh()

    def watch(self, interval: float = 0.1) -> None:
        """Refresh every `interval` seconds, in a thread of its own, as long as anything is heard.

        Everything is then announced at most `interval` seconds, and what it takes to read the
        list, after it has happened. What is freed sooner than that may never be announced.

        Raises JITListenerError if `interval` is not more than 0.
        """
        self._source.watch(interval)

    def detach(self) -> None:
        """Announce no more objects. Those announced already are followed to their end, so that
        no listener keeps code that is gone."""
        self._attached = False
        if not self._objects:
            self.end()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def end(self) -> None:
        """For the engine: there is nothing more to hear."""
        self._source.unsubscribe(self)
        if self in watchers:
            watchers.remove(self)

    # From the engine

    def loaded(self, obj: LoadedObject) -> None:
        """For the engine: `obj` has been loaded."""
        if not self._attached or obj.key in self._objects:
            return
        self._objects[obj.key] = obj
        call = call_under_way() if watchers else None
        interrupt = None
        for listener in self.listeners:
            start = monotonic_ns() if call else 0
            try:
                listener.notify_object_loaded(obj)
            except Exception as error:
                self._report(listener, "notify_object_loaded", obj, error)
            except BaseException as error:  # the others are told all the same
                interrupt = error
            if call:
                call.note(listener, obj, start)
        if interrupt is not None:
            raise interrupt

    def freeing(self, obj: LoadedObject) -> None:
        """For the engine: `obj` is about to be freed."""
        if self._objects.pop(obj.key, None) is None:
            return
        call = call_under_way() if watchers else None
        with ExitStack() as stack:  # all are told, the last first, also where one is interrupted
            for listener in self.listeners:
                stack.callback(self._tell_freeing, listener, obj, call)
        if not self._attached and not self._objects:
            self.end()

    def tell_time(self, listener: JITEventListener, call: EngineCall) -> None:
        """For the engine: `call`, in which objects came or went, is over."""
        try:
            listener.notify_time_spent(call)
        except Exception as error:
            self._report(listener, "notify_time_spent", call, error)

    def _tell_freeing(
        self, listener: JITEventListener, obj: LoadedObject, call: EngineCall | None
    ) -> None:
        start = monotonic_ns() if call else 0
        try:
            listener.notify_freeing_object(obj)
        except Exception as error:
            self._report(listener, "notify_freeing_object", obj, error)
        if call:
            call.note(listener, obj, start)

    def _report(
        self, listener: JITEventListener, method: str, argument: object, error: Exception
    ) -> None:
        """Log an error, which is to disturb neither the engine nor other listeners.

        Only the first one of each listener; those of ours say all without a traceback.
        """
        if id(listener) not in self._reported:
            self._reported.add(id(listener))
            logger.error(
                "%s.%s failed for %r: %s: %s; this listener's further errors are not reported",
                type(listener).__name__,
                method,
                argument,
                type(error).__name__,
                error,
                exc_info=not isinstance(error, JITListenerError | GDBJITError | PerfMapError),
            )


def _check_listener(listener: object) -> None:
    """Raises JITListenerError if it is none; logs what of it will never be called."""
    if not isinstance(listener, JITEventListener):
        what = "a class" if isinstance(listener, type) else "no listener"
        raise JITListenerError(
            f"{listener!r} is {what}: give instances of classes derived from JITEventListener,"
            " one by one"
        )
    known = [name for name in vars(JITEventListener) if name.startswith("notify")]
    for name in dir(type(listener)):
        if name.startswith("notify") and name not in known:
            logger.warning(
                "%s.%s is never called: a listener has %s",
                *(type(listener).__name__, name, ", ".join(known)),
            )


def _llvmlite_engine(engine: Any) -> Any:
    """The llvmlite engine that `engine` is, or that an object of Numba's works with."""
    import llvmlite.binding as llvm

    inner = engine
    for attribute in ("_codegen", "_engine", "_ee"):  # CodeLibrary, JITCPUCodegen, JitEngine
        inner = getattr(inner, attribute, inner)
    if not isinstance(inner, llvm.ExecutionEngine | llvm.LLJIT):
        raise JITListenerError(
            f"{engine!r} is no engine that can be attached to: give an ExecutionEngine or LLJIT of"
            " llvmlite, an engine of Numba, a gdbjit.Descriptor, or None for all of llvmlite's"
        )
    if inner.closed:
        raise JITListenerError(f"{engine!r} is closed")
    return inner


hear_llvmlite()
