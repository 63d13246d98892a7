"""What all tests share."""

import atexit
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding as llvm
import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "programs")]
os.environ["PERF_CONFIG"] = str(Path(__file__).with_name("perfconfig"))  # for all that is started

from jit import LINKERS, Program, initialize

from perfmap import MapFile

pytest_plugins = ["outside", "recorded", "recordings", "walkers"]  # what several test files share


@pytest.fixture(scope="session", autouse=True)
def _llvm() -> None:
    initialize()


@pytest.fixture(scope="session")
def _sweeper() -> subprocess.Popen[bytes]:
    program = str(Path(__file__).with_name("sweeper.py"))
    this = os.getpid()
    command = [sys.executable, "-I", "-S", program, str(this)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"watching\n"

    @atexit.register  # before any listener does, and so called after them
    def end() -> None:
        if os.getpid() == this:
            process.communicate()

    return process


@pytest.fixture(scope="module", autouse=True)
def _no_map_files_stay(_sweeper: subprocess.Popen[bytes]) -> Iterator[None]:
    """Removes those that this process or the programs it has started have made in /tmp."""
    yield
    assert _sweeper.stdin
    os.write(_sweeper.stdin.fileno(), b"\n")


@pytest.fixture(params=LINKERS)
def linker(request: pytest.FixtureRequest) -> str:
    """Each way llvmlite loads code: MCJIT, LLJIT over RuntimeDyld, LLJIT over JITLink."""
    return request.param


@pytest.fixture
def program(linker: str) -> Program:
    """An engine of that kind with nothing loaded."""
    return Program(linker)


@pytest.fixture
def settled() -> None:
    """For tests that count: what others have left for the collector goes before, not meanwhile."""
    gc.collect()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file may be made."""
    return tmp_path / "file"


@pytest.fixture
def map_file(path: Path) -> Iterator[MapFile]:
    with MapFile(path=path) as file:
        yield file


@pytest.fixture
def patchpoints_built() -> Iterator[None]:
    """For tests that build patchpoints, which sets an option of LLVM's for the whole process."""
    yield
    llvm.set_option("", "-enable-patchpoint-liveness=true")
