"""All of llvmlite's engines in this process: MCJIT and LLJIT, over either linker. Numba's too.

From the import of this module on, the llvmlite calls that load or free code pass through here
(`calls`). What a call has loaded stands in LLVM's own list (`llvmdescriptor`) with exact
addresses, or, over JITLink, was prepared here to tell them (`jitlink`). It is announced before
the call returns, so that nobody has the new code's address yet; and what a call will free is
announced before it goes to LLVM (`objects`).

Everything here runs with llvmlite's lock held.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import llvmlite.binding as llvm

import gdbjit

from ..errors import JITListenerError
from ..events import EventSink, LoadedObject
from ..objectfile import ObjectFile
from ..timing import call_under_way, engine_call, watchers
from . import jitlink
from .calls import around, complete, lock, pointer_of
from .llvmdescriptor import LLVMDescriptor, find_descriptor
from .objects import Engine, Loaded, Objects
from .targets import TargetOptions

__all__ = ["engines"]

logger = logging.getLogger("listeners")


class Engines:
    """Every llvmlite engine of the process, and who listens to it."""

    def __init__(self) -> None:
        self._descriptor: LLVMDescriptor | None = None
        self._searched = False
        self._problem = "LLVM's list of objects is being looked for"
        """Why there is no descriptor."""
        self._newest = 0
        """The address of the newest entry of LLVM's list that is known here."""
        self._objects = Objects()

    def install(self) -> None:
        """Hear of every call that makes an engine, loads code or frees it."""
        around("LLVMPY_CreateTargetMachine", self._create_target_machine)
        around("LLVMPY_CreateMCJITCompiler", self._create_mcjit)
        around("LLVMPY_MCJITAddObjectFile", self._add_object_file)
        around("LLVMPY_FinalizeObject", self._timed("finalize", self._finalize))
        around("LLVMPY_RunStaticConstructors", self._timed("finalize", self._finalize))
        around("LLVMPY_RunStaticDestructors", self._timed("finalize", self._finalize))
        around("LLVMPY_GetFunctionAddress", self._address)
        around("LLVMPY_GetGlobalValueAddress", self._address)
        around("LLVMPY_DisposeExecutionEngine", self._timed("close", self._dispose_mcjit))
        around("LLVMPY_CreateLLJITCompiler", self._create_lljit)
        around("LLVMPY_LLJIT_Link", self._timed("link", self._link))
        around("LLVMPY_LLJITLookup", self._timed("look up", self._look_up))
        dispose_tracker = self._timed("unload", self._dispose_tracker)
        around("LLVMPY_LLJIT_Dylib_Tracker_Dispose", dispose_tracker)
        around("LLVMPY_LLJITDispose", self._timed("close", self._dispose_lljit))

    # Who listens

    def subscribe(self, sink: EventSink, engine: Any | None) -> None:
        """Send `sink` the events of llvmlite's `engine`, or of all of them, from now on.

        What is loaded is announced at once. Raises JITListenerError if this build of LLVM
        cannot be heard.
        """
        with lock:
            if not (self._descriptor or self._search()):
                raise JITListenerError(self._problem)
            heard = None if engine is None else self._engine(engine, isinstance(engine, llvm.LLJIT))
            if heard is not None:
                self._settle(heard, engine)
                if heard.uses_jitlink and heard.target is None:
                    self._report_unheard(heard, [jitlink.UNKNOWN_TARGET])
            with engine_call("attach"):
                self._objects.subscribe(sink, heard)

    def unsubscribe(self, sink: EventSink) -> None:
        with lock:
            self._objects.unsubscribe(sink)

    def refresh(self) -> None:
        """Nothing: all is announced as it happens."""

    def watch(self, interval: float) -> None:
        """Nothing, for the same reason."""

    def _timed(self, action: str, replacement: Callable[..., Any]) -> Callable[..., Any]:
        """`replacement`, its time measured if anybody asks."""

        def run(call: Callable[..., Any], handle: Any, *arguments: Any) -> Any:
            if not watchers:
                return replacement(call, handle, *arguments)
            with engine_call(f"{self._kind(handle)}: {action}"):
                return replacement(call, handle, *arguments)

        return run

    def _kind(self, handle: Any) -> str:
        """What sort of engine a handle of llvmlite's is of, or a tracker is."""
        engine: Engine | None = getattr(pointer_of(handle), "engine", None)
        return engine.kind if engine else "llvmlite"

    # Calls that make an engine

    def _create_target_machine(self, call: Callable[..., Any], *arguments: Any) -> Any:
        machine = call(*arguments)
        if machine:
            machine.made_with = arguments
        return machine

    def _create_mcjit(self, call: Callable[..., Any], *arguments: Any) -> Any:
        handle = call(*arguments)
        if handle:
            handle.engine = Engine(made_here=True)
        return handle

    def _create_lljit(
        self, call: Callable[..., Any], machine: Any, suppress: Any, uses_jitlink: Any, error: Any
    ) -> Any:
        handle = call(machine, suppress, uses_jitlink, error)
        if handle:
            engine = Engine(made_here=True, is_lljit=True, uses_jitlink=bool(uses_jitlink))
            if uses_jitlink and machine is None:
                engine.target = TargetOptions.of_host()
            elif uses_jitlink and (arguments := getattr(pointer_of(machine), "made_with", None)):
                engine.target = TargetOptions.from_call(*arguments)
            handle.engine = engine
        return handle

    # Calls that load code

    def _finalize(self, call: Callable[..., Any], handle: Any) -> None:
        descriptor = self._descriptor or self._search()
        try:
            call(handle)
        finally:  # Ctrl-C comes when LLVM is done with it
            if descriptor:
                self._look(self._engine(handle, is_lljit=False))

    def _address(self, call: Callable[..., Any], handle: Any, name: bytes) -> Any:
        # Mostly this loads nothing: no detours before that is known.
        if watchers and not call_under_way():
            with engine_call(f"{self._kind(handle)}: address"):
                return self._address(call, handle, name)
        descriptor = self._descriptor or self._search()
        address = None
        try:
            address = call(handle, name)
        finally:
            if descriptor and (descriptor.words[2] != self._newest or self._objects.waiting):
                self._look(self._engine(handle, is_lljit=False), executable=bool(address))
        return address

    def _add_object_file(self, call: Callable[..., Any], handle: Any, file: Any) -> None:
        descriptor = self._descriptor or self._search()
        try:
            call(handle, file)
        finally:
            if descriptor:
                self._look(self._engine(handle, is_lljit=False), executable=False)

    def _link(self, call: Callable[..., Any], handle: Any, name: bytes, *arguments: Any) -> Any:
        if jitlink.is_ours(name):
            probe = call(handle, name, *arguments)
            if probe:
                probe.is_probe = True
            return probe
        if not (self._descriptor or self._search()):
            return call(handle, name, *arguments)
        engine = self._engine(handle, is_lljit=True)
        if engine.uses_jitlink is None and self._objects.heard:
            self._settle(engine, handle)
        link = None
        if engine.uses_jitlink:
            try:
                link = jitlink.Link(engine.libraries, name, engine.target, *arguments)
            except Exception:  # whatever we could not prepare, the program's link is made as it is
                logger.exception("the library %r is linked without being heard of", name)
        given = link.arguments if link else arguments
        tracker, interrupt = complete(call, handle, name, *given)
        self._note_tracker(tracker, engine, name)
        try:
            if link:
                self._linked_by_jitlink(engine, handle, name, link, bool(tracker))
            else:
                self._linked_by_runtimedyld(engine, name, arguments, bool(tracker))
        except Exception:  # nor does it fail afterwards
            logger.exception("the library %r is not heard of, or not all of it", name)
        if interrupt:
            raise interrupt
        return tracker

    def _linked_by_jitlink(
        self, engine: Engine, handle: Any, name: bytes, link: jitlink.Link, succeeded: bool
    ) -> None:
        self._objects.add(
            {
                self._objects.new_key(): _jitlinked(engine, name, file, addresses)
                for file, addresses in link.finish(succeeded)
            }
        )
        if succeeded:
            self._add_drawn(handle, engine, link.drawn)
            if self._objects.heard:
                self._report_unheard(engine, link.unheard)

    def _linked_by_runtimedyld(
        self, engine: Engine, name: bytes, arguments: tuple[Any, ...], succeeded: bool
    ) -> None:
        if succeeded and engine.latent:
            engine.latent[name] = _given_symbols(arguments)
        looked = self._look(engine, name)
        if succeeded and (len(looked) != arguments[1] or engine.latent):
            here = [loaded for loaded in looked if loaded.library == name]
            self._note_latent(engine, name, arguments, here)

    def _look_up(
        self, call: Callable[..., Any], handle: Any, library: bytes, symbol: bytes, *arguments: Any
    ) -> Any:
        if not (self._descriptor or self._search()):
            return call(handle, library, symbol, *arguments)
        engine = self._engine(handle, is_lljit=True)
        tracker, interrupt = complete(call, handle, library, symbol, *arguments)
        self._note_tracker(tracker, engine, library)
        if tracker:
            drawn = jitlink.materialised(engine.libraries, [(library, symbol)])
            self._add_drawn(handle, engine, drawn)
        elif engine.libraries:
            jitlink.forget_symbols_in(arguments[-1])
        self._look(engine, library)
        if interrupt:
            raise interrupt
        return tracker

    def _note_tracker(self, tracker: Any, engine: Engine, library: bytes) -> None:
        if tracker:
            engine.trackers += 1
            tracker.engine, tracker.library = engine, library

    # Calls that free it

    def _dispose_mcjit(self, call: Callable[..., Any], handle: Any) -> None:
        pointer = pointer_of(handle)
        if not _goes_now(pointer):
            return
        engine: Engine | None = getattr(pointer, "engine", None)
        self._free(lambda: _keys(engine), lambda: call(pointer), engine)

    def _dispose_tracker(self, call: Callable[..., Any], tracker: Any, error: Any) -> Any:
        pointer = pointer_of(tracker)
        if not _goes_now(pointer):
            return False
        if getattr(pointer, "is_probe", False):
            return call(pointer, error)
        engine: Engine | None = getattr(pointer, "engine", None)
        name = getattr(pointer, "library", b"")
        whole = False
        if engine:
            engine.trackers -= 1
            engine.libraries.pop(name, None)
            engine.latent.pop(name, None)
            whole = engine.closed and not engine.trackers and engine.made_here

        def freed() -> list[int]:
            return [
                key for key in _keys(engine) if whole or self._objects.loaded[key].library == name
            ]

        if self._objects.busy:  # then llvmlite will not wait for the error
            error = ctypes.byref(ctypes.c_char_p())
        return self._free(freed, lambda: call(pointer, error), engine if whole else None)

    def _dispose_lljit(self, call: Callable[..., Any], handle: Any) -> None:
        pointer = pointer_of(handle)
        if not _goes_now(pointer):
            return
        engine: Engine | None = getattr(pointer, "engine", None)
        ended = None
        if engine:
            engine.closed = True
            if not engine.trackers and (engine.made_here or engine.uses_jitlink):
                ended = engine
        self._free(lambda: _keys(ended), lambda: call(pointer), ended)

    def _free(
        self, freed: Callable[[], list[int]], call: Callable[[], Any], ended: Engine | None
    ) -> Any:
        """Make a call that frees the objects `freed()`, and ends an engine if one is given."""

        def free() -> Any:
            result = self._freed(call())
            if ended:
                self._objects.end(ended)
            return result

        return self._objects.free(freed, free)

    def _freed(self, result: Any) -> Any:
        """After a call that frees: see what has gone of which that could not be known before."""
        if self._descriptor:
            # The head may be unknown yet: of a call that this one was made in the middle of.
            head = self._descriptor.words[2]
            self._newest = head if head in self._objects.loaded else 0
            if self._objects.strays:
                live = {entry for entry, _, _ in self._descriptor.entries()}
                for key in [key for key in self._objects.strays if key > 0 and key not in live]:
                    self._objects.forget(key)
        return result

    # What the calls have done

    def _search(self) -> LLVMDescriptor | None:
        """Look for LLVM's list, once, and note what is in it already; None if there is none."""
        if not self._searched:
            self._searched = True
            try:
                self._descriptor = find_descriptor()
                if self._descriptor.visible:
                    gdbjit.share_lock(self._descriptor.visible, lock)
            except Exception as error:  # whatever it is, the program's own call goes on
                self._problem = f"cannot hear llvmlite's engines: {error}"
                logger.warning("%s", self._problem)
            else:
                self._look(None, executable=False)
                self._objects.announce_executable(None)
        return self._descriptor

    def _engine(self, handle: Any, is_lljit: bool) -> Engine:
        """The engine of a handle of llvmlite's; one we did not see made gets its record now."""
        pointer = pointer_of(handle)
        engine: Engine | None = getattr(pointer, "engine", None)
        if engine is None:
            linker = None if is_lljit else False
            engine = Engine(made_here=False, is_lljit=is_lljit, uses_jitlink=linker)
            if pointer:  # that is, if it is not closed
                pointer.engine = engine
        return engine

    def _settle(self, engine: Engine, handle: Any) -> None:
        """Find out over which linker an LLJIT works that we did not see made: by trying."""
        if engine.uses_jitlink is not None:
            return
        assert self._descriptor
        name = jitlink.new_symbol().decode()
        library = llvm.JITLibraryBuilder().add_ir(f"define void @{name}() {{ ret void }}")
        before = self._descriptor.words[2]
        with library.export_symbol(name).link(_borrowed(handle), name):
            engine.uses_jitlink = self._descriptor.words[2] == before

    def _report_unheard(self, engine: Engine, reasons: Iterable[str]) -> None:
        for reason in reasons:
            if reason not in engine.reported:
                engine.reported.add(reason)
                logger.warning("linked by JITLink without being heard of: %s", reason)

    def _look(
        self, engine: Engine | None, library: bytes | None = None, executable: bool = True
    ) -> list[Loaded]:
        """Note, and announce, what LLVM's list has that it had not before."""
        assert self._descriptor
        if self._objects.waiting and executable:
            self._objects.announce_executable(engine)
        newest = self._descriptor.words[2]
        if newest == self._newest:
            return []
        looked = {}
        for entry, address, size in reversed(self._descriptor.entries(until=self._objects.loaded)):
            loaded = Loaded(partial(self._descriptor.read, address, size), engine, library)
            if engine is not None and engine.latent:
                self._correct_library(engine, loaded)
            looked[entry] = loaded
        self._newest = newest
        self._objects.add(looked, executable)
        return list(looked.values())

    def _add_drawn(
        self, handle: Any, engine: Engine, drawn: Iterable[tuple[jitlink.Library, jitlink.Element]]
    ) -> None:
        """Note what a call has brought into memory that an earlier one linked."""
        found = {}
        for library, element in drawn:
            try:
                addresses = jitlink.section_addresses(_borrowed(handle), library, element)
            except RuntimeError as error:
                logger.warning("an object is loaded without being heard of: %s", error)
                continue
            element.in_memory = True
            key = self._objects.new_key()
            found[key] = _jitlinked(engine, library.name, element.file, addresses)
        self._objects.add(found)

    def _note_latent(
        self, engine: Engine, library: bytes, arguments: tuple[Any, ...], here: list[Loaded]
    ) -> None:
        """Note which symbols of a new library are not in memory, where `here` is not all of it."""
        elements, count = arguments[:2]
        engine.latent.pop(library, None)
        if len(here) < count and len(here) < sum(
            elements[index].element_kind != jitlink.LIBRARY for index in range(count)
        ):
            symbols = _given_symbols(arguments).difference(*map(_symbols, here))
            if symbols:
                engine.latent[library] = symbols

    def _correct_library(self, engine: Engine, loaded: Loaded) -> None:
        """Where one look-up brings objects of several libraries, find the one this is part of."""
        symbols = _symbols(loaded)
        for library in (loaded.library, *engine.latent):  # names may be the same in several
            latent = engine.latent.get(library or b"", set())
            if latent & symbols:
                latent -= symbols
                loaded.library = library
                return


