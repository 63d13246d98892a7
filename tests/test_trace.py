"""Trace: a timeline that viewers of the Trace Event Format open, whatever ends the program."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from heard import function
from jit import LINKERS, Program, source_ir
from tools import run

import listeners
from listeners.timing import watchers

Event = dict[str, Any]

START = """
import os, sys
import listeners
from jit import LINKERS, Long, Program, initialize, source_ir
initialize()
"""


def read(path: Path) -> list[Event]:
    """The events, as viewers read them: of the array, the end may be missing.

    All is checked that the format demands of the events that we write.
    """
    text = path.read_text().rstrip().removesuffix(",")
    events = json.loads(text + "]", parse_float=Decimal)
    for event in events:
        assert event["ph"] in ("b", "e", "X", "M"), event
        assert isinstance(event["name"], str), event
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int), event  # noqa: PT018
        assert event["ts"] >= 0, event
        if event["ph"] != "M":
            assert event["cat"] in ("object", "engine", "listener"), event
    check_nesting([event for event in events if event["ph"] == "X"])
    return events


def check_nesting(complete: list[Event]) -> None:
    """Of two complete events of a thread, one is inside the other, or they are apart."""
    threads = defaultdict(list)
    for event in complete:
        start = event["ts"]
        threads[event["pid"], event["tid"]].append((start, -event["dur"], start + event["dur"]))
    for spans in threads.values():
        around: list[Decimal] = []  # the ends of those that are under way
        for start, _, end in sorted(spans):
            while around and around[-1] <= start:
                around.pop()
            assert not around or end <= around[-1]
            around.append(end)


def lifetimes(events: list[Event]) -> list[tuple[Event, Event | None]]:
    """Each load, and its unload if there is one."""
    pairs = []
    loaded: dict[tuple[int, str], Event] = {}
    for event in events:
        if event["ph"] == "b":
            key = event["pid"], event["id2"]["local"]
            assert key not in loaded, event
            loaded[key] = event
        elif event["ph"] == "e":
            begin = loaded.pop((event["pid"], event["id2"]["local"]))
            assert begin["name"] == event["name"]
            assert begin["ts"] <= event["ts"]
            pairs.append((begin, event))
    return pairs + [(begin, None) for begin in loaded.values()]


def of(events: list[Event], category: str) -> list[Event]:
    return [event for event in events if event.get("cat") == category]


def inside(one: Event, other: Event) -> bool:
    return (
        (one["pid"], one["tid"]) == (other["pid"], other["tid"])
        and other["ts"] <= one["ts"]
        and one["ts"] + one["dur"] <= other["ts"] + other["dur"]
    )


def execute(script: str, *arguments: str, status: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    program = START + textwrap.dedent(script)
    return run(sys.executable, "-c", program, *arguments, status=status, env=environment)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


# What is in it

KINDS = {
    "mcjit": "MCJIT",
    "rtdyld": "LLJIT over RuntimeDyld",
    "jitlink": "LLJIT over JITLink",
    "numba": "MCJIT",
}


@pytest.mark.parametrize("engine", KINDS)
def test_every_load_is_matched_by_its_unload(engine, path):
    script = """
    engine, path = sys.argv[1:]
    attachment = listeners.attach(None, listeners.GDBRegistration(), listeners.Trace(path))
    if engine == "numba":
        import numba
        numba.njit(lambda x: x + 1)(1)
    else:
        program = Program(engine)
        program.load(source_ir(), "steps", "longest")
        program.unload()
        program = Program(engine)
        program.load('define i64 @kept() { ret i64 1 }', 'kept')
    for obj in attachment.objects:
        print(obj.key, *(f"{s.address:#x}+{s.size}" for s in obj.sections))
    """
    still_there = execute(script, engine, str(path)).splitlines()
    events = read(path)
    pairs = lifetimes(events)
    assert all(end for _, end in pairs)
    if engine == "numba":
        assert any("lambda" in begin["name"] for begin, _ in pairs)
    else:
        assert [begin["name"] for begin, _ in pairs] == ["steps", "kept"]
    shown = {
        f"{args['key']} " + " ".join(f"{s['address']}+{s['size']}" for s in args["sections"])
        for args in (begin["args"] for begin, _ in pairs)
    }
    assert still_there
    assert {line.strip() for line in still_there} <= {line.strip() for line in shown}
    # Each load is part of what an engine of that kind did, and so is what each listener did.
    engines = of(events, "engine")
    assert {event["name"].partition(": ")[0] for event in engines} == {KINDS[engine]}
    loads = [{"dur": 0, **begin} for begin, _ in pairs]
    told = of(events, "listener")
    for event in (*loads, *told):
        assert any(inside(event, other) for other in engines), event
    for begin in loads:
        key = begin["args"]["key"]
        names = [one["name"] for one in told if one["args"]["key"] == key]
        assert {"GDBRegistration", "Trace"} == set(names)


def test_an_object_has_its_size_and_its_sections(program, path):
    with listeners.attach(program.engine, listeners.Trace(path)) as attachment:
        program.load(source_ir(), "steps")
    (obj,) = attachment.objects
    (begin,) = (begin for begin, _ in lifetimes(read(path)))
    assert begin["args"] == {
        "key": obj.key,
        "size": len(obj.elf),
        "sections": [
            {"name": section.name, "address": hex(section.address), "size": section.size}
            for section in obj.sections
        ],
    }
    assert int(begin["id2"]["local"], 16) == obj.key


class Slow(listeners.JITEventListener):
    def notify_object_loaded(self, obj):
        time.sleep(0.03)

    def notify_freeing_object(self, obj):
        time.sleep(0.02)


class Lame(Slow):
    pass


def test_the_time_of_each_listener_is_told_apart_from_that_of_the_engine(program, path):
    with (
        listeners.attach(None, Lame()),
        listeners.attach(program.engine, Slow(), listeners.Trace(path)),
    ):
        program.load(function("f"), "f")
        program.unload()
        program.engine.close()
    events = read(path)
    load, unload = of(events, "engine")
    for call, least in ((load, 30_000), (unload, 20_000)):
        told = {event["name"]: event for event in of(events, "listener") if inside(event, call)}
        assert set(told) == {"Slow", "Lame", "Trace"}
        assert least <= told["Slow"]["dur"] < call["dur"]
        assert least <= told["Lame"]["dur"] < call["dur"]
        own = call["args"]["without_listeners_us"]
        assert abs(own - (call["dur"] - sum(event["dur"] for event in told.values()))) < 1


def test_what_was_loaded_before_is_there_from_the_attach_on(program, path):
    program.load(function("early"), "early")
    before = time.monotonic_ns()
    with listeners.attach(program.engine, Slow(), listeners.Trace(path)):
        events = read(path)
    ((begin, _),) = lifetimes(events)
    assert (begin["name"], begin["ts"] * 1000 >= before) == ("early", True)
    (attach,) = of(events, "engine")
    assert attach["name"] == "attach"
    assert {event["name"] for event in of(events, "listener")} == {"Slow", "Trace"}


def test_a_trace_of_one_engine_tells_nothing_of_another(linker, path):
    ours, other = Program(linker), Program(linker)
    with listeners.attach(ours.engine, listeners.Trace(path)), listeners.attach(None, Slow()):
        other.load(function("other"), "other")
        ours.load(function("ours"), "ours")
    events = read(path)
    assert {event["args"]["object"] for event in of(events, "listener")} == {"ours"}
    assert len(of(events, "engine")) == 1


def test_a_trace_that_is_attached_twice_tells_all_once(linker, path):
    trace = listeners.Trace(path)
    first, second = Program(linker), Program(linker)
    with listeners.attach(first.engine, trace), listeners.attach(second.engine, trace):
        first.load(function("twice_first"), "twice_first")
        second.load(function("twice_second"), "twice_second")
    with listeners.attach(None, trace):
        second.unload()
        second.engine.close()
    events = read(path)
    names = [begin["name"] for begin, _ in lifetimes(events)]
    ours = [name for name in names if name.startswith("twice")]  # other tests leave theirs loaded
    assert ours == ["twice_second", "twice_first"]
    told = [(event["args"]["object"], event["name"]) for event in of(events, "listener")]
    assert told.count(("twice_first", "Trace")) == 2  # and once more by the second attach
    assert len(of(events, "engine")) == 4


def test_threads_and_processes_have_names(linker, path):
    def load(number: int) -> None:
        program = Program(linker)
        program.load(function(f"of_thread_{number}"), f"of_thread_{number}")
        program.unload()
        program.engine.close()

    with listeners.attach(None, listeners.Trace(path)):
        threads = [
            Thread(target=load, args=(number,), name=f"loader {number}") for number in (1, 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = read(path)
    assert all(end for begin, end in lifetimes(events) if begin["name"].startswith("of_thread"))
    names = {
        (event["name"], event["args"]["name"]): event["tid"]
        for event in events
        if event["ph"] == "M"
    }
    for number in (1, 2):
        tid = names["thread_name", f"loader {number}"]
        (begin,) = (e for e in events if e["ph"] == "b" and e["name"] == f"of_thread_{number}")
        assert begin["tid"] == tid
    assert ("process_name", " ".join(sys.orig_argv)[:1000]) in names


@pytest.mark.parametrize(
    "name", [r"\22]}, {\22ph\22: 1", r"a\0Anew\09line\1B[31m", r"\FF\FE", "größe", "x" * 5000]
)
def test_any_name_is_a_string(name, path):
    program = Program("mcjit")
    with listeners.attach(program.engine, listeners.Trace(path)) as attachment:
        program.load(function(name))
    (obj,) = attachment.objects
    ((begin, _),) = lifetimes(read(path))
    expected = obj.functions[0].demangled.encode(errors="replace").decode()
    assert begin["name"] == expected[:1000]


# Nobody pays who does not ask


def test_nothing_is_measured_unless_an_attached_listener_asks(program, path):
    before = list(watchers)  # other tests leave theirs
    listeners.Trace(path)
    assert watchers == before
    attachment = listeners.attach(program.engine, listeners.PerfMap(), listeners.Trace(path))
    program.load(function("f"), "f")
    attachment.detach()
    assert watchers == [*before, attachment]  # "f" is followed to its end
    program.unload()
    program.engine.close()
    assert watchers == before
    with pytest.raises(listeners.JITListenerError):
        listeners.attach(program.engine, Times([]))
    assert watchers == before


class Times(listeners.JITEventListener):
    def __init__(self, calls: list[listeners.EngineCall]) -> None:
        self.calls = calls

    def notify_time_spent(self, call: listeners.EngineCall) -> None:
        self.calls.append(call)


def test_any_listener_may_ask(program):
    calls: list[listeners.EngineCall] = []
    slow = Slow()
    before = time.monotonic_ns()
    with listeners.attach(program.engine, slow, times := Times(calls)) as attachment:
        program.load(function("f"), "f")
        (obj,) = attachment.objects
    (call,) = calls
    told = [(one.listener, one.obj) for one in call.notifications]
    assert told == [(slow, obj), (times, obj)]
    moments = [before, call.start]
    for one in call.notifications:
        moments += one.start, one.end
    assert moments == sorted(moments)
    assert moments[-1] <= call.end <= time.monotonic_ns()


def test_a_listener_that_fails_is_logged_once(program, caplog):
    class Failing(listeners.JITEventListener):
        def notify_time_spent(self, call):
            raise ValueError("times")

    calls: list[listeners.EngineCall] = []
    with listeners.attach(program.engine, Failing(), Times(calls)):
        program.load(function("f"), "f")
        program.load(function("g"), "g")
    assert len(calls) == 2
    assert caplog.text.count("Failing.notify_time_spent failed for EngineCall(") == 1


# Whatever becomes of the program


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


def test_a_malformed_object_is_told_with_what_is_wrong(path):
    def malformed():
        raise listeners.JITListenerError("no ELF file")

    trace = listeners.Trace(path)
    obj = listeners.LoadedObject(malformed, lambda address, size: b"")
    trace.notify_object_loaded(obj)
    trace.notify_freeing_object(obj)
    ((begin, end),) = lifetimes(read(path))
    assert begin["args"] == {"key": obj.key, "error": "no ELF file"}
    assert end


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


@pytest.mark.parametrize("text", ["import sys\n", "[]", '[\n{"ph": "b"', '{"traceEvents": [\n'])
def test_a_file_that_is_no_trace_is_left_alone(path, text):
    path.write_text(text)
    refused(path, "is not a trace that can be continued: remove it, or give another path")
    assert path.read_text() == text


# jitlisten run --trace


RUN = (sys.executable, "-m", "jitlisten", "run")
PARENT = (
    START
    + """
