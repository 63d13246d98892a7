"""Safepoints: what LLVM records of call sites, for collectors, deoptimisers and who patches code.

`Safepoints` is the listener. The readers are one file a format: `stackmap` and, above it,
`statepoint`; `faultmap`; `lsda`; `note_gc`; `frametable`.

`place_statepoints` makes what they are about, and `emit` has what llvmlite.ir lacks for it.
"""

from typing import TYPE_CHECKING, Any

from .faultmap import Fault, FaultKind
from .frametable import FrameDescriptor
from .listener import Safepoints
from .lsda import Action, CallSite
from .nativewalk import NativeWalker
from .note_gc import NoteGC
from .patch import Patchpoint, Patchpoints
from .safepoint import ObjectSafepoints, Safepoint
from .shadowstack import ShadowFrame, walk_shadow_stack
from .stackmap import LiveOut, Location, LocationKind, Record, StackMaps
from .stacks import Entry, Stacks
from .statepoint import Root, Slot, Statepoint
from .tables import ObjectTables
from .walk import Anchor, Frame, LiveRoot, read_word, walk, write_word

if TYPE_CHECKING:
    from .placement import place_statepoints

__all__ = [
    "Action",
    "Anchor",
    "CallSite",
    "Entry",
    "Fault",
    "FaultKind",
    "Frame",
    "FrameDescriptor",
    "LiveOut",
    "LiveRoot",
    "Location",
    "LocationKind",
    "NativeWalker",
    "NoteGC",
    "ObjectSafepoints",
    "ObjectTables",
    "Patchpoint",
    "Patchpoints",
    "Record",
    "Root",
    "Safepoint",
    "Safepoints",
    "ShadowFrame",
    "Slot",
    "StackMaps",
    "Stacks",
    "Statepoint",
    "place_statepoints",
    "read_word",
    "walk",
    "walk_shadow_stack",
    "write_word",
]


def __getattr__(name: str) -> Any:
    """`place_statepoints` alone loads llvmlite, which who reads tables may do without."""
    if name == "place_statepoints":
        from .placement import place_statepoints

        return place_statepoints
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
