"""A forked child has its own registrations and its own map file, and leaves its parent's alone."""

import os
import sys

import pytest
from jit import LINKERS
from tools import run

SCRIPT = """
import os, gdbjit, perfmap, listeners
from jit import Program, initialize
initialize()
listeners.attach(None, listeners.GDBRegistration(), listeners.PerfMap())
parent = Program(linker)
parent.load("define i64 @inherited() { ret i64 1 }", "inherited")

def names():
    return sorted(entry.name for entry in perfmap.read_map(f"/tmp/perf-{os.getpid()}.map"))

def registered():
    return sum(len(descriptor.entries()) for descriptor in gdbjit.descriptors())

child = os.fork()
if not child:
    own = Program(linker)
    own.load("define i64 @of_child() { ret i64 2 }", "of_child")
    assert names() == ["inherited", "of_child"], names()
    assert registered() == 2
    parent.unload()
    assert names() == ["of_child"], names()
    assert registered() == 1
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert names() == ["inherited"], names()
assert registered() == 1
parent.load("define i64 @of_parent() { ret i64 3 }" , "of_parent")
assert names() == ["inherited", "of_parent"], names()
"""


@pytest.mark.parametrize("linker", LINKERS)
def test_a_child_goes_on_by_itself(linker):
    run(
        sys.executable,
        "-c",
        f"linker = {linker!r}{SCRIPT}",
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
