"""Every kind of function that Numba compiles, in perf, gdb and reports, by its written name."""

import gc
import os
import re
import sys
from pathlib import Path

import numba
import pytest
from tools import PROGRAMS, gdb, perf_symbols, run, tool

import listeners

KINDS = f"{PROGRAMS}/kinds.py"
JITLISTEN = (sys.executable, "-m", "jitlisten")
ARRAY = "array(float64, 1d, C)"
NAMES = [
    "__main__.lazy(float64, int64)",
    "__main__.lazy(float32, int64)",
    "__main__.eager(float64, int64)",
    "__main__.cached(float64, int64)",
    "__main__.threaded(float64, int64)",
    "__main__.vectorized(float64, int64) [ufunc loop]",
    "__main__.generalized(array(float64, 1d, A), int64, array(float64, 1d, A))",
    "__main__.callback(float64, int64)",
    "__main__.generator(float64, int64) [next]",
    f"__main__.visible({ARRAY}, int64)",
    "__main__.outer.<locals>.inner(float64, int64)",
]
# The loop of a parallel function and a stencil are functions of names that Numba makes.
PARALLEL = r"<dynamic>\.__numba_parfor_gufunc_0x\w+\(array\(uint64, 1d, C\), int64, .*\)"
STENCIL = rf"numba\.stencils\.stencil\.__numba_stencil_0x\w+\({re.escape(ARRAY)}\)"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> dict[str, str]:
    """An environment in which an earlier run has left `cached` on the disk."""
    directory = tmp_path_factory.mktemp("cache")
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(directory),
        "NUMBA_NUM_THREADS": "2",
        "JITDUMPDIR": str(directory),
    }
    run(sys.executable, KINDS, "quick", env=environment)
    assert list(directory.rglob("kinds.cached-*.nbc"))
    return environment


SAMPLING = ("-q", "--buildid-mmap", "-k", "mono", "-e", "cpu-clock:u", "-c", "1000000")
RECORD = {
    "map": (
        *("perf", "record", *SAMPLING, "-o", "perf.data", "--"),
        *(*JITLISTEN, "run", "--perf-map", "--"),
    ),
    "images": (*JITLISTEN, "record", *SAMPLING, "-o", "perf.data", "--"),
}


@pytest.mark.tools
@pytest.mark.parametrize("way", RECORD)
def test_perf_names_every_kind_of_function(way: str, cache: dict[str, str], tmp_path: Path) -> None:
    tool("perf")
    run(*RECORD[way], sys.executable, KINDS, env=cache, cwd=tmp_path)
    shares = perf_symbols(tmp_path / "perf.data")
    assert not [name for name in NAMES if name not in shares], shares
    for made in (PARALLEL, STENCIL):
        assert any(re.fullmatch(made, name) for name in shares), shares
    ours = [name for name in shares if "__main__" in name or "numba" in name]  # LLVM's are C++
    assert not [name for name in ours if re.search(r"_Z|\[abi:|_3c|long long", name)]
    if way == "images":
        said = run(*JITLISTEN, "report", "--annotate", "visible", env=cache, cwd=tmp_path)
        assert "__main__.visible(array(float64, 1d, C), int64)" in said
        assert re.search(r"\d\.\d % +104  +x = 3\.9 \* x \* \(1 - x\)\n", said), said


@pytest.mark.tools
def test_gdb_stops_in_every_kind_of_function(cache: dict[str, str]) -> None:
    functions = ["lazy", "eager", "cached", "parallel", "threaded", "generalized", "callback"]
    functions += ["generator::next", "visible", "outer::_3clocals_3e::inner"]
    line = Path(KINDS).read_text().splitlines().index("    x = xs[0]") + 2
    said = gdb(
        *(f"set environment NUMBA_CACHE_DIR {cache['NUMBA_CACHE_DIR']}", "tbreak visible"),
        *(f"tbreak -qualified __main__::{function}" for function in functions),
        *(f"tbreak kinds.py:{line}", "run", "rbreak ^__ufunc__.*vectorized"),
        *["continue"] * (len(functions) + 2),
        program=("-m", "jitlisten", "run", "--gdb", "--", sys.executable, KINDS, "quick"),
    )
    for function in functions:
        assert re.search(rf"hit Temporary breakpoint .*\b__main__::{function}(\[abi:|\()", said), (
            said
        )
    assert re.search(r"hit Breakpoint .* __ufunc__\._ZN8__main__10vectorized", said), said
    # A name alone is also that of the wrapper.
    assert re.search(r"breakpoint 1.*, 0x\w+ in cpython::__main__::visible", said), said
    for at in (line - 1, line):
        assert re.search(
            rf"__main__::visible.* \(xs=\.\.\., n=500\) at .*kinds\.py:{at}\n", said
        ), said


class Heard(listeners.JITEventListener):
    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.freed: list[str] = []

    def notify_object_loaded(self, obj: listeners.LoadedObject) -> None:
        self.loaded.append(obj.name)

    def notify_freeing_object(self, obj: listeners.LoadedObject) -> None:
        self.freed.append(obj.name)


def test_numba_keeps_what_it_has_compiled() -> None:
    """Code of functions that are gone stays loaded, and named."""
    heard = Heard()
    with listeners.attach(None, heard):

        @numba.njit
        def dropped(x):
            return x + 1

        dropped(1)
        dropped.recompile()
        del dropped
        gc.collect()
    (name,) = {name for name in heard.loaded if "dropped" in name}
    assert heard.loaded.count(name) == 2
    assert name == f"{__name__}.test_numba_keeps_what_it_has_compiled.<locals>.dropped(int64)"
    assert name not in heard.freed
