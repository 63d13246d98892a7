"""Names as a terminal may have them: those of JIT'd code are any bytes that somebody has chosen."""

from __future__ import annotations

import re

__all__ = ["printable"]

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with `?` for what a terminal or a file of lines should not get."""
    return UNPRINTABLE.sub("?", text)
