"""The safepoints of a loaded object, each at its physical address.

A safepoint is a record of `.llvm_stackmaps` together with the function it is in: a stackmap, a
patchpoint or a statepoint. Which of these is not recorded. A collector makes statepoints alone and
asks for their roots; of records that others have made, the code tells the kind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Literal, overload

from perfmap import FrameRules

from ..errors import JITListenerError
from ..events import Function, LoadedObject
from ..framerules import read_rules
from ..objectfile import EM_X86_64
from .framerule import FrameRule, FunctionRules
from .relocated import RelocatedObject
from .stackmap import DYNAMIC, LiveOut, Location, Record, StackMaps
from .statepoint import Root, Statepoint, decode_statepoint, looks_like_statepoint, resolved

__all__ = ["STACKMAPS", "ObjectSafepoints", "Safepoint"]

STACKMAPS = ".llvm_stackmaps"
EH_FRAME = ".eh_frame"


class Safepoint:
    """A point in loaded code of which LLVM has recorded what is live there."""

    def __init__(self, owner: ObjectSafepoints, index: int) -> None:
        self._owner = owner
        self._mapped = mapped = owner.maps.function(index)
        self.index = index
        """Its number among those of the object."""
        self.id = owner.maps.id(index)
        """The number that whoever made the code has given it."""
        self.address = owner.maps.addresses[index]
        """Of a stackmap the point itself, of a patchpoint the start of its bytes, of a statepoint
        the return address of its call."""
        self.frame_size = None if mapped.stack_size == DYNAMIC else mapped.stack_size
        """Bytes from the stack pointer to the return address; None where it is not always the same.

        It is LLVM's figure, which leaves out arguments that the call itself has pushed.
        """

    def __repr__(self) -> str:
        return f"<Safepoint {self.id} at {self.address:#x}, {self.place}>"

    @cached_property
    def record(self) -> Record:
        """As LLVM has written it.

        Raises JITListenerError if it has locations of a kind that is not known.
        """
        return self._owner.record(self.index)

    @property
    def object(self) -> LoadedObject:
        """The object it is in."""
        return self._owner.object

    @cached_property
    def function(self) -> Function | None:
        """The function it is in; None if it has no symbol."""
        return self.object.function_at(self._mapped.address)

    @property
    def place(self) -> str:
        """The function's name and the offset there, for messages."""
        return self._owner.place(self._mapped.address, self.address)

    @property
    def live_outs(self) -> tuple[LiveOut, ...]:
        """The registers that are live behind a patchpoint."""
        return self.record.live_outs

    @cached_property
    def values(self) -> tuple[Location, ...]:
        """All its locations, constants in place."""
        constants = self._mapped.constants
        with self._located():
            return tuple(resolved(location, constants) for location in self.record.locations)

    @cached_property
    def statepoint(self) -> Statepoint:
        """What its locations mean if it is a statepoint.

        Raises JITListenerError where they are not a statepoint's, so that nothing that is not
        understood is taken for a frame without roots.
        """
        with self._located():
            return decode_statepoint(self.record, self._mapped.constants, self._owner.machine)

    @property
    def roots(self) -> tuple[Root, ...]:
        """The references that are live across its call; raises as `statepoint` does."""
        return self.statepoint.roots

    @property
    def deopt(self) -> tuple[Location, ...]:
        """The values of its deopt bundle, constants in place; raises as `statepoint` does."""
        return self.statepoint.deopt

    @cached_property
    def frame_rule(self) -> FrameRule:
        """How to get to its caller's frame.

        Raises JITListenerError where the function has no call frame information, or none that says
        it, and for machines other than x86-64.
        """
        with self._located():
            return self._owner.frame_rule(self.index)

    @cached_property
    def kind(self) -> Literal["statepoint", "patchpoint", "stackmap"]:
        """What it is, as far as record and code tell.

        A record that begins as a statepoint's is taken for one. A patchpoint is one with live-outs,
        or at bytes that were emitted to be patched: a call by way of the register for that, or
        nothing. A stackmap whose bytes to be overwritten were empty looks the same.
        """
        if looks_like_statepoint(self.record):
            return "statepoint"
        if self.live_outs or _is_patchable(
            self._owner.relocated.code(self.address, 16), self._owner.machine
        ):
            return "patchpoint"
        return "stackmap"

    @contextmanager
    def _located(self) -> Iterator[None]:
        try:
            yield
        except JITListenerError as error:
            raise JITListenerError(f"safepoint {self.id} in {self.place}: {error}") from None


