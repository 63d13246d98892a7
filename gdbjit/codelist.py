"""The list of a descriptor, and its images, read while its process edits it.

There is no lock to take and no counter to compare. What is read twice, and is the same both times,
was so in between: that is how a list, or an image, counts as read. The words of the descriptor
alone do not tell: an object that is loaded, unloaded and loaded again at the same address leaves
them as they were. Its entry may be the same, too, and the image another one of that size; so no
image is kept from one reading to the next.

Long lists may change faster than that. They are then followed from entry to entry, each of which
must point back at the one before, which it does only while both are linked. What stays in the list
meanwhile is found, what comes or goes may be, and nothing else.

An image is right if its entry was linked in between. To unlink an entry, or the one before it,
undoes one of the two pointers that join them; while both are there, the rest of the list need not
be read for that.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import NamedTuple

from .errors import GDBJITError
from .layout import VERSION, Layout
from .process import Memory

__all__ = ["CodeList"]

MAX_ENTRIES = 1 << 20
ATTEMPTS = 20
MOMENT = 0.02  # seconds of processor time; what others take of it does not count
STEPS_BACK = 1000
PATIENCE = 0.0005  # seconds; a thread may be stopped in the middle of an edit


class _Node(NamedTuple):
    """The fields of an entry. Pointers are 0 at the ends of the list."""

    after: int
    before: int
    symfile: int
    size: int


class _Look(NamedTuple):
    """An entry and what belongs to it, read once."""

    node: _Node | None
    """None if it cannot be read, or is of another image now."""
    joined: tuple[bool, bool]
    """Whether it and the entry before it, or the descriptor, point at each other; whether it and
    the one after it do."""
    image: bytes | str
    """Or why it cannot be read."""


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
        words, problem = b"", ""
        start = time.thread_time()
        for attempt in range(ATTEMPTS):
            before = words, known, problem
            words, known, problem = self._walk(known)
            if attempt and before == (words, known, problem):
                if problem:
                    raise GDBJITError(f"list of the descriptor at {self._address:#x}: {problem}")
                return known
            if time.thread_time() - start > MOMENT and (attempt or words != self._words()):
                break
            # At once as long as it may be one edit that came between, then over a burst.
            time.sleep(0.001 * (attempt // 10))
        if not problem and self.points_back(known):
            return known
        followed = self._follow(known)
        if followed is None:
            raise GDBJITError(
                f"list of the descriptor at {self._address:#x}: it changes faster than it can be "
                "read: try again, or stop the process meanwhile"
            )
        return followed

    def points_back(self, nodes: dict[int, bytes]) -> bool:
        """Whether each entry of a list points at the one before it. Not every engine does that."""
        unpack = self._layout.entry.unpack
        return all(
            unpack(data)[1] == before
            for before, data in zip(itertools.chain((0,), nodes), nodes.values(), strict=False)
        )

    def images(self, nodes: dict[int, bytes], points_back: bool) -> dict[int, bytes | GDBJITError]:
        """By address, the images of those entries that are in the list still.

        `nodes` is what `entries` has given, or a part of it, and `points_back` what that says of
        the whole. Instead of an image that cannot be read there is the reason.
        """
        unpack = self._layout.entry.unpack
        pending = {address: _Node(*unpack(data)) for address, data in nodes.items()}
        found: dict[int, bytes | GDBJITError] = {}
        loose: set[int] = set()  # seen out of the list: another one is there at each look
        for attempt in range(1, ATTEMPTS + 1):
            first = self._look(pending)
            members = {} if points_back else self.entries()
            second = self._look(pending)
            moved = {}
            for address in pending:
                (_, joined, image), look = first[address], second[address]
                if look.node is None:
                    continue  # it has gone
                linked = any(look.joined) if points_back else address in members
                between = any(map(all, zip(joined, look.joined, strict=True)))
                same = look.image == image
                last = attempt == ATTEMPTS
                if linked and same and (between or last or not points_back):
                    found[address] = _image(image)
                elif linked and last and address not in loose:
                    found[address] = GDBJITError("it changes faster than it can be read: try again")
                else:
                    moved[address] = look.node
                if not linked:
                    loose.add(address)
            pending = moved
            if not pending:
                break
            if attempt % 5 == 0:
                time.sleep(PATIENCE)
        return found

    def _look(self, pending: dict[int, _Node]) -> dict[int, _Look]:
        """These entries with their neighbours and images, all as near to one moment as can be."""
        head, node = self._layout
        around = {known[side] for known in pending.values() for side in (0, 1)} - {0}
        addresses = [*pending, *(around - pending.keys())]
        read = self._memory.read_ranges(
            [
                (self._address, head.size),
                *((address, node.size) for address in addresses),
                *((known.symfile, known.size) for known in pending.values()),
            ]
        )
        if isinstance(read[0], GDBJITError):
            raise read[0]
        newest = head.unpack(read[0])[3]
        nodes = {
            address: _Node(*node.unpack(data))
            for address, data in zip(addresses, read[1:], strict=False)
            if isinstance(data, bytes)
        }
        looks = {}
        for (address, known), image in zip(
            pending.items(), read[1 + len(addresses) :], strict=True
        ):
            now = nodes.get(address)
            joined = (False, False)
            if now is not None and now[2:] != known[2:]:
                now = None
            if now is not None:
                before, after = nodes.get(known.before), nodes.get(known.after)
                pointer = before.after if before else None if known.before else newest
                joined = (
                    now.before == known.before and pointer == address,
                    now.after == known.after and after is not None and after.before == address,
                )
            looks[address] = _Look(now, joined, image if isinstance(image, bytes) else str(image))
        return looks

    def _walk(self, known: Iterable[int]) -> tuple[bytes, dict[int, bytes], str]:
        """The descriptor; the entries in list order, by address; what is wrong with the list.

        Entries at the addresses `known` from the walk before are read all at once, so that only
        the first walk takes its time from entry to entry.
        """
        (head, node), memory = self._layout, self._memory
        words = self._words()
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
        return words, entries, problem

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

    def _words(self) -> bytes:
        """The descriptor."""
        return self._memory.read(self._address, self._layout.descriptor.size)

    def _first(self) -> int:
        """The address of the newest entry."""
        first: int = self._layout.descriptor.unpack(self._words())[3]
        return first

    def _at_once(self, addresses: Iterable[int]) -> dict[int, bytes]:
        """The entries at those of the addresses that are still mapped."""
        wanted = list(addresses)
        size = self._layout.entry.size
        read = self._memory.read_ranges([(address, size) for address in wanted])
        return {
            address: data
            for address, data in zip(wanted, read, strict=True)
            if isinstance(data, bytes)
        }


def _image(read: bytes | str) -> bytes | GDBJITError:
    return read if isinstance(read, bytes) else GDBJITError(read)
