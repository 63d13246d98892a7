"""Whole programs of others, unchanged, under `jitlisten run`."""

import re
import subprocess
import sys

import pytest
from tools import run

pytestmark = pytest.mark.tools

LISTENING = (sys.executable, "-m", "jitlisten", "run", "--gdb", "--perf-map", "--")

NUMBA = """
import os, numba, perfmap

@numba.njit
def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

@numba.vectorize(["float64(float64)"])
def twice(x):
    return 2 * x

import numpy
print(mean(twice(numpy.arange(5.0))))
if "JITLISTEN" in os.environ:
    names = [entry.name for entry in perfmap.read_map(f"/tmp/perf-{os.getpid()}.map")]
    assert any(name == "__main__.mean(array(float64, 1d, C))" for name in names), names
    assert any(name == "__main__.twice(float64) [ufunc loop]" for name in names), names
"""


def test_a_numba_program():
    bare = run(sys.executable, "-c", NUMBA)
    assert run(*LISTENING, sys.executable, "-c", NUMBA) == bare == "4.0\n"


def test_llvmlites_own_tests():
    tests = (sys.executable, "-m", "llvmlite.tests")
    assert outcome(run(*LISTENING, *tests, timeout=280)) == outcome(run(*tests, timeout=280))


def outcome(said: str) -> str:
    """How many tests were run, and how they ended."""
    return re.sub(r" in [\d.]+s", "", said[said.rindex("\nRan ") :])


def test_numba_finds_its_functions_in_gdb_after_a_late_attach():
    """What Numba compiled before anybody listened is announced with exact addresses."""
    script = """
import numba
@numba.njit
def triple(x):
    return 3 * x
triple(2)
import listeners
attachment = listeners.attach(None, listeners.GDBRegistration(), listeners.PerfMap())
(compiled,) = [
    function for obj in attachment.objects for function in obj.functions
    if function.demangled == "__main__.triple(int64)"
]
pointer = triple.overloads[(numba.int64,)].library.get_pointer_to_function(compiled.name)
assert pointer == compiled.address
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
