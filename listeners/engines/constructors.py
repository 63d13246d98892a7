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
_ITEM = re.compile(r'ptr @("(?:[^"]*)"|[-$.\w]+), ptr [^{}]+ \}')
_TARGET = re.compile(r"^target .*$", re.MULTILINE)
_ESCAPE = re.compile(r"\\([0-9A-Fa-f]{2})")


@dataclass
class Constructors:
    """The module that lists them, and how it reaches them."""

    module: bytes = b""
    aliases: dict[str, bytes] = field(default_factory=dict)
    """Our symbol for a function that the compiled object defines."""
    called: list[bytes] = field(default_factory=list)
    """The symbols of all functions in the lists."""


def split_constructors(module: Any) -> tuple[str, Constructors | None]:
    """The text of an IR module without its lists of constructors, and these apart."""
    text = str(module)
    lists = _LIST.findall(text)
    if not lists:
        return text, None
    constructors = Constructors()
    defined = {function.name for function in module.functions if not function.is_declaration}

    def item(match: re.Match[str]) -> str:
        name = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), match[1].strip('"'))
        symbol = name.encode()
        if name in defined:
            symbol = constructors.aliases.setdefault(name, new_symbol())
        constructors.called.append(symbol)
        return f'ptr @"{symbol.decode()}", ptr null }}'

    lines = _TARGET.findall(text) + [_ITEM.sub(item, line) for line in lists]
    lines += [f'declare void @"{symbol.decode()}"()' for symbol in set(constructors.called)]
    constructors.module = "\n".join(lines).encode()
    return _LIST.sub("", text), constructors
