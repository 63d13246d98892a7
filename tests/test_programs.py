"""Whole programs of others, unchanged, under `jitlisten run`."""

import os
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


NUMBAS_OWN = """
    test_alignment test_cfunc.TestCFunc test_cfunc.TestCffiStruct test_closure.TestClosure
    test_codegen test_dispatcher.TestDispatcher test_dispatcher.TestDispatcherMethods
    test_dispatcher.TestSignatureHandling test_dispatcher.TestSignatureHandlingObjectMode
    test_generators.TestGeneratorWithNRT test_generators.TestNrtNestedGen test_itanium_mangler
    test_jitclasses.TestJitClass.test_user_getter_setter test_nested_calls test_optional test_range
    test_recursion test_tuples test_unicode_names npyufunc.test_caching.TestDUfuncCacheTest
    npyufunc.test_parallel_ufunc_issues.TestParGUfuncIssues
    npyufunc.test_ufuncbuilding.TestGUfuncBuilding npyufunc.test_ufuncbuilding.TestUfuncBuilding
    npyufunc.test_ufuncbuilding.TestVectorizeDecor
"""


def test_numbas_own_tests(tmp_path):
    """Some 200 that are quick, with every listener there is."""
    trace = tmp_path / "trace.json"
    ways = ("--gdb", "--perf-map", "--images", "--jitdump", "--trace", str(trace), "--")
    names = [f"numba.tests.{name}" for name in NUMBAS_OWN.split()]
    tests = (sys.executable, "-m", "unittest")
    said = run(
        *(sys.executable, "-m", "jitlisten", "run", *ways, *tests, *names),
        env={**os.environ, "JITDUMPDIR": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path)},
        status=None,
        timeout=280,
    )
    assert int(re.search(r"^Ran (\d+) tests", said, re.MULTILINE)[1]) > 200, said
    failed = failures(said)
    if failed:  # a machine may lack what they need
        assert failed == failures(run(*tests, *failed, status=None)), said
    assert "errors are not reported" not in said
    assert trace.stat().st_size
    assert list(tmp_path.rglob("jit-*.dump"))
    assert list(tmp_path.rglob("jit-listeners-*/*.so"))


def failures(said: str) -> list[str]:
    """The tests that have failed; Python 3.10 has their names only in front of their classes."""
    found = re.findall(r"^(?:FAIL|ERROR): (\w+) \(([\w.]+)\)", said, re.MULTILINE)
    return [f"{where.removesuffix(f'.{name}')}.{name}" for name, where in found]


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
