"""Names as people wrote them: those that Numba has mangled, and those of C++.

Numba borrows the mangling of C++ for names that C++ does not have: `_ZN3app4meanB2v1B38c8tJ…E` is
`app.mean(array(float64, 1d, C))` to who wrote it, in the words that Numba prints a signature in.
What only leads to a function says so: `app.mean(float64) [cpython wrapper]`.

All other names are C++'s, and libstdc++ demangles them. It is always there: libllvmlite links
against it. Sources: Itanium C++ ABI, 5.1; Numba's `core/itanium_mangler.py` and `core/funcdesc.py`.
"""

from __future__ import annotations

import ctypes
import re
from functools import lru_cache
from typing import Any

__all__ = ["demangle", "numba_name"]


def demangle(name: str) -> str:
    """The name a person wrote for the symbol `name`; `name` itself if it is not mangled."""
    start = name.find("_Z")
    return name if start < 0 else numba_name(name) or _cxx_name(name, start)


# C++


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


def _cxx_name(name: str, start: int) -> str:
    """As c++filt has it; a prefix before the mangled part, which begins at `start`, is kept."""
    if start > 0 and name[start - 1] not in ".:":
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


# Numba

# What stands before the mangled name, and what the function then is to the one of that name.
_PREFIX = re.compile(
    r"(?P<wrapper>cfunc)\.|__(?P<loop>g?ufunc)__\.|\.kernel\.\d+___(?P<kernel>g?ufunc)__\."
    r"|(?P<finalizer>finalize)_"
)
_BUILTIN = {
    "v": "none", "b": "bool", "f": "float32", "d": "float64", "Dh": "float16",
    "a": "int8", "s": "int16", "i": "int32", "x": "int64",
    "h": "uint8", "t": "uint16", "j": "uint32", "y": "uint64",
}  # fmt: skip
_TYPE = re.compile(r"(Dh|[vbfdasixhtjy])|Li(-?\d+)E")
_LENGTH = re.compile(r"\d{1,6}")
_UNIQUE = re.compile(r"v\d+")  # the tag that each function of Numba's has
_GENERATOR = re.compile(r".* generator\(func=.*, args=\((.*?),?\), has_finalizer=\w+\)", re.DOTALL)
# An array's type among them.
_ARRAY = re.compile(r"Array\(([^()]+), (\d+), '(\w)', (True|False), aligned=(True|False)\)")
# What C++ has no letter for is written in hexadecimal, `_` itself is not. So in names of functions,
# where `conv_2d` is likelier than `conv-`, only angle brackets and letters of UTF-8 are read so.
_BRACKETS = re.compile(r"_3c(\w+?)_3e")
_LETTER = re.compile(r"_[c-f][0-9a-f](?:_[89ab][0-9a-f])+")
_CHARACTER = re.compile(rf"_(?:2[0-9a-f]|3[a-f]|40|5[b-e]|60|7[b-e])|{_LETTER.pattern}")
_DEEPEST = 50  # types within types: one of a million would be no name of Numba's


@lru_cache(maxsize=4096)
def numba_name(name: str) -> str | None:
    """The name that a function of Numba's was given in Python; None if `name` is not Numba's."""
    start = name.find("_Z")
    prefix = _PREFIX.fullmatch(name, 0, max(start, 0))
    if start < 0 or (start > 0 and not prefix):
        return None
    mangled, _, clone = name[start + 2 :].partition(".")
    try:
        function, arguments = _Mangled(mangled).function()
    except _NotNumbaError:
        return None
    roles = []
    if function[0] == "cpython" and len(function) > 1:
        del function[0]
        roles = ["cpython wrapper"]
    if match := function[-1] == "next" and _GENERATOR.fullmatch(arguments):
        del function[-1]
        arguments = _ARRAY.sub(_array, match[1])
        roles.insert(0, "next")
    if prefix and (kind := prefix.lastgroup):
        roles = [f"{prefix[kind]} {kind}" if kind != "finalizer" else kind]
    if clone:
        roles.append(f"clone .{clone}")
    return f"{'.'.join(function)}({arguments})" + "".join(f" [{role}]" for role in roles)


