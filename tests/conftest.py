"""What all tests share."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "programs")]

from jit import LINKERS, Program, initialize


@pytest.fixture(scope="session", autouse=True)
def _llvm() -> None:
    initialize()


@pytest.fixture(params=LINKERS)
def linker(request: pytest.FixtureRequest) -> str:
    """Each way llvmlite loads code: MCJIT, LLJIT over RuntimeDyld, LLJIT over JITLink."""
    return request.param


@pytest.fixture
def program(linker: str) -> Program:
    """An engine of that kind with nothing loaded."""
    return Program(linker)
