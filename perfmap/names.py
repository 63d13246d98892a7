"""Names of functions in a form that perf keeps and a terminal survives."""

from __future__ import annotations

import re

__all__ = ["shown"]

_LONGEST = 4096  # bytes; perf keeps a name's length in 16 bits
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(name: str) -> bytes:
    """The name in UTF-8, ``?`` for control characters and lone surrogates, cut at 4,096 bytes.

    An empty one is ``[unnamed]``.
    """
    if not name.isprintable():
        name = _UNPRINTABLE.sub("?", name)
    text = name.encode() or b"[unnamed]"
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3].decode(errors="ignore").encode() + b"..."
    return text
