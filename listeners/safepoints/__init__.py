"""Safepoints: what LLVM records of call sites, for collectors, deoptimisers and who patches code.

`Safepoints` is the listener. The readers are one file a format: `stackmap` and, above it,
`statepoint`; `faultmap`; `lsda`; `note_gc`; `frametable`.
"""

from .faultmap import Fault, FaultKind
from .frametable import FrameDescriptor
from .listener import Safepoints
from .lsda import Action, CallSite
from .note_gc import NoteGC
from .safepoint import ObjectSafepoints, Safepoint
from .stackmap import LiveOut, Location, LocationKind, Record, StackMaps
from .statepoint import Root, Slot, Statepoint
from .tables import ObjectTables

__all__ = [
    "Action",
    "CallSite",
    "Fault",
    "FaultKind",
    "FrameDescriptor",
    "LiveOut",
    "Location",
    "LocationKind",
    "NoteGC",
    "ObjectSafepoints",
    "ObjectTables",
    "Record",
    "Root",
    "Safepoint",
    "Safepoints",
    "Slot",
    "StackMaps",
    "Statepoint",
]
