"""JIT listeners: whatever a JIT loads, every tool sees.

    attachment = listeners.attach(engine, listeners.GDBRegistration(), listeners.PerfMap())

From then on gdb and lldb break in the code that `engine` loads, and perf names it, until it is
freed. `attach(None, …)` does so for every llvmlite engine of the process, Numba's included.
"""

from .attachment import Attachment, attach
from .codeimages import CodeImages
from .errors import JITListenerError
from .events import Function, JITEventListener, Line, LoadedObject, Section
from .gdb import GDBRegistration
from .jitdump import JITDump
from .perf import PerfMap
from .safepoints import Safepoints
from .timing import EngineCall, Notification
from .trace import Trace

__all__ = [
    "Attachment",
    "CodeImages",
    "EngineCall",
    "Function",
    "GDBRegistration",
    "JITDump",
    "JITEventListener",
    "JITListenerError",
    "Line",
    "LoadedObject",
    "Notification",
    "PerfMap",
    "Safepoints",
    "Section",
    "Trace",
    "attach",
]
