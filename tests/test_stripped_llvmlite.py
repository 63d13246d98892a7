"""A libllvmlite without a symbol table: its engines are heard all the same."""

import shutil
import sys
from pathlib import Path

import llvmlite
import pytest
from jit import LINKERS
from tools import PROGRAMS, gdb, run, tool


@pytest.fixture(scope="module")
def stripped(tmp_path_factory) -> Path:
    """A directory with a copy of llvmlite whose library has lost its symbol table."""
    directory = tmp_path_factory.mktemp("stripped")
    package = Path(llvmlite.__file__).parent
    shutil.copytree(
        package, directory / "llvmlite", ignore=shutil.ignore_patterns("tests", "libllvmlite.so")
    )
    library = Path("binding", "libllvmlite.so")
    run(tool("strip"), "-o", directory / "llvmlite" / library, package / library)
    return directory


@pytest.fixture(autouse=True)
def _in_its_place(stripped, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(stripped))


CHECK = """
import ctypes, llvmlite, jit, listeners
from listeners.engines.llvmlite import engines
jit.initialize()
program = jit.Program(linker)
if when == "before":
    attachment = listeners.attach(program.engine)
text = jit.source_ir()
steps, longest = program.load(text, "steps", "longest")
if when == "after":
    attachment = listeners.attach(program.engine)
assert "stripped" in llvmlite.__file__
assert engines._descriptor.visible is None
(obj,) = attachment.objects
assert obj.function("steps").address == steps
assert obj.function("longest").address == longest
assert all(section.address for section in obj.sections), obj.sections
assert {section.name for section in obj.sections} >= {".ltext", ".eh_frame"}
program.unload()
assert attachment.objects == ()
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("linker", LINKERS)
def test_its_engines_tell_exact_addresses(linker, when):
    run(sys.executable, "-c", f"linker, when = {linker!r}, {when!r}{CHECK}", cwd=PROGRAMS)


@pytest.mark.tools
@pytest.mark.parametrize("linker", LINKERS)
def test_gdb_stops_in_their_code(linker):
    """gdb cannot see LLVM's descriptor there, so all is registered in one of ours."""
    said = gdb("break steps", "run", "backtrace 2", program=(f"{PROGRAMS}/jit.py", linker))
    assert "#0  steps (n=1) at collatz.tiny:4" in said
    assert "in longest (limit=1000) at collatz.tiny:18" in said
