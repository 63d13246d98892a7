"""Where llvmlite's engines cannot be heard, programs run as ever, and `attach` says why."""

from __future__ import annotations

import sys

from tools import run, tool

SCRIPT = """
import logging
logging.disable()
import llvmlite.binding as llvm
import listeners
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
machine = llvm.Target.from_default_triple().create_target_machine()
module = llvm.parse_assembly("define i32 @answer() { ret i32 42 }")
engine = llvm.create_mcjit_compiler(module, machine)
assert engine.get_function_address("answer")
for what in engine, None, engine:
    try:
        listeners.attach(what, listeners.GDBRegistration())
    except listeners.JITListenerError as error:
        print(error)
engine.close()
"""


def test_without_proc_the_program_goes_on_and_each_attach_says_why() -> None:
    hidden = 'mount -t tmpfs none /proc && exec "$@"'
    namespace = (tool("unshare"), "--mount", "--map-root-user", "sh", "-c", hidden, "sh")
    said = run(*namespace, sys.executable, "-c", SCRIPT).splitlines()
    assert len(said) == 3
    assert len(set(said)) == 1
    assert "cannot hear llvmlite's engines" in said[0]
    assert "this needs Linux with /proc mounted" in said[0]
