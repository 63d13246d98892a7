"""Work on something shared that no call waits for."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from perfmap.errors import PerfMapError

_log = logging.getLogger("perfmap")


class Turns:
    """Does one task at a time, in the order in which they come.

    No one waits for the turn: its holder may run a garbage collection, whose finalizers call in
    here, or want a lock that the waiting thread holds. A task that comes while another is at work
    is done by that other's thread.
    """

    def __init__(self) -> None:
        self._tasks: deque[Callable[[], object]] = deque()
        self._turn = threading.Lock()

    def perform(self, task: Callable[[], object]) -> None:
        """Do `task`, now or at the end of what is being done.

        Raises the PerfMapError that the task raises; one that another thread meets is logged.
        """
        failure = None
        self._tasks.append(task)
        while self._tasks and self._turn.acquire(False):
            try:
                while self._tasks:
                    current = self._tasks.popleft()
                    try:
                        current()
                    except PerfMapError as error:
                        if current is task:
                            failure = error
                        else:
                            _log.error("%s", error)
            finally:
                self._turn.release()
        if failure is not None:
            raise failure

    def start_child(self) -> None:
        """In a forked child: whoever had the turn is not here."""
        self._turn = threading.Lock()
