"""Names as people wrote them: the C++ runtime's own demangler.

libstdc++ is always there: libllvmlite links against it.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

__all__ = ["demangle"]


@lru_cache(maxsize=1)
def _cxa_demangle() -> tuple[Any, Any] | None:
    """`__cxa_demangle` and the `free` its results need (Itanium C++ ABI, 3.4)."""
    try:
        function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    free = ctypes.CDLL(None).free
    free.restype = None
    free.argtypes = [ctypes.c_void_p]
    return function, free


def demangle(name: str) -> str:
    """The name a person wrote for the symbol `name`; `name` itself if it is not mangled.

    A prefix before the mangled part, as Numba's `cfunc.` and `cpython::`, is kept.
    """
    start = name.find("_Z")
    if start < 0 or (start > 0 and name[start - 1] not in ".:"):
        return name
    runtime = _cxa_demangle()
    if runtime is None:
        return name
    function, free = runtime
    result = function(name[start:].encode("utf-8", "surrogateescape"), None, None, None)
    if not result:
        return name
    try:
        return name[:start] + ctypes.string_at(result).decode("utf-8", "surrogateescape")
    finally:
        free(result)
