"""The list of a descriptor, read while its process edits it.

There is no lock to take and no counter to compare, so a list counts as read when all its entries
and the descriptor, read again, are the same. The words of the descriptor alone do not tell: an
object that is loaded, unloaded and loaded again at the same address leaves them as they were.

Long lists may change faster than that. They are then followed from entry to entry, each of which
must point back at the one before, which it does only while both are linked. What stays in the list
meanwhile is found, what comes or goes may be, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from .errors import GDBJITError
from .layout import VERSION, Layout
from .process import Memory

__all__ = ["CodeList"]

MAX_ENTRIES = 1 << 20
ATTEMPTS = 20
MOMENT = 0.02  # seconds
STEPS_BACK = 1000
PATIENCE = 0.0005  # seconds; a thread may be stopped in the middle of an edit

Image = tuple[int, int]
"""Address and size of an image."""


class CodeList:
    """The list of the descriptor at `address` in a memory.

    Entries are given as the bytes of their structures by address, in the order of the list.
    """

    def __init__(self, memory: Memory, address: int, layout: Layout) -> None:
        self._memory = memory
        self._address = address
        self._layout = layout

    def entries(self) -> dict[int, bytes]:
        """What is in the list. Raises GDBJITError if it is not well-formed."""
        known: dict[int, bytes] = {}
        start = time.monotonic()
        for attempt in range(ATTEMPTS):
            known, problem, stable = self._walk(known)
            if stable:
                if problem:
                    raise GDBJITError(f"list of the descriptor at {self._address:#x}: {problem}")
                return known
            if attempt and time.monotonic() - start > MOMENT:
                break
            # At once as long as it may be one edit that came between, then over a burst.
            time.sleep(0.001 * (attempt // 10))
        followed = self._follow(known)
        if followed is None:
            raise GDBJITError(
                f"list of the descriptor at {self._address:#x}: it changes faster than it can be "
                "read: try again, or stop the process meanwhile"
            )
        return followed

    def linked(self, wanted: dict[int, Image]) -> set[int]:
        """Those of the entries at these addresses that are in the list, with these images."""
        node = self._layout.entry
        nodes = self._at_once(wanted)
        fields = {address: node.unpack(data) for address, data in nodes.items()}
        following = {
            address: node.unpack(data)[0]
            for address, data in self._at_once(
                {field[1] for field in fields.values()} - {0}
            ).items()
        }
        following[0] = self._first()
        found = {
            address
            for address, (_, before, *image) in fields.items()
            if following.get(before) == address and tuple(image) == wanted[address]
        }
        if len(found) < len(wanted):  # some have gone; or nobody keeps the pointer back
            for address, data in self.entries().items():
                if wanted.get(address) == node.unpack(data)[2:]:
                    found.add(address)
        return found

    def _walk(self, known: Iterable[int]) -> tuple[dict[int, bytes], str, bool]:
        """The entries in list order, by address; what is wrong with the list, if anything; and
        whether it was so at one moment.

        Entries at the addresses `known` from the walk before are read all at once, so that only
        the first walk takes its time from entry to entry.
        """
        (head, node), memory = self._layout, self._memory
        words = memory.read(self._address, head.size)
        version, _action, _relevant, address = head.unpack(words)
        if version != VERSION:
            raise GDBJITError(
                f"descriptor at {self._address:#x}: version is {version}, where {VERSION} is the "
                "only one there is"
            )
        ahead = self._at_once(known)
        entries: dict[int, bytes] = {}
        problem = ""
        while address and not problem:
            if address in entries:
                problem = f"it runs in a circle: entry {address:#x} comes again"
            elif len(entries) == MAX_ENTRIES:
                problem = f"more than {MAX_ENTRIES} entries"
            else:
                try:
                    data = ahead.get(address) or memory.read(address, node.size)
                except GDBJITError as error:
                    problem = str(error)
                else:
                    entries[address] = data
                    address = node.unpack(data)[0]
        stable = self._at_once(entries) == entries
        return entries, problem, stable and words == memory.read(self._address, head.size)

    def _follow(self, known: Iterable[int]) -> dict[int, bytes] | None:
        """The entries in list order, by address, each found linked behind the one before.

        Entries at the addresses `known` are read at once. None if the list does not hold still
        even for that, or nobody keeps `prev`.
        """
        node, memory = self._layout.entry, self._memory
        ahead = self._at_once(known)
        nodes: dict[int, bytes] = {}
        chain = [0]  # addresses of entries; the descriptor, in front of them all, counts as 0
        following = self._first()
        for _ in range(STEPS_BACK):
            while following and following not in nodes and len(chain) <= MAX_ENTRIES:
                try:
                    data = ahead.pop(following, None) or memory.read(following, node.size)
                except GDBJITError:
                    break  # it has gone
                after, before, *_ = node.unpack(data)
                if before != chain[-1]:
                    break  # one of the two has
                nodes[following] = data
                chain.append(following)
                following = after
            if not following:
                return nodes
            # Back to the last one that is linked still, and to where it points now.
            stuck = following
            while chain[1:]:
                data = self._at_once(chain[-1:]).get(chain[-1], bytes(node.size))
                following, before, *image = node.unpack(data)
                if before == chain[-2] and image == list(node.unpack(nodes[chain[-1]])[2:]):
                    break
                del nodes[chain.pop()]
            else:
                following = self._first()
            if following == stuck:
                time.sleep(PATIENCE)
        return None

    def _first(self) -> int:
        """The address of the newest entry."""
        head = self._layout.descriptor
        first: int = head.unpack(self._memory.read(self._address, head.size))[3]
        return first

    def _at_once(self, addresses: Iterable[int]) -> dict[int, bytes]:
        """What is at the addresses, nothing if some of them are not mapped any more."""
        wanted = list(addresses)
        try:
            read = self._memory.read_all(wanted, self._layout.entry.size)
        except GDBJITError:
            return {}
        return dict(zip(wanted, read, strict=True))
