"""Trace: its file, whatever becomes of the program."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from pathlib import Path

import pytest
from heard import function
from jit import LINKERS, Program
from traces import NO_TRACES, START, execute, lifetimes, read

import listeners


def test_a_killed_program_leaves_a_trace(path):
    script = """
    listeners.attach(None, listeners.PerfMap(), listeners.Trace(sys.argv[1]))
    for number in range(100_000):
        program = Program("mcjit")
        program.load(f"define i64 @f{number}() {{ ret i64 1 }}", f"f{number}")
        program.unload()
    """
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", START + textwrap.dedent(script), str(path)]
    complete = 0
    for moment in (0.05, 0.13, 0.21):
        with subprocess.Popen(command, env=environment) as process:
            while not path.exists() or path.stat().st_size <= complete + 1000:
                time.sleep(0.01)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
        complete = path.stat().st_size
        open_ones = [begin for begin, end in lifetimes(read(path)) if not end]
        assert len(open_ones) <= 3
    assert len({event["pid"] for event in read(path)}) == 3


def test_a_forked_child_writes_of_itself(path):
    script = """
    listeners.attach(None, listeners.Trace(sys.argv[1]))
    program = Program(sys.argv[2])
    program.load("define i64 @inherited() { ret i64 1 }", "inherited")
    child = os.fork()
    if not child:
        Program(sys.argv[2]).load("define i64 @of_child() { ret i64 1 }", "of_child")
        program.unload()
        program.engine.close()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    if not os.fork():
        sys.exit(0)
    os.wait()
    print(os.getpid(), child)
    """
    for linker in LINKERS:
        parent, child = map(int, execute(script, str(path), linker).split())
        pairs = lifetimes(events := read(path))
        assert all(end for _, end in pairs)
        names = defaultdict(set)
        for begin, _ in pairs:
            names[begin["pid"]].add(begin["name"])
        assert names == {parent: {"inherited"}, child: {"inherited", "of_child"}}
        assert {event["pid"] for event in events} == {parent, child}
        path.unlink()


def test_a_full_disk_is_logged_once_and_the_program_goes_on(path):
    script = """
    import logging, resource
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stdout)
    listeners.attach(None, listeners.Trace(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    for number in range(20):
        program = Program("rtdyld")
        program.load(f"define i64 @f{number}(i64 %x) {{ ret i64 %x }}", f"f{number}")
        program.unload()
        program.engine.close()
    print("it goes on")
    """
    said = execute(script, str(path)).splitlines()
    assert said == [
        f"listeners: cannot write '{path}': File too large; events are missing in this trace from"
        " here on",
        "it goes on",
    ]
    assert 2000 < path.stat().st_size < 4000
    assert all(end for _, end in lifetimes(read(path))[:-1])


def test_a_file_that_has_gone_is_logged_once(program, path, caplog):
    with listeners.attach(program.engine, listeners.Trace(path)):
        path.unlink()
        program.load(function("f"), "f")
        program.load(function("g"), "g")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"cannot write '{path}': No such file or directory" in caplog.text
    assert not path.exists()


def test_a_later_trace_goes_on_in_the_same_file(program, path):
    for name in ("first", "second"):
        with listeners.attach(program.engine, listeners.Trace(path)):
            program.load(function(name), name)
        program.unload()
        program = Program(program.linker)
    pairs = lifetimes(read(path))
    assert [(begin["name"], bool(end)) for begin, end in pairs] == [
        ("first", True),
        ("second", True),
    ]


# What cannot be written


def refused(path: Path, reason: str) -> None:
    with pytest.raises(listeners.JITListenerError, match=reason):
        listeners.Trace(path)


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    refused(tmp_path, "Is a directory; give a path that can be written")
    refused(tmp_path / "none" / "trace", "No such file or directory")
    refused(Path(f"{tmp_path}/a\0b"), "null byte")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    refused(fifo, "not a regular file")


@pytest.mark.parametrize("text", [*NO_TRACES, '[\n{"ph": "b"'])
def test_a_file_that_is_no_trace_is_left_alone(path, text):
    path.write_text(text)
    refused(path, "is not a trace that can be continued: remove it, or give another path")
    assert path.read_text() == text
