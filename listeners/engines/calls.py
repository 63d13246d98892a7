"""Being there when llvmlite calls LLVM.

llvmlite calls libllvmlite through a table of wrappers, each of which takes a process-wide lock
and then calls a ctypes function. `around` puts a function of ours in the place of that ctypes
function: it runs with the lock held, knows the arguments, and is in whatever way the wrapper is
reached. A call that has nothing to do with loading code is left alone, and costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, ParamSpec

from llvmlite.binding import ffi

__all__ = ["around", "complete", "lock", "pointer_of"]

P = ParamSpec("P")

lock = ffi.lib._lock._lock
"""llvmlite's re-entrant lock, held around every call into LLVM."""


class _Around(partial[Any]):
    """Stands in for a ctypes function, in a wrapper of llvmlite's, which may set its types."""

    @property
    def argtypes(self) -> Any:
        return self.args[0].argtypes

    @argtypes.setter
    def argtypes(self, types: Any) -> None:
        self.args[0].argtypes = types

    @property
    def restype(self) -> Any:
        return self.args[0].restype

    @restype.setter
    def restype(self, type_: Any) -> None:
        self.args[0].restype = type_


def around(name: str, replacement: Callable[Concatenate[Callable[..., Any], P], Any]) -> None:
    """From now on llvmlite's call of `name` runs `replacement(function, *args)`.

    `function` is what was to be called; calling it, and what to return, is the replacement's
    business.
    """
    wrapper = getattr(ffi.lib, name)
    wrapper._cfn = _Around(replacement, wrapper._cfn)


def pointer_of(handle: Any) -> Any:
    """The C pointer of a handle of llvmlite's: itself one, or a Python object with one.

    llvmlite keeps the very pointer that a call has returned until it disposes of it, so what is
    known of the thing can be kept in attributes of the pointer.
    """
    return getattr(handle, "_ptr", handle)


def complete(call: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
    """What a call of LLVM's gives, and what interrupted the program as it came back.

    A signal's handler runs, and may raise as Ctrl-C does, when a call that Python makes has ended:
    what that gave would be lost. Here it is in a list by then.
    """
    given: list[Any] = []
    try:
        given.extend(map(call, *zip(arguments)))
    except BaseException as interrupt:
        if not given:
            raise
        return given[0], interrupt
    return given[0], None
