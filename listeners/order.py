"""One order of events over all engines of the process.

llvmlite's engines announce what they do with llvmlite's lock held. Whoever else announces something
holds it, too, so that a listener hears one thing at a time, whatever engines it is attached to.

Of some engines the events are only seen by looking. They are looked at before something is
announced that others have loaded: else a listener could hear of new code where it knows of code
already.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["catch_up", "in_order", "late"]

_lock = threading.RLock()
late: list[Callable[[], None]] = []
"""What looks at engines whose events are seen late. It does not raise."""


@contextmanager
def in_order() -> Iterator[None]:
    """Nothing else is announced meanwhile."""
    calls = sys.modules.get(f"{__package__}.engines.calls")
    with ExitStack() as stack:
        if lock := getattr(calls, "lock", None):  # there once llvmlite is
            stack.enter_context(lock)
        stack.enter_context(_lock)
        yield


def catch_up() -> None:
    """Look at the engines whose events are seen late."""
    for look in tuple(late):
        look()