import multiprocessing, subprocess

def work(name):
    program = Program("rtdyld")
    program.load(f"define i64 @{name}() {{ ret i64 1 }}", name)
    kept.append(program)

kept = []
if __name__ == "__main__":
    work("parent")
    child = "import parent; parent.work('child')"
    subprocess.run([sys.executable, "-c", child], cwd="/", check=True)
    for method in "spawn", "fork":
        process = multiprocessing.get_context(method).Process(target=work, args=(method,))
        process.start()
        process.join()
"""
)


def test_run_writes_all_processes_to_one_file(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
    path = tmp_path / "a trace, of all.json"
    for options in ([], ["--gdb", "--perf-map"]):  # the second one replaces the first
        command = (*RUN, *options, "--trace", path.name, sys.executable, "parent.py")
        assert run(*command, cwd=tmp_path, env=environment) == ""
    events = read(path)
    pairs = lifetimes(events)
    assert all(end for _, end in pairs)
    names = {begin["name"]: begin["pid"] for begin, _ in pairs}
    assert sorted(names) == ["child", "fork", "parent", "spawn"]
    assert len(set(names.values())) == 4
    told = {event["name"] for event in of(events, "listener")}
    assert told == {"GDBRegistration", "PerfMap", "Trace"}


def test_run_refuses_a_file_that_is_no_trace(path):
    path.write_text("print('hello')")
    said = run(*RUN, f"--trace={path}", "true", status=125)
    assert said == f"jitlisten run: cannot write '{path}': it is there, and is not a trace\n"
    assert path.read_text() == "print('hello')"
    said = run(*RUN, "--trace", str(path / "none"), "true", status=125)
    assert said == f"jitlisten run: cannot write '{path}/none': Not a directory\n"


def test_the_variables_alone_trace():
    said = run(sys.executable, "-c", "import llvmlite.binding", env={"JITLISTEN": "trace"})
    assert said == (
        "jitlisten: nothing is attached: JITLISTEN names trace: set JITLISTEN_TRACE to the path"
        " of its file\n"
    )
