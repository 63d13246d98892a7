"""What is to be done in a forked child, for whatever holds a file of its process."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Protocol

_log = logging.getLogger("perfmap")


class Forkable(Protocol):
    """Holds a file of this process."""

    def start_child(self) -> None:
        """In a forked child: leave the parent's file alone from now on."""


def follow_forks(writer: Forkable) -> None:
    """From now on, and while `writer` lives, have it start anew in each forked child."""
    _writers.add(writer)


def _start_children() -> None:
    for writer in list(_writers):
        try:
            writer.start_child()
        except Exception as error:  # a fork must not fail for the sake of a profile
            _log.error("after the fork, code may have no names in this process: %s", error)


_writers: weakref.WeakSet[Forkable] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_children)
