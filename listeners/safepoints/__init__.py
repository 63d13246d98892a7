"""Safepoints: what LLVM records of call sites, for collectors, deoptimisers and who patches code.

`Safepoints` is the listener. The readers are one file a format: `stackmap` and, above it,
`statepoint`; `faultmap`; `lsda`; `note_gc`; `frametable`.
"""

from .listener import Safepoints
from .safepoint import ObjectSafepoints, Safepoint
from .stackmap import LiveOut, Location, LocationKind, Record, StackMaps
from .statepoint import Root, Slot, Statepoint

__all__ = [
    "LiveOut",
    "Location",
    "LocationKind",
    "ObjectSafepoints",
    "Record",
    "Root",
    "Safepoint",
    "Safepoints",
    "Slot",
    "StackMaps",
    "Statepoint",
]
