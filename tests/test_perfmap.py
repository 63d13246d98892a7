"""perfmap: what is in the map file after every call, whoever else writes to it."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmap import MapEntry, MapFile, PerfMapError, read_map

ROOT = Path(__file__).parent.parent
CODE = 0x7F00_0000_0000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "perf.map"


@pytest.fixture
def map_file(path: Path) -> Iterator[MapFile]:
    with MapFile(path=path) as file:
        yield file


def names(path: Path) -> list[str]:
    return [entry.name for entry in read_map(path)]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def run(program: str, *arguments: str) -> str:
    """What a Python program prints that uses the map file of its own process."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is written


def test_a_line_is_start_size_and_name_in_hexadecimal_without_prefix(
    map_file: MapFile, path: Path
) -> None:
    map_file.add_all([(CODE, 0x1F, "kernel(double*, int)"), MapEntry(CODE + 64, 8, "größe")])
    assert path.read_bytes() == (
        b"7f0000000000 1f kernel(double*, int)\n7f0000000040 8 gr\xc3\xb6\xc3\x9fe\n"
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("f", "f()"),
        ("f2", "f2()"),
        ("é", "é()"),
        ("for", "for"),
        ("", "[unnamed]"),
        ("a\nb\rc\x00d\x1b[31m\x7f\x9b", "a?b?c?d?[31m??"),
        ("line\u2028separator", "line?separator"),
        ("sym\udcff\ud800", "sym??"),
        (" spaced  out ", " spaced  out "),
        ("x" * 4096, "x" * 4096),
        ("x" * 4097, "x" * 4093 + "..."),
        ("é" * 4000, "é" * 2046 + "..."),
    ],
)
def test_a_name_is_written_so_that_perf_resolves_it(
    map_file: MapFile, path: Path, name: str, written: str
) -> None:
    map_file.add(CODE, 16, name)
    assert read_map(path) == [MapEntry(CODE, 16, written)]


def test_a_size_of_zero_is_written_as_one(map_file: MapFile, path: Path) -> None:
    map_file.add(CODE, 0, "assembly_label")
    assert read_map(path) == [MapEntry(CODE, 1, "assembly_label")]


@pytest.mark.parametrize(
    ("address", "size"), [(-1, 4), (CODE, -1), (1 << 64, 0), ((1 << 64) - 4, 5)]
)
def test_a_range_outside_the_address_space_is_an_error_and_nothing_is_written(
    map_file: MapFile, path: Path, address: int, size: int
) -> None:
    with pytest.raises(PerfMapError, match=r"'wrong', -?\d+ bytes at -?0x[0-9a-f]+, is not in"):
        map_file.add_all([(CODE, 16, "right"), (address, size, "wrong")])
    assert not path.exists()
    map_file.add((1 << 64) - 4, 4, "the last four bytes")


def test_no_file_is_made_before_the_first_entry(path: Path) -> None:
    with MapFile(path=path) as map_file:
        map_file.remove(CODE)
        map_file.add_all([])
    assert not path.exists()


def test_the_file_is_private_and_stays_after_close(path: Path) -> None:
    with MapFile(path=path) as map_file:
        map_file.add(CODE, 16, "function")
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(path) == ["function"]


def test_to_add_after_close_is_an_error(map_file: MapFile, path: Path) -> None:
    map_file.add(CODE, 16, "function")
    map_file.close()
    map_file.close()
    map_file.remove(CODE)
    with pytest.raises(PerfMapError, match=r"perf\.map'?: it is closed: make a new MapFile"):
        map_file.add(CODE, 16, "late")
    assert names(path) == ["function"]


def test_descriptors_are_closed_with_the_object(path: Path) -> None:
    before = descriptors()
    for _ in range(3):
        MapFile(path=path).add(CODE, 16, "function")
    gc.collect()
    assert descriptors() == before


def test_the_default_file_is_where_perf_looks() -> None:
    assert MapFile().path == Path(f"/tmp/perf-{os.getpid()}.map")
    assert MapFile(pid=1234567).path == Path("/tmp/perf-1234567.map")
    with pytest.raises(PerfMapError, match="not both"):
        MapFile(pid=1, path="/tmp/x")


# What goes


def test_removed_lines_go_and_the_others_stay(map_file: MapFile, path: Path) -> None:
    map_file.add_all([(CODE + 64 * i, 64, f"function_{i}") for i in range(6)])
    map_file.remove(CODE + 64)
    map_file.remove_all([CODE + 64 * 3, CODE + 64 * 4, CODE + 64 * 4, 0xDEAD])
    assert names(path) == ["function_0", "function_2", "function_5"]


