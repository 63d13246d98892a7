"""Who may edit a descriptor's list at this moment.

The interface has no lock of its own. Edits of this package hold `edits`; an engine that edits the
same list has a lock of its own, which `share` makes known. The engine's is always taken first.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

Lock = AbstractContextManager[Any, Any]

edits = threading.RLock()
_shared: dict[int, Lock] = {}
_NONE = nullcontext()


def of_engine(address: int) -> Lock:
    """The lock of the engine that edits the descriptor at `address`."""
    return _shared.get(address, _NONE)


def share(address: int, lock: Lock) -> None:
    _shared[address] = lock


# A child gets a copy of the list as it is at the fork: whole, if none of us is editing it. The
# thread that forks is the child's only one and lets go of the lock there too.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=edits.acquire, after_in_parent=edits.release, after_in_child=edits.release
    )
