"""Static constructors and destructors of a module that is compiled ahead of its LLJIT.

LLJIT runs what `llvm.global_ctors` and `llvm.global_dtors` list in the IR it is given; of an
object it runs nothing. So these two stay IR: a module of their own, which refers to the
functions in the compiled object by symbols of ours, since they are mostly local there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from .sectionsymbols import new_symbol

__all__ = ["Constructors", "split_constructors"]

_LIST = re.compile(r"^@llvm\.global_(?:ctors|dtors) = .*$", re.MULTILINE)
# An item of the list: { i32 priority, ptr function, ptr associated data }
_ITEM = re.compile(r'ptr @("[^"]*"|[-$.\w]+), ptr (?:@"[^"]*"|[^{}"]+) \}')
_TARGET = re.compile(r"^target .*$", re.MULTILINE)
_ESCAPE = re.compile(rb"\\([0-9A-Fa-f]{2})")


@dataclass
class Constructors:
    """The module that lists them, and how it reaches them."""

    module: bytes = b""
    aliases: dict[str, bytes] = field(default_factory=dict)
    """Our symbol for a local function of the compiled object."""
    called: list[bytes] = field(default_factory=list)
    """The symbols of all functions in the lists."""


def split_constructors(module: Any) -> tuple[str, Constructors | None]:
    """The text of an IR module without its lists of constructors, and these apart."""
    local = {
        function.name: function
        for function in module.functions
        if function.linkage.name in ("internal", "private")
    }
    for name in _listed(str(module)):
        if (function := local.get(name)) is not None:
            function.linkage = "internal"  # a private one would have no symbol
    text = str(module)
    lists = _LIST.findall(text)
    if not lists:
        return text, None
    constructors = Constructors()
    functions: dict[str, None] = {}  # as they are written in IR

    def item(match: re.Match[str]) -> str:
        written, name = match[1], _name(match[1])
        symbol = name.removeprefix("\1")  # which keeps LLVM from mangling the rest
        if name in local:
            written = constructors.aliases.setdefault(symbol, new_symbol()).decode()
            symbol = written
        functions[written] = None
        constructors.called.append(symbol.encode())
        return f"ptr @{written}, ptr null }}"

    lines = _TARGET.findall(text) + [_ITEM.sub(item, line) for line in lists]
    lines += [f"declare void @{written}()" for written in functions]
    constructors.module = "\n".join(lines).encode()
    return _LIST.sub("", text), constructors


def _listed(text: str) -> list[str]:
    """The names of the functions in the lists."""
    return [_name(written) for line in _LIST.findall(text) for written in _ITEM.findall(line)]


def _name(written: str) -> str:
    """The name of a function as it is written in IR."""
    raw = written.strip('"').encode()
    return _ESCAPE.sub(lambda escape: bytes([int(escape[1], 16)]), raw).decode()
