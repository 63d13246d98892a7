"""Programs that know nothing of listeners, to be looked at from outside.

    unaware.py numba           `longest` calls `steps`
    unaware.py mcjit [--crash] [--nobody]
                               the same in the tiny language; with --crash, `steps` writes to 0;
                               with --nobody, it runs as that user
    unaware.py churn COUNT     COUNT objects that stay, while others come and go; in the end it
                               prints how many a second
    unaware.py names           functions whose names a terminal should not get

They run until standard input ends.
"""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Long = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


def numba_longest():
    from numbatiny import compiled

    longest = compiled(EXAMPLES / "collatz.tiny")["longest"]
    longest(2)  # compiles it
    return longest


def machine():
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(jit=True, opt=0)


def tiny_longest(crash):
    import llvmlite.binding as llvm

    sys.path.append(str(EXAMPLES))
    sys.modules["listeners"] = ModuleType("listeners")  # the compiler's own program imports it
    import tiny

    text = str(tiny.Compiler(EXAMPLES / "collatz.tiny").module)
    if crash:
        text = text.replace('store i64 0, i64* %"count"', "store volatile i64 0, i64* null", 1)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine())
    engine.finalize_object()
    longest = Long(engine.get_function_address("longest"))
    longest.engine = engine
    return longest


def churn(count):
    import llvmlite.binding as llvm

    text = "define i64 @kind_nnnnnnn(i64 %x) { ret i64 %x }"
    emitted = machine().emit_object(llvm.parse_assembly(text))

    def load(kind, number):
        name = f"{kind}_{number:07}"
        file = llvm.ObjectFileRef.from_data(emitted.replace(b"kind_nnnnnnn", name.encode()))
        nothing = llvm.parse_assembly("")
        engine = llvm.create_mcjit_compiler(nothing, machine())
        engine.remove_module(nothing)
        engine.add_object_file(file)
        engine.finalize_object()
        return engine

    staying = [load("stay", number) for number in range(count)]
    print("ready", flush=True)
    start, loads = time.monotonic(), 0
    passing = []
    while not ended.is_set():
        passing.append(load("pass", loads))
        loads += 1
        if len(passing) > 10:
            passing.pop(loads % 10).close()
    print(loads / (time.monotonic() - start))
    assert len(staying) == count


def names():
    import llvmlite.binding as llvm

    text = r'define void @"one\0Atwo"() { ret void } define void @"\1B[31mred"() { ret void }'
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine())
    engine.finalize_object()
    print("ready", flush=True)
    ended.wait()


ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
if sys.argv[1] == "churn":
    churn(int(sys.argv[2]))
elif sys.argv[1] == "names":
    names()
else:
    longest = numba_longest() if sys.argv[1] == "numba" else tiny_longest("--crash" in sys.argv)
    if "--nobody" in sys.argv:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, which the change of user has taken away
    print("ready", flush=True)
    longest(10_000)
    while not ended.is_set():
        longest(10_000)
