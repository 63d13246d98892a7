"""A file that somebody has named, opened to be read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from perfmap.errors import PerfMapError

__all__ = ["opened"]


@contextmanager
def opened(path: str | os.PathLike[str], kind: str) -> Iterator[BinaryIO]:
    """The regular file at `path`; `kind` says what it should be.

    Raises `PerfMapError` if there is none, and for errors of the file system until it is closed.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PerfMapError(f"{str(path)!r} is not a regular file: give a {kind}")
            yield file
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PerfMapError(f"cannot read {str(path)!r}: {reason}; give a {kind}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would wait for its writer
