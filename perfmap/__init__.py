"""perf's own formats, for whoever makes machine code at run time.

`MapFile` gives the code of a running process names in ``perf report``, `write_map` that of another
one; `read_map` reads such a file back. `JITDumpWriter` gives it names that change with time, source
lines and call frames, after ``perf inject -j``; `read_jitdump` reads that back. Only the standard
library is used.
"""

from perfmap.callframes import FrameRules
from perfmap.dumpwriter import JITDumpWriter
from perfmap.errors import PerfMapError
from perfmap.jitdump import JITDumpFile, read_jitdump
from perfmap.mapfile import MapFile
from perfmap.maplines import MapEntry, read_map
from perfmap.otherprocess import write_map
from perfmap.places import JITCode

__all__ = [
    "FrameRules",
    "JITCode",
    "JITDumpFile",
    "JITDumpWriter",
    "MapEntry",
    "MapFile",
    "PerfMapError",
    "read_jitdump",
    "read_map",
    "write_map",
]
