"""A collector that moves everything, over the whole of it: placed statepoints, tables, walker."""

import subprocess
import sys

from tools import PROGRAMS, run

DEEP = str(PROGRAMS / "deep.py")
THREADS, DEPTH = 4, 1000
COLLECTIONS = 250


def test_a_million_objects_move_under_deep_stacks_of_several_threads(linker):
    """What the program computes it checks itself."""
    printed = run(sys.executable, DEEP, linker, str(COLLECTIONS))
    moved, deepest, derived = map(int, printed.split())
    assert moved == COLLECTIONS * THREADS * DEPTH == 1_000_000
    assert deepest >= 3 * THREADS * DEPTH  # object, pointer into it, and the object above
    assert derived >= moved


def test_without_rewriting_the_roots_it_fails(linker):
    command = [sys.executable, DEEP, linker, "3", "--keep-roots"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode
