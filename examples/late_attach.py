"""Attaching to a program that runs already: what it loaded before is announced at once.

    $ python examples/late_attach.py & sleep 2; kill -USR1 $!; wait
    working, with nobody attached
    attached: longest, steps, each with its exact address
    longest(300000) = 442

The signal brings the listeners in; a profile taken from then on names both functions, and
`gdb -p` stops in them:

    $ perf record -e cpu-clock -p $(pgrep -f late_attach) -o /tmp/perf.data
    $ perf report -i /tmp/perf.data --stdio
"""

import ctypes
import signal
import time
from pathlib import Path

import llvmlite.binding as llvm
from tiny import Compiler

import listeners

attached = []


def attach(*_: object) -> None:
    tools = listeners.GDBRegistration(), listeners.PerfMap()
    attached.append(listeners.attach(None, *tools))
    functions = [function for obj in attached[0].objects for function in obj.functions]
    names = ", ".join(sorted(function.demangled for function in functions))
    print(f"attached: {names}, each with its exact address", flush=True)


signal.signal(signal.SIGUSR1, attach)
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
source = Path(__file__).resolve().with_name("collatz.tiny")
machine = llvm.Target.from_default_triple().create_target_machine(opt=0)
engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(Compiler(source).module)), machine)
longest = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(engine.get_function_address("longest"))

print("working, with nobody attached", flush=True)
end = time.monotonic() + 20
while not attached and time.monotonic() < end:
    result = longest(300_000)
print(f"longest(300000) = {result}")