class _NotNumbaError(Exception):
    pass


class _Mangled:
    """Reads a mangled name, without its `_Z`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def function(self) -> tuple[list[str], str]:
        """The parts of a function's name, and its arguments."""
        parts, parameters, tags = self._identifier()
        arguments = []
        while self._at < len(self._text):
            arguments.append(self._type())
        listed = ", ".join(arguments)
        unique = tags and _UNIQUE.fullmatch(tags[0])
        if parameters or not (unique or (parts[-1] == "next" and _GENERATOR.fullmatch(listed))):
            raise _NotNumbaError
        return [_LETTER.sub(_character, _BRACKETS.sub(r"<\1>", part)) for part in parts], listed

    def _identifier(self) -> tuple[list[str], list[str], list[str]]:
        """The parts of a dotted name, its parameters, its ABI tags."""
        nested = self._skip("N")
        parts = [self._string()]
        while nested and self._digit():
            parts.append(self._string())
        parameters, tags = [], []
        if self._skip("I"):
            while not self._skip("E"):
                parameters.append(self._type())
        while self._skip("B"):
            tags.append(self._string())
        if nested and not self._skip("E"):
            raise _NotNumbaError
        return parts, parameters, tags

    def _type(self) -> str:
        """A type, or a value that is a parameter of one, as Numba prints it."""
        if match := _TYPE.match(self._text, self._at):
            self._at = match.end()
            return match[2] or _BUILTIN[match[1]]
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _NotNumbaError
        parts, parameters, _ = self._identifier()
        self._depth -= 1
        # A part may not begin with a digit: `omitted(default=1.5)` has `_5_29` behind its dot.
        parts[1:] = [part[1:] if re.match(r"_\d", part) else part for part in parts[1:]]
        return _printed(".".join(_CHARACTER.sub(_character, part) for part in parts), parameters)

    def _string(self) -> str:
        length = _LENGTH.match(self._text, self._at)
        if not length:
            raise _NotNumbaError
        self._at = length.end() + int(length[0])
        if self._at > len(self._text) or self._at == length.end():
            raise _NotNumbaError
        return self._text[length.end() : self._at]

    def _digit(self) -> bool:
        return self._text[self._at : self._at + 1].isdigit()

    def _skip(self, letter: str) -> bool:
        found = self._text.startswith(letter, self._at)
        self._at += found
        return found


def _printed(name: str, parameters: list[str]) -> str:
    """A type as the `name` of Numba's class has it (`numba.core.types`)."""
    if name == "Array" and len(parameters) == 5:
        element, dimensions, layout, mutable, aligned = parameters
        name = "array" if mutable == "mutable" else "readonly array"
        name = name if aligned == "aligned" else f"unaligned {name}"
        return f"{name}({element}, {dimensions}d, {layout})"
    if name.endswith("UniTuple") and len(parameters) == 2:
        return f"{name}({parameters[0]} x {parameters[1]})"
    return f"{name}({', '.join(parameters)})" if parameters or name == "Tuple" else name


def _array(represented: re.Match[str]) -> str:
    """The same for the `repr` of an array's type."""
    element, dimensions, layout, readonly, aligned = represented.groups()
    mutable = "readonly" if readonly == "True" else "mutable"
    aligned = "aligned" if aligned == "True" else "unaligned"
    return _printed("Array", [element, dimensions, layout, mutable, aligned])


def _character(escaped: re.Match[str]) -> str:
    """The character that an escape stands for; the escape itself where it stands for none."""
    try:
        character = bytes.fromhex(escaped[0].replace("_", "")).decode()
    except UnicodeDecodeError:
        return escaped[0]
    return character if character.isprintable() else escaped[0]
