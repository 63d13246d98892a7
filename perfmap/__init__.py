"""perf's own formats, for whoever makes machine code at run time.

`MapFile` gives the code of a running process names in ``perf report``; `read_map` reads such
a file back. Only the standard library is used.
"""

from perfmap.errors import PerfMapError
from perfmap.mapfile import MapEntry, MapFile, read_map

__all__ = ["MapEntry", "MapFile", "PerfMapError", "read_map"]