def _goes_now(pointer: Any) -> bool:
    """Whether this is the first call that disposes of the thing.

    llvmlite notes that it is closed only after the call, in which a listener may close it, too.
    """
    gone: bool = getattr(pointer, "gone", False)
    pointer.gone = True
    return not gone


def _keys(engine: Engine | None) -> list[int]:
    """The objects of an engine."""
    return list(engine.objects) if engine else []


def _jitlinked(
    engine: Engine, library: bytes, file: ObjectFile, addresses: dict[int, int]
) -> Loaded:
    """An object of JITLink's, its section of index i at `addresses[i]`."""
    make = partial(LoadedObject, lambda: file, ctypes.string_at, addresses)
    return Loaded(make, engine, library)


def _given_symbols(arguments: tuple[Any, ...]) -> set[bytes]:
    """The symbols that what a link is given defines, as far as it can be read."""
    found = set()
    for kind, value in jitlink.given_elements(*arguments[:2]):
        with suppress(JITListenerError, RuntimeError):
            found |= jitlink.defined_symbols(kind, value)
    return found


def _symbols(loaded: Loaded) -> set[bytes]:
    try:
        return jitlink.defined_symbols(jitlink.OBJECT, loaded.object().elf)
    except JITListenerError:
        return set()


def _borrowed(handle: Any) -> Any:
    """A Python object for an LLJIT that belongs to another."""
    lljit = llvm.LLJIT(pointer_of(handle))
    lljit._owned = True  # llvmlite's word for "not mine to dispose of"
    return lljit


engines = Engines()
engines.install()
