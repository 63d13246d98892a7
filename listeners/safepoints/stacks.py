"""`Stacks`: Python functions that JIT'd code calls as safepoints, and where each thread stands.

JIT'd code calls a small function that LLVM compiles for this: it knows where its own return address
is and the caller's frame pointer, and hands them on. While the Python function runs, that anchor is
on its thread's list, so a collector that runs in it, or in another thread, can walk the stack.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import JITListenerError
from .native import compiled
from .walk import Anchor

__all__ = ["Entry", "Stacks"]

# LLVM's types that can be passed, and what they are in Python.
TYPES: dict[str, Any] = {
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "ptr": ctypes.c_uint64,
    "ptr addrspace(1)": ctypes.c_uint64,
}

# With a frame pointer of its own: the word it points to holds the caller's. The result comes in
# memory, zero at first: where the Python function raises, ctypes gives a result that is anything.
ENTRY = """
declare ptr @llvm.addressofreturnaddress.p0()
declare ptr @llvm.frameaddress.p0(i32)
define {result} @{name}({parameters}) uwtable "frame-pointer"="all" {{
  %slot = call ptr @llvm.addressofreturnaddress.p0()
  %frame = call ptr @llvm.frameaddress.p0(i32 0)
  %fp = load ptr, ptr %frame
  {prepare}call void inttoptr (i64 {callback} to ptr)({arguments})
  {give}
}}
"""
PREPARE = "%place = alloca {0}\n  store {0} zeroinitializer, ptr %place\n  "
GIVE = "%value = load {0}, ptr %place\n  ret {0} %value"

_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class Entry:
    """A function that JIT'd code can call at `address`."""

    address: int
    name: str
    _alive: tuple[Any, ...]


class Stacks:
    """The stacks of JIT'd code in this process, as far as they go through its entries."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._anchors: dict[int, list[Anchor]] = {}
        self._entries: list[Entry] = []

    def entry(self, function: Callable[..., Any], result: str = "void", *parameters: str) -> Entry:
        """A function for JIT'd code to call, which calls `function` in Python.

        `result` and `parameters` are LLVM's types: i8 to i64, float, double, ptr and references,
        `ptr addrspace(1)`. It lives as long as these Stacks, also if nobody keeps the Entry: code
        has its address. It takes most of a megabyte, so make one for each runtime function.

        No exception gets into JIT'd code. What `function` raises, SystemExit and KeyboardInterrupt
        included, is given to `sys.unraisablehook`, which prints it, and the call gives 0. The same
        goes for what it returns, if that is not of the type.

        Raises JITListenerError for another type.
        """
        try:
            types = [TYPES[parameter] for parameter in parameters]
            result_type = None if result == "void" else TYPES[result]
        except KeyError as error:
            raise JITListenerError(
                f"the type {error.args[0]!r}: one of {', '.join(TYPES)} can be passed"
            ) from None

        def call(slot: int, fp: int, place: int, *arguments: Any) -> None:
            anchors = self._own()
            outer = len(anchors)
            try:  # a signal may end the call from here on
                anchors.append(Anchor(slot, fp))
                returned = function(*arguments)
                if result_type:
                    result_type.from_address(place).value = returned
            finally:
                del anchors[outer:]

        own = ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64
        prototype = ctypes.CFUNCTYPE(None, *own, *types)
        callback = prototype(call)
        names = [f"{parameter} %a{number}" for number, parameter in enumerate(parameters)]
        place = "ptr %place" if result_type else "ptr null"
        name = f"jitlisten_entry_{next(_numbers)}"
        text = ENTRY.format(
            name=name,
            result=result,
            parameters=", ".join(names),
            callback=ctypes.cast(callback, ctypes.c_void_p).value,
            arguments=", ".join(("ptr %slot", "ptr %fp", place, *names)),
            prepare=PREPARE.format(result) if result_type else "",
            give=GIVE.format(result) if result_type else "ret void",
        )
        engine = compiled(text)
        made = Entry(engine.get_function_address(name), name, (engine, callback))
        self._entries.append(made)
        return made

    def anchors(self, thread: int | None = None) -> list[Anchor]:
        """Those of a thread, by its `threading.get_ident()`, or of this one: innermost first.

        They are what `walk` wants. They stay true while the thread is in the function that an entry
        has called; a runtime sees to that.
        """
        ident = threading.get_ident() if thread is None else thread
        return self._anchors.get(ident, [])[::-1]

    def threads(self) -> dict[int, list[Anchor]]:
        """The anchors of every thread that has any, innermost first."""
        return {ident: anchors[::-1] for ident, anchors in self._anchors.copy().items() if anchors}

    def _own(self) -> list[Anchor]:
        """This thread's anchors. Those of a thread that has ended are dropped with it."""
        try:
            own: _Own = self._local.own
        except AttributeError:
            own = self._local.own = _Own(self._anchors)
        return own.anchors


class _Own:
    """A thread's anchors, in the list of all while the thread lives."""

    def __init__(self, everyones: dict[int, list[Anchor]]) -> None:
        self._ident, self._everyones = threading.get_ident(), everyones
        self.anchors: list[Anchor] = []
        everyones[self._ident] = self.anchors

    def __del__(self) -> None:
        if self._everyones.get(self._ident) is self.anchors:
            del self._everyones[self._ident]