@pytest.mark.parametrize(
    ("address", "size", "left"),
    [
        (CODE + 0x100, 0x100, ["first", "third"]),
        (CODE + 0x180, 1, ["first", "third"]),
        (CODE + 0xFF, 2, ["third"]),
        (CODE, 0x1000, []),
        (CODE + 0x300, 1, ["first", "second", "third"]),
        (CODE - 1, 1, ["first", "second", "third"]),
    ],
)
def test_a_new_entry_takes_the_place_of_those_it_overlaps(
    map_file: MapFile, path: Path, address: int, size: int, left: list[str]
) -> None:
    map_file.add_all(
        [(CODE, 0x100, "first"), (CODE + 0x100, 0x100, "second"), (CODE + 0x200, 0x100, "third")]
    )
    map_file.add(address, size, "newer")
    assert sorted(names(path)) == sorted([*left, "newer"])


def test_of_entries_in_a_batch_that_overlap_the_last_one_stays(
    map_file: MapFile, path: Path
) -> None:
    map_file.add(CODE + 90, 4, "older code")
    map_file.add_all(
        [(CODE + 32, 64, "function"), (CODE, 8, "far"), (CODE + 32, 16, "alias"), (CODE, 8, "for")]
    )
    assert names(path) == ["for", "alias"]


def test_loading_and_unloading_does_not_make_the_file_grow(map_file: MapFile, path: Path) -> None:
    map_file.add(CODE - 64, 64, "stays")
    sizes = set()
    for cycle in range(500):
        code = CODE + 4096 * (cycle % 7)
        map_file.add_all([(code + 64 * i, 64, f"function_{i}") for i in range(10)])
        sizes.add(path.stat().st_size)
        map_file.remove_all([code + 64 * i for i in range(10)])
    assert len(sizes) == 1
    assert names(path) == ["stays"]


RANGES = st.tuples(
    st.integers(0, 300).map(lambda n: CODE + n),
    st.integers(1, 40),
    st.text(st.characters(categories=["L", "P"]), min_size=3, max_size=30),
)
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(RANGES, min_size=1, max_size=5)),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 300).map(lambda n: CODE + n), max_size=9)),
    st.tuples(st.just("other"), st.text("xyz", min_size=3, max_size=9)),
)


