"""MapFile, when the process forks."""

from __future__ import annotations

from pathlib import Path

import pytest
from mapfiles import run

FORK = """if True:
    import multiprocessing, os, sys
    parent = f"/tmp/perf-{os.getpid()}.map"
    if "copy" in sys.argv:
        # As CPython 3.13 does when it is told to keep its trampolines over a fork.
        def copy():
            with open(f"/tmp/perf-{os.getppid()}.map") as old:
                with open(f"/tmp/perf-{os.getpid()}.map", "w") as new:
                    new.write(old.read())

        os.register_at_fork(after_in_child=copy)
    import perfmap

    def names(path):
        return [entry.name for entry in perfmap.read_map(path)] if os.path.exists(path) else None

    def forked(check):
        def child():
            path = f"/tmp/perf-{os.getpid()}.map"
            try:
                check(path)
            finally:
                if os.path.exists(path):
                    os.unlink(path)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
"""


@pytest.mark.parametrize("copied", ["no copy", "copy"])
def test_a_forked_child_names_inherited_code_in_a_file_of_its_own(copied: str) -> None:
    program = (
        FORK
        + """
    map_file = perfmap.MapFile()
    map_file.add_all([(0x1000, 16, "kept"), (0x2000, 16, "dropped"), (0x3000, 16, "gone")])
    map_file.remove(0x3000)

    def child(path):
        assert str(map_file.path) == path
        assert names(path) == ["kept", "dropped"], names(path)
        map_file.remove(0x2000)
        map_file.add(0x4000, 16, "child's")
        assert sorted(names(path)) == ["child's", "kept"], names(path)

        def grandchild(path):
            assert sorted(names(path)) == ["child's", "kept"], names(path)

        forked(grandchild)

    forked(child)
    assert names(parent) == ["kept", "dropped"], names(parent)
    map_file.add(0x5000, 16, "parent's")
    print(*sorted(names(parent)))
"""
    )
    assert run(program, copied) == "dropped kept parent's\n"


def test_a_forked_child_without_code_leaves_no_file() -> None:
    program = (
        FORK
        + """
    map_file = perfmap.MapFile()
    map_file.add(0x1000, 16, "function")
    map_file.remove(0x1000)
    forked(lambda path: print(names(path)))
"""
    )
    assert run(program) == "None\n"


def test_a_file_that_is_not_the_process_s_own_stays_with_the_process_that_made_it(
    path: Path,
) -> None:
    program = (
        FORK
        + """
    map_file = perfmap.MapFile(path=sys.argv[1])
    map_file.add(0x1000, 16, "function")

    def child(path):
        map_file.remove(0x1000)
        try:
            map_file.add(0x2000, 16, "child's")
        except perfmap.PerfMapError as error:
            print(error)
        map_file.close()
        assert names(path) is None

    forked(child)
    map_file.add(0x3000, 16, "parent's")
    print(*names(sys.argv[1]))
"""
    )
    error, after = run(program, str(path)).splitlines()
    assert error.endswith("it belongs to the process that made it: make a MapFile in this one")
    assert after == "function parent's"


def test_a_fork_while_a_thread_is_at_work_gives_a_usable_child() -> None:
    program = (
        FORK
        + """
    import threading
    map_file = perfmap.MapFile()
    map_file.add(0x10, 16, "always")
    stop = threading.Event()

    def work():
        while not stop.is_set():
            map_file.add_all([(0x1000 + 64 * i, 64, f"function_{i}") for i in range(50)])
            map_file.remove_all([0x1000 + 64 * i for i in range(50)])

    thread = threading.Thread(target=work)
    thread.start()

    def child(path):
        map_file.remove_all([0x1000 + 64 * i for i in range(50)])
        map_file.add(0x2000000, 16, "child's")
        assert sorted(names(path)) == ["always", "child's"], names(path)

    for _ in range(40):
        forked(child)
    stop.set()
    thread.join()
    print(*names(parent))
"""
    )
    assert run(program) == "always\n"


def test_a_fork_that_cannot_make_its_file_goes_on_and_logs_it() -> None:
    program = (
        FORK.replace("import perfmap", "")
        + """
    import logging
    logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
    os.register_at_fork(after_in_child=lambda: os.symlink("x", f"/tmp/perf-{os.getpid()}.map"))
    import perfmap
    map_file = perfmap.MapFile()
    map_file.add(0x1000, 16, "function")

    def child(path):
        os.unlink(path)
        map_file.add(0x2000, 16, "later")
        print(*sorted(names(path)))

    forked(child)
"""
    )
    logged, later = run(program).splitlines()
    assert logged.startswith("perfmap: after the fork, code may have no names in this process: ")
    assert later == "function later"
