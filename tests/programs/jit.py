"""A program that JIT-compiles `examples/collatz.tiny`, in every way the tests ask for.

    jit.py LINKER [--small] [--no-debug] [--attach WHEN] [--all] [--loop]

It prints the address of `steps` as the engine tells it, and what `longest` gives. With --loop it
runs until its standard input ends, which gives a debugger time to attach.
"""

import argparse
import ctypes
import re
import sys
import threading
from pathlib import Path

import llvmlite.binding as llvm

import gdbjit

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import tiny

import listeners

LINKERS = ("mcjit", "rtdyld", "jitlink")
Long = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


def source_ir(debug: bool = True) -> str:
    """The IR of collatz.tiny, with debug information or without."""
    text = str(tiny.Compiler(EXAMPLES / "collatz.tiny").module)
    if not debug:
        kept = [line for line in text.splitlines() if "llvm.dbg" not in line and line[:1] != "!"]
        text = re.sub(r",? !dbg !\d+", "", "\n".join(kept))
    return text


def loop_ir(name: str, factor: int = 3) -> str:
    """The IR of a function that gives `factor` to the power of n, in n turns of a loop."""
    return f"""
    define i64 @{name}(i64 %n) {{
    entry:
      br label %loop
    loop:
      %i = phi i64 [ 0, %entry ], [ %next, %loop ]
      %x = phi i64 [ 1, %entry ], [ %y, %loop ]
      %y = mul i64 %x, {factor}
      %next = add i64 %i, 1
      %more = icmp slt i64 %next, %n
      br i1 %more, label %loop, label %done
    done:
      ret i64 %y
    }}
    """


def target_machine(small: bool = False, opt: int = 0) -> llvm.TargetMachine:
    """One of the default code model, or of the small one with position-independent code."""
    model = {"codemodel": "small", "reloc": "pic"} if small else {}
    return llvm.Target.from_default_triple().create_target_machine(jit=True, opt=opt, **model)


class Program:
    """An engine of one kind and what it has loaded; `address` of a function as the engine says."""

    def __init__(self, linker: str, small: bool = False, opt: int = 0) -> None:
        self.linker = linker
        self.machine = target_machine(small, opt)
        self.trackers: list[llvm.ResourceTracker] = []
        if linker == "mcjit":
            empty = llvm.parse_assembly("")
            self.engine = llvm.create_mcjit_compiler(empty, self.machine)
            self.engine.remove_module(empty)  # or it would be an object of its own
        else:
            self.engine = llvm.create_lljit_compiler(self.machine, use_jit_link=linker == "jitlink")

    def load(self, text: str, *functions: str) -> list[int]:
        """Load an IR module and give its functions' addresses."""
        if self.linker == "mcjit":
            self.engine.add_module(llvm.parse_assembly(text))
            self.engine.finalize_object()
            return [self.engine.get_function_address(name) for name in functions]
        builder = llvm.JITLibraryBuilder().add_ir(text).add_current_process()
        for name in functions:
            builder.export_symbol(name)
        tracker = builder.link(self.engine, f"library{len(self.trackers)}")
        self.trackers.append(tracker)
        return [tracker[name] for name in functions]

    def unload(self) -> None:
        """Free what was loaded last; MCJIT frees all, with the engine."""
        if self.linker == "mcjit":
            self.engine.close()
        else:
            self.trackers.pop().close()


def initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("linker", choices=LINKERS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-debug", dest="debug", action="store_false")
    parser.add_argument("--attach", choices=("before", "after", "never"), default="before")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--limit", type=int, default=1000)
    options = parser.parse_args()
    initialize()
    program = Program(options.linker, options.small)
    tools = listeners.GDBRegistration(all=options.all), listeners.PerfMap()
    if options.attach == "before":
        listeners.attach(program.engine, *tools)
    steps, longest = program.load(source_ir(options.debug), "steps", "longest")
    if options.attach == "after":
        listeners.attach(program.engine, *tools)
    print(f"steps {steps:#x}", flush=True)
    if options.all:
        exported = [descriptor for descriptor in gdbjit.descriptors() if descriptor.exported]
        entries = sum(len(descriptor.entries()) for descriptor in exported)
        print("exported entries:", entries, flush=True)
    ended = threading.Event()
    if options.loop:
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        while not ended.is_set():
            Long(longest)(options.limit)
    print("longest", Long(longest)(options.limit))


if __name__ == "__main__":
    main()