class ObjectSafepoints(Sequence[Safepoint]):
    """The safepoints of one object, in the order of its table; each is decoded when asked for.

    Raises JITListenerError if the table is malformed, or tells of functions that are not in the
    object's code.
    """

    def __init__(self, relocated: RelocatedObject) -> None:
        self.object = relocated.object
        self.machine = relocated.machine
        """The ELF machine the code is for."""
        self.relocated = relocated
        """All of the object."""
        self._made: dict[int, Safepoint] = {}
        self._function_rules: dict[int, FunctionRules] = {}
        tables = (content for _, _, content in relocated.sections(STACKMAPS))
        self.maps = StackMaps(b"".join(tables))
        """All that is recorded."""
        for mapped in self.maps.functions:
            if not relocated.is_code(mapped.address):
                raise JITListenerError(
                    f"{STACKMAPS}: a function at {mapped.address:#x}, where the object has no code"
                )
        addresses = self.maps.addresses
        self._sorted = sorted(addresses)
        """The addresses, which are so already unless functions are in several sections."""
        self._order: Sequence[int] = range(len(addresses))
        """The indices of the safepoints in that order."""
        if self._sorted != addresses:
            self._order = sorted(self._order, key=addresses.__getitem__)

    def __len__(self) -> int:
        return len(self.maps)

    @overload
    def __getitem__(self, index: int) -> Safepoint: ...
    @overload
    def __getitem__(self, index: slice) -> list[Safepoint]: ...
    def __getitem__(self, index: int | slice) -> Safepoint | list[Safepoint]:
        indices = range(len(self))[index]
        if isinstance(indices, range):
            return [self[number] for number in indices]
        safepoint = self._made.get(indices)
        if safepoint is None:
            safepoint = self._made[indices] = Safepoint(self, indices)
        return safepoint

    def at(self, address: int) -> Safepoint | None:
        """The safepoint at an address; where a stackmap follows a call, the call's.

        Raises JITListenerError if there are several with one of a kind that is not known.
        """
        place, indices = bisect_left(self._sorted, address), []
        while place < len(self) and self._sorted[place] == address:
            indices.append(self._order[place])
            place += 1
        if len(indices) > 1:
            for index in indices:
                if looks_like_statepoint(self.record(index)):
                    return self[index]
        return self[indices[-1]] if indices else None

    @cached_property
    def by_id(self) -> dict[int, list[int]]:
        """The indices of the safepoints with an id."""
        found: dict[int, list[int]] = {}
        for index, identity in enumerate(self.maps.ids()):
            found.setdefault(identity, []).append(index)
        return found

    def frame_rule(self, index: int) -> FrameRule:
        """How to get from the frame of a safepoint to its caller's; raises as that one's does."""
        function = self.maps.function(index).address
        return self.function_rules(function).at(self.maps.addresses[index] - function)

    def function_rules(self, function: int) -> FunctionRules:
        """The call frame information of the function at an address; raises as `frame_rule` does."""
        if self.machine != EM_X86_64:
            raise JITListenerError("stacks are walked on x86-64 alone")
        rules = self._function_rules.get(function)
        if rules is None:
            found = self._call_frames.get(function)
            if found is None:
                raise JITListenerError(
                    "no call frame information: give the function the attribute uwtable"
                )
            rules = self._function_rules[function] = FunctionRules(found)
        return rules

    @cached_property
    def _call_frames(self) -> dict[int, FrameRules]:
        """The rules of `.eh_frame`, by function."""
        found = {}
        for _, address, content in self.relocated.sections(EH_FRAME):
            found.update(read_rules(content, address))
        return found

    def of(self, function: Function) -> list[Safepoint]:
        """The safepoints of one of the object's functions."""
        return [
            self[index]
            for mapped in self.maps.functions
            if mapped.address == function.address
            for index in range(mapped.first, mapped.first + mapped.records)
        ]

    # For its safepoints

    def record(self, index: int) -> Record:
        try:
            return self.maps.record(index)
        except JITListenerError as error:
            place = self.place(self.maps.function(index).address, self.maps.addresses[index])
            raise JITListenerError(f"{self.object!r}, {place}: {error}") from None

    def place(self, function: int, address: int) -> str:
        found = self.object.function_at(function)
        return f"{found.demangled if found else hex(function)}+{address - function:#x}"


def _is_patchable(code: bytes, machine: int) -> bool:
    """Whether code begins as LLVM fills the bytes of a patchpoint.

    X86MCInstLower.cpp: `movabs r11; call *r11`, or nops; AArch64AsmPrinter.cpp: three moves to x16
    and `blr x16`, or nops.
    """
    if machine == EM_X86_64:
        return code.lstrip(b"\x66\x2e").startswith((b"\x49\xbb", b"\x0f\x1f", b"\x90"))
    word = int.from_bytes(code[:4], "little")
    return word == 0xD503201F or word & 0xFFE0001F == 0xD2C00010
