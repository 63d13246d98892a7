"""`import listeners` without llvmlite, whose engines are heard from its own import on."""

import sys

import pytest
from tools import run

LATER = """
import sys, importlib.util, logging
logging.basicConfig(format="%(message)s")
import listeners
assert "llvmlite" not in sys.modules
assert importlib.util.find_spec("llvmlite.binding")  # to ask is not to import
import llvmlite.binding as llvm
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
engine = llvm.create_lljit_compiler(use_jit_link=True)
library = llvm.JITLibraryBuilder().add_ir("define void @early() { ret void }")
tracker = library.export_symbol("early").link(engine, "library")
"""


def test_what_jitlink_linked_before_attach_is_known_when_llvmlite_came_after_listeners() -> None:
    script = LATER + "print([obj.name for obj in listeners.attach(engine).objects])"
    assert run(sys.executable, "-c", script) == "['early']\n"


def test_attach_imports_llvmlite_when_nobody_has() -> None:
    script = "import listeners; print(listeners.attach(None).objects)"
    assert run(sys.executable, "-c", script) == "()\n"


def test_attach_imports_llvmlite_under_jitlisten(tmp_path) -> None:
    """Both wait for the import then."""
    script = """
import listeners
attachment = listeners.attach(None)
import llvmlite.binding as llvm, os
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
engine = llvm.create_lljit_compiler()
library = llvm.JITLibraryBuilder().add_ir("define void @steps() { ret void }")
tracker = library.export_symbol("steps").link(engine, "library")
path = f"/tmp/perf-{os.getpid()}.map"
print([obj.name for obj in attachment.objects], open(path).read().split()[2])
os.unlink(path)
"""
    command = ("jitlisten", "run", "--perf-map", "--", sys.executable, "-c", script)
    assert run(sys.executable, "-m", *command) == "['steps'] steps\n"


@pytest.mark.parametrize("module", ["llvmlite.binding.ffi", "listeners.engines.calls"])
def test_an_llvmlite_that_cannot_be_heard_can_still_be_imported(module: str) -> None:
    """One without what we hold on to; and attaching says so."""
    script = f"""
import logging, sys
logging.basicConfig(format="%(message)s")
import listeners
if {module == "listeners.engines.calls"}:
    sys.modules["{module}"] = None
import llvmlite.binding
print("imported", llvmlite.binding.Target)
"""
    said = run(sys.executable, "-c", script)
    assert "imported <class" in said
    assert ("cannot be heard" in said) == (module == "listeners.engines.calls")
