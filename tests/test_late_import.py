"""Engines made before `import listeners`: what can be heard of them is, and the rest is said."""

import sys

import pytest
from tools import run

SCRIPT = """
import ctypes, logging, sys
import llvmlite.binding as llvm
logging.basicConfig(format="%(message)s")
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

def machine():
    return llvm.Target.from_default_triple().create_target_machine(jit=True)

def ir(name):
    return f"define i64 @{name}() {{ ret i64 5 }}"

def link(engine, name):
    builder = llvm.JITLibraryBuilder().add_ir(ir(name)).export_symbol(name)
    return builder.link(engine, "library of " + name)

if linker == "mcjit":
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(ir("early")), machine())
    early = engine.get_function_address("early")
else:
    engine = llvm.create_lljit_compiler(machine(), use_jit_link=linker == "jitlink")
    first = link(engine, "early")
    early = first["early"]

import listeners
events = []

class Log(listeners.JITEventListener):
    def notify_object_loaded(self, obj):
        events.append(f"+{obj.name} {obj.functions[0].address:#x}")

    def notify_freeing_object(self, obj):
        events.append(f"-{obj.name}")

attachment = listeners.attach(engine, Log())
if linker == "mcjit":
    engine.add_module(llvm.parse_assembly(ir("late")))
    late = engine.get_function_address("late")
else:
    second = link(engine, "late")
    late = second["late"]
assert ctypes.CFUNCTYPE(ctypes.c_int64)(late)() == 5
"""

HEARD = """
assert events == [f"+early {early:#x}", f"+late {late:#x}"], events
if linker != "mcjit":
    second.close()
    first.close()
engine.close()
assert sorted(events[2:]) == ["-early", "-late"], events
assert not attachment.objects
"""


@pytest.mark.parametrize("linker", ["mcjit", "rtdyld"])
def test_what_llvm_registers_is_heard_with_exact_addresses(linker):
    assert run(sys.executable, "-c", f"linker = {linker!r}{SCRIPT}{HEARD}") == ""


def test_what_jitlink_compiles_is_not_and_that_is_said():
    said = run(sys.executable, "-c", f"linker = 'jitlink'{SCRIPT}print(events)")
    assert said.startswith(
        "linked by JITLink without being heard of: IR of an engine that was made"
    )
    assert said.endswith("[]\n")


def test_objects_given_to_it_are_heard():
    script = f"""linker = "jitlink"{SCRIPT}
elf = machine().emit_object(llvm.parse_assembly(ir("ready")))
tracker = llvm.JITLibraryBuilder().add_object_img(elf).export_symbol("ready").link(engine, "o")
assert events == [f"+ready {{tracker['ready']:#x}}"], events
tracker.close()
assert events[1:] == ["-ready"]
"""
    run(sys.executable, "-c", script)
