"""Everything that an object records of its call sites and faults, at its load addresses."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from ..ehframe import FDE, read_frames, read_lsdas
from ..errors import JITListenerError
from ..events import LoadedObject
from .faultmap import FAULTMAPS, Fault, read_faultmaps
from .frametable import FRAMETABLE, FrameDescriptor, read_frametable
from .lsda import EXCEPT_TABLE, CallSite, read_lsda
from .note_gc import NOTE_GC, NoteGC, read_note_gc
from .relocated import RelocatedObject
from .safepoint import EH_FRAME, STACKMAPS, ObjectSafepoints

__all__ = ["ObjectTables"]

T = TypeVar("T")


class ObjectTables:
    """The tables of one object, each read when it is first asked for.

    Asking raises JITListenerError if the table is malformed.
    """

    def __init__(self, obj: LoadedObject) -> None:
        self.object = obj

    @staticmethod
    def are_in(obj: LoadedObject) -> bool:
        """Whether the object has safepoints, faults or call sites that are recorded."""
        return any(s.name in (STACKMAPS, FAULTMAPS, EXCEPT_TABLE) for s in obj.sections)

    @cached_property
    def _relocated(self) -> RelocatedObject:
        return RelocatedObject(self.object)

    def _read(self, read: Callable[[RelocatedObject], T]) -> T:
        try:
            return read(self._relocated)
        except JITListenerError as error:
            raise JITListenerError(f"{self.object!r}: {error}") from None

    @cached_property
    def safepoints(self) -> ObjectSafepoints:
        """The records of `.llvm_stackmaps`."""
        return self._read(ObjectSafepoints)

    @cached_property
    def faults(self) -> list[Fault]:
        """Those of `.llvm_faultmaps`."""
        return self._read(_faults)

    @cached_property
    def handlers(self) -> dict[int, int]:
        """Where to go on, by the address that has faulted."""
        return {fault.address: fault.handler for fault in self.faults}

    @cached_property
    def frames(self) -> list[FDE]:
        """The frame description entries of `.eh_frame`."""
        return self._read(_frames)

    @cached_property
    def call_sites(self) -> list[CallSite]:
        """Those of `.gcc_except_table`, by address."""
        return self._read(_call_sites)

    def call_site(self, return_address: int) -> CallSite | None:
        """The call site of the call with a return address; None if no table has it."""
        at = bisect_right(self.call_sites, return_address - 1, key=lambda site: site.start)
        if at and return_address <= self.call_sites[at - 1].end:
            return self.call_sites[at - 1]
        return None

    @cached_property
    def note_gc(self) -> list[NoteGC]:
        """The functions of `.note.gc`."""
        return self._read(_note_gc)

    @cached_property
    def frametable(self) -> list[FrameDescriptor]:
        """The call sites of OCaml's frametables."""
        return self._read(_frametable)


def _faults(relocated: RelocatedObject) -> list[Fault]:
    found = []
    for _, _, content in relocated.sections(FAULTMAPS):
        found += read_faultmaps(content)
    for fault in found:
        for address in (fault.address, fault.handler):
            if not relocated.is_code(address):
                raise JITListenerError(
                    f"{FAULTMAPS}: a fault at {fault.address:#x} that goes on at"
                    f" {fault.handler:#x}, of a function at {fault.function:#x}: no code of the"
                    " object"
                )
    return found


def _frames(relocated: RelocatedObject) -> list[FDE]:
    found = []
    for _, address, content in relocated.sections(EH_FRAME):
        found += read_frames(content, address)
    return found


def _call_sites(relocated: RelocatedObject) -> list[CallSite]:
    tables = [
        (address, content, relocated.names(index))
        for index, address, content in relocated.sections(EXCEPT_TABLE)
    ]
    found = []
    for _, start, frames in relocated.sections(EH_FRAME):
        for frame, lsda in read_lsdas(frames, start):
            for address, content, names in tables:
                if 0 <= lsda - address < len(content):
                    found += read_lsda(content, address, lsda - address, frame.pc, names)
                    break
            else:
                raise JITListenerError(
                    f"{EH_FRAME}: language-specific data of the function at {frame.pc:#x}"
                    f" at {lsda:#x}, where there is none"
                )
    return sorted(found, key=lambda site: site.start)


def _note_gc(relocated: RelocatedObject) -> list[NoteGC]:
    file = relocated.file
    found = []
    for index in range(len(file.sections)):
        if file.section_name(index) == NOTE_GC:
            found += read_note_gc(file.contents(index), relocated.targets(index))
    return found


def _frametable(relocated: RelocatedObject) -> list[FrameDescriptor]:
    file = relocated.file
    sections = {section.index: section.address for section in relocated.object.sections}
    found = []
    for symbol in file.symbols:
        if symbol.section in sections and file.symbol_name(symbol).endswith(FRAMETABLE):
            content = relocated.contents(symbol.section, sections[symbol.section])
            found += read_frametable(content, symbol.value)
    return found
