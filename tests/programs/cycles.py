"""Loads and unloads a module many times, and tells what is left of it.

    cycles.py LINKER COUNT [--attach]

An LLJIT is used again for every module, and an MCJIT, which frees no module by itself, is made
anew. Memory is measured after a tenth of the cycles and at the end.
"""

import os
import sys
from pathlib import Path

linker, count, attach = sys.argv[1], int(sys.argv[2]), "--attach" in sys.argv
if not attach:  # nothing of ours is in the way then
    from types import ModuleType

    sys.modules["listeners"] = ModuleType("listeners")

import llvmlite.binding as llvm
from jit import Program, initialize, source_ir


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


initialize()
text = source_ir()
program = Program(linker)
if attach:
    import gdbjit
    import listeners
    import perfmap

    listeners.attach(None, listeners.GDBRegistration(), listeners.PerfMap())


def cycle(number: int) -> None:
    if linker == "mcjit":
        once = Program(linker)
        once.load(text, "steps")
        once.unload()
    else:
        builder = llvm.JITLibraryBuilder().add_ir(text).add_current_process()
        builder.export_symbol("steps").link(program.engine, f"library{number}").close()


for number in range(count // 10):
    cycle(number)
files, memory = open_files(), resident()
for number in range(count // 10, count):
    cycle(number)
print("growth", resident() - memory)
if attach:
    entries = [entry for found in gdbjit.descriptors() for entry in found.entries()]
    print("entries", len(entries))
    print("map lines", len(perfmap.read_map(f"/tmp/perf-{os.getpid()}.map")))
    print(f"file descriptors +{open_files() - files}")
