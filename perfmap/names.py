"""Names of functions, which are any bytes that somebody has chosen, as others can take them."""

from __future__ import annotations

import re

__all__ = ["in_file_name", "printable", "shown"]

_LONGEST = 4096  # bytes; perf keeps a name's length in 16 bits
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_IN_FILE_NAMES = re.compile(r"[^\w.+-]+")


def printable(name: str) -> str:
    """The name with ``?`` for what a terminal or a file of lines should not get: control
    characters and lone surrogates."""
    return _UNPRINTABLE.sub("?", name)


def shown(name: str) -> bytes:
    """The printable name in UTF-8, as perf keeps it: cut at 4,096 bytes, an empty one as
    ``[unnamed]``."""
    if not name.isprintable():
        name = printable(name)
    text = name.encode() or b"[unnamed]"
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3].decode(errors="ignore").encode() + b"..."
    return text


def in_file_name(name: str, longest: int) -> str:
    """The name as a part of a file's: ``_`` for what not every tool takes there, so many
    characters at most."""
    return _NOT_IN_FILE_NAMES.sub("_", name)[:longest]