def overlap(one: MapEntry, other: MapEntry) -> bool:
    return one.address < other.address + other.size and other.address < one.address + one.size


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_the_file_holds_what_is_live_and_every_line_of_others(
    steps: list[tuple[str, list[object] | str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("map") / "perf.map"
    live: list[MapEntry] = []
    others: list[MapEntry] = []
    with MapFile(path=path) as map_file, path.open("ab", buffering=0) as interpreter:
        inode = path.stat().st_ino
        for what, values in steps:
            if what == "add":
                map_file.add_all(values)
                batch = [MapEntry(*value) for value in values]
                live = [old for old in live if not any(overlap(old, new) for new in batch)]
                staying: list[MapEntry] = []
                for new in reversed(batch):
                    if not any(overlap(new, other) for other in staying):
                        staying.append(new)
                live += staying
            elif what == "remove":
                map_file.remove_all(values)
                live = [entry for entry in live if entry.address not in values]
            else:
                others.append(MapEntry(len(others), 1, values))
                interpreter.write(b"%x 1 %b\n" % (len(others) - 1, values.encode()))
            entries = read_map(path)
            assert sorted(e for e in entries if e.address >= CODE) == sorted(live)
            assert [e for e in entries if e.address < CODE] == others
    assert path.stat().st_ino == inode


# Others who write to the file, or to its descriptors


def test_an_interpreter_that_appends_at_the_same_moment_loses_nothing(
    map_file: MapFile, path: Path
) -> None:
    path.touch()
    stop = threading.Event()
    written = 0

    def interpret() -> None:
        nonlocal written
        with path.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"%x 1 py::function\n" % written)
                written += 1

    interpreter = threading.Thread(target=interpret)
    interpreter.start()
    try:
        for cycle in range(1500):
            map_file.add_all([(CODE + 64 * i, 64, f"f{i}" * (1 + cycle % 9)) for i in range(5)])
            if cycle % 2:
                map_file.remove_all([CODE + 64 * i for i in range(1, 5)])
    finally:
        stop.set()
        interpreter.join()
    entries = read_map(path)
    assert [e.address for e in entries if e.name == "py::function"] == list(range(written))
    assert len(entries) == written + 1


def test_a_last_line_without_newline_is_ended_first(map_file: MapFile, path: Path) -> None:
    path.write_text("1000 10 somebody's")
    map_file.add(CODE, 16, "function")
    assert names(path) == ["somebody's", "function"]


def test_bytes_that_are_no_longer_ours_are_never_overwritten(map_file: MapFile, path: Path) -> None:
    map_file.add_all([(CODE + 64 * i, 64, f"function_{i}") for i in range(4)])
    map_file.remove_all([CODE, CODE + 64])
    theirs = "\n".join(f"{i:x} 10 another program's line" for i in range(1, 20)) + "\n"
    path.write_text(theirs)
    map_file.remove(CODE + 128)
    map_file.add(CODE, 64, "function_0")
    map_file.add(CODE + 128, 64, "again")
    assert path.read_text() == theirs + f"{CODE:x} 40 function_0\n{CODE + 128:x} 40 again\n"


def test_a_deleted_file_is_made_again_with_all_that_is_live(map_file: MapFile, path: Path) -> None:
    map_file.add_all([(CODE, 64, "first"), (CODE + 64, 64, "second")])
    path.unlink()
    map_file.add(CODE + 128, 64, "third")
    assert names(path) == ["first", "second", "third"]
    map_file.remove(CODE)
    assert names(path) == ["second", "third"]


def test_a_daemon_that_closes_all_descriptors_keeps_its_other_files() -> None:
    program = """if True:
        import os, perfmap
        map_file = perfmap.MapFile()
        map_file.add(0x1000, 16, "before")
        os.closerange(3, 99)
        others = [open("/tmp", opener=lambda path, flags: os.open(path, os.O_TMPFILE | os.O_RDWR))
                  for _ in range(4)]
        map_file.add(0x2000, 16, "after")
        map_file.remove(0x1000)
        map_file.close()
        assert [os.fstat(file.fileno()).st_size for file in others] == [0] * 4
        print(*perfmap.read_map(map_file.path))
    """
    assert run(program) == "MapEntry(address=8192, size=16, name='after')\n"


def test_what_a_dead_process_of_the_same_number_left_is_emptied() -> None:
    program = """if True:
        import os, sys, perfmap
        path = f"/tmp/perf-{os.getpid()}.map"
        with open(path, "x") as file:
            file.write("1000 10 left\\n")
        age = float(sys.argv[1])
        os.utime(path, (0, os.stat(path).st_mtime - age))
        with perfmap.MapFile() as map_file:
            map_file.add(0x2000, 16, "ours")
        print(*[entry.name for entry in perfmap.read_map(path)])
    """
    assert run(program, "3600") == "ours\n"
    assert run(program, "0") == "left ours\n"


# What is refused, and what fails


def refused(path: Path, reason: str) -> None:
    map_file = MapFile(path=path)
    before = descriptors()
    with pytest.raises(PerfMapError, match=f"cannot use .*: .*{reason}.*; remove what is there"):
        map_file.add(CODE, 16, "function")
    assert descriptors() == before


def test_a_symbolic_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("text")
    path.symlink_to(precious)
    refused(path, "Too many levels of symbolic links")
    assert precious.read_text() == "text"


def test_a_hard_link_to_another_file_is_refused(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("text")
    path.hardlink_to(precious)
    refused(path, "it has 2 hard links, not one")
    assert precious.read_text() == "text"


def test_a_file_of_another_user_is_refused(path: Path) -> None:
    if os.geteuid() == 0:
        path.touch()
        os.chown(path, 65534, 65534)
        refused(path, "it belongs to user 65534, not to 0")
    else:
        refused(Path("/etc/passwd"), "Permission denied")


def test_what_is_no_regular_file_is_refused_without_waiting(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path)
    refused(path, "it is not a regular file")
    refused(tmp_path, "Is a directory")
    refused(tmp_path / "none" / "perf.map", "No such file or directory")
    refused(Path("nul\0byte"), "embedded null")


def test_a_batch_that_does_not_fit_leaves_nothing_and_the_object_goes_on(
    map_file: MapFile, path: Path
) -> None:
    # The limit on file sizes acts as a full disk does: first a short write, then an error.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    map_file.add(CODE, 64, "before")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 70, hard))
        with pytest.raises(PerfMapError, match=r"it took 70 of \d+ bytes; make room"):
            map_file.add_all([(CODE + 64 * i, 64, f"function_{i}") for i in range(1, 9)])
        assert names(path) == ["before"]
        with path.open("ab", buffering=0) as interpreter, contextlib.suppress(OSError):
            interpreter.write(b"1 1 x\n")
        with pytest.raises(PerfMapError, match="File too large; make room"):
            map_file.add_all([(CODE + 64 * i, 64, f"function_{i}") for i in range(1, 9)])
        map_file.add_all([(CODE + 64, 64, "fits"), (CODE + 128, 64, "as well")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    map_file.add(CODE + 192, 64, "after")
    assert sorted(names(path)) == ["after", "as well", "before", "fits"]


# Threads and finalizers


def test_threads_add_and_remove_at_once(map_file: MapFile, path: Path) -> None:
    def work(number: int) -> None:
        code = CODE + number * 0x10000
        for cycle in range(200):
            map_file.add_all([(code + 64 * i, 64, f"thread_{number}_{cycle}") for i in range(4)])
            if cycle != 199:
                map_file.remove_all([code + 64 * i for i in range(4)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(path)) == [f"thread_{number}_199" for number in range(4) for _ in range(4)]


class Unloaded:
    """Code in a reference cycle: the collector unloads it, at any bytecode."""

    def __init__(self, map_file: MapFile, address: int, lock: threading.RLock) -> None:
        self.unload = (map_file, address, lock)
        self.cycle = self

    def __del__(self) -> None:
        map_file, address, lock = self.unload
        with lock:
            map_file.remove(address)


def test_a_collection_in_the_middle_of_a_call_unloads_without_deadlock(
    map_file: MapFile, path: Path
) -> None:
    lock = threading.RLock()  # an engine's, which is held around the listeners too
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            with lock:
                map_file.add(CODE - 64, 64, "held")
            time.sleep(0)

    def unload() -> None:
        threshold = gc.get_threshold()
        gc.set_threshold(3, 1, 1)
        try:
            for number in range(1000):
                Unloaded(map_file, CODE + 64 * number, lock)
                map_file.add(CODE + 64 * number, 64, f"function_{number}")
        finally:
            gc.set_threshold(*threshold)
            stop.set()

    threads = [threading.Thread(target=target, daemon=True) for target in (load, unload)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "deadlock"
    gc.collect()
    left = {f"function_{number}" for number in range(1000)} & set(names(path))
    for number in range(1000):
        map_file.remove(CODE + 64 * number)
    assert names(path) == ["held"]
    assert len(left) < 1000


def test_an_error_of_work_done_for_another_call_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    map_file = MapFile(path=path)
    path.symlink_to("/nowhere")
    # A turn that is taken is what a second thread meets in the middle of the first's call.
    with map_file._turns._turn:
        map_file.add(CODE, 16, "done later")
    assert caplog.text == ""
    with pytest.raises(PerfMapError):
        map_file.add(CODE, 16, "now")
    assert "Too many levels of symbolic links" in caplog.text


# Fork

FORK = """if True:
    import os, sys, traceback
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
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            path = f"/tmp/perf-{os.getpid()}.map"
            status = 1
            try:
                check(path)
                status = 0
            except BaseException:
                traceback.print_exc()
            if os.path.exists(path):
                os.unlink(path)
            sys.stdout.flush()
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
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


# What is read


def test_lines_of_other_writers_are_read(path: Path) -> None:
    path.write_bytes(
        b"7f0000000000 b py::<module>:/tmp/a b.py\n\n\n\n"
        b"0x00007F0000000010 0x20 0xprefix \xff\n"
        b"1 0  two spaces, no newline"
    )
    assert read_map(path) == [
        MapEntry(CODE, 11, "py::<module>:/tmp/a b.py"),
        MapEntry(CODE + 16, 32, "0xprefix \\xff"),
        MapEntry(1, 0, " two spaces, no newline"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"x 10 name",
        b"10 y name",
        b"10 20",
        b"10 20 ",
        b"10",
        b"-10 20 name",
        b"10  20 name",
        b" 10 20 name",
        b"1_0 20 name",
        b"10000000000000000 1 name",
        b"\r",
        b"\0",
        b"1 1 " + b"x" * (1 << 20),
    ],
)
def test_a_malformed_line_is_an_error_with_its_number(path: Path, line: bytes) -> None:
    path.write_bytes(b"1000 10 good\n\n" + line + b"\n2000 10 good\n")
    with pytest.raises(PerfMapError, match=r"perf\.map', line 3: .* is not 'START SIZE name'"):
        read_map(path)


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in [
        (tmp_path / "fifo", "is not a regular file"),
        (Path("/dev/null"), "is not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (Path("nul\0byte"), "embedded null"),
    ]:
        with pytest.raises(PerfMapError, match=reason):
            read_map(path)


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(
        st.tuples(
            st.integers(0, (1 << 32) - 1).map(lambda number: number << 32),
            st.integers(1, 1 << 32),
            st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=3),
        ),
        unique_by=lambda entry: entry[0],
    )
)
def test_what_is_written_is_read_back(
    entries: list[tuple[int, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("map") / "perf.map"
    path.touch()
    with MapFile(path=path) as map_file:
        map_file.add_all(entries)
    assert read_map(path) == sorted(entries)


@settings(max_examples=1000, deadline=None)
@given(
    data=st.one_of(
        st.binary(),
        st.lists(
            st.sampled_from([b"7f00", b" ", b"1f", b"\n", b"0x", b"name", b"\xff", b"\0"])
        ).map(b"".join),
    )
)
def test_any_bytes_are_entries_or_an_error(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.map"
    path.write_bytes(data)
    with contextlib.suppress(PerfMapError):
        assert len(read_map(path)) == sum(1 for line in data.split(b"\n") if line)
