"""A collector that moves everything, over the whole of it: placed statepoints, tables, walker."""

import subprocess
import sys

from tools import PROGRAMS, run

DEEP = str(PROGRAMS / "deep.py")
THREADS, DEPTH = 4, 1000


def test_a_million_objects_move_under_deep_stacks_of_several_threads(linker):
    """A third of a million by each linker; what the program computes it checks itself."""
    moved, deepest, derived = map(int, run(sys.executable, DEEP, linker, "84").split())
    assert moved == 84 * THREADS * DEPTH
    assert deepest >= 3 * THREADS * DEPTH  # object, pointer into it, and the object above
    assert derived >= moved


def test_without_rewriting_the_roots_it_fails(linker):
    command = [sys.executable, DEEP, linker, "3", "--keep-roots"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode
