"""MapFile, when others write to the file, to its place or to its descriptors, and at once."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import tools
from mapfiles import CODE, ROOT, names, open_in, run

from perfmap import MapFile, PerfMapError, read_map

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
    time.sleep(0.1)  # until it is looked for again
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


def refused(path: Path, reason: str, remedy: str = "remove what is there, or") -> None:
    map_file = MapFile(path=path)
    before = open_in(path.parent)
    with pytest.raises(PerfMapError, match=f"cannot use .*: .*{reason}.*; {remedy}"):
        map_file.add(CODE, 16, "function")
    assert open_in(path.parent) == before


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
    refused(Path("nul\0byte"), "embedded null", ".* or choose another path")


def test_where_none_can_be_made_the_error_says_what_can_be_done(tmp_path: Path) -> None:
    remedy = "make its directory one that can be written, use code images or a jitdump"
    refused(tmp_path / "none" / "perf.map", "No such file or directory", remedy)
    mount = 'mount -t tmpfs none "$0" && touch "$0/there" && mount -o remount,ro "$0" && exec "$@"'
    program = """if True:
        import sys
        from perfmap import MapFile, PerfMapError
        for path in sys.argv[1:]:
            try:
                MapFile(path=path).add(0x1000, 16, "function")
            except PerfMapError as error:
                print(error)
    """
    paths = [str(tmp_path / name) for name in ("there", "missing")]
    said = tools.run(
        *(tools.tool("unshare"), "--mount", "sh", "-c", mount, str(tmp_path)),
        *(sys.executable, "-c", program, *paths),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    expected = [f"cannot use {path!r}: Read-only file system; {remedy}" for path in paths]
    assert [line.removesuffix(", or choose another path") for line in said.splitlines()] == expected


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

    loaded: ClassVar[set[int]] = set()

    def __init__(self, map_file: MapFile, address: int, lock: threading.RLock) -> None:
        self.unload = (map_file, address, lock)
        self.cycle = self
        self.loaded.add(address)

    def __del__(self) -> None:
        map_file, address, lock = self.unload
        with lock:
            map_file.remove(address)
            self.loaded.remove(address)


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
                map_file.add(CODE + 64 * number, 64, f"function_{number}")
                Unloaded(map_file, CODE + 64 * number, lock)  # collected in one of the next calls
        finally:
            gc.set_threshold(*threshold)
            stop.set()

    threads = [threading.Thread(target=target, daemon=True) for target in (load, unload)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "deadlock"
    while Unloaded.loaded:
        gc.collect()  # does nothing while another thread, of the tests' own, is at it
    assert names(path) == ["held"]


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
