"""Trace: a timeline that viewers of the Trace Event Format open."""

from __future__ import annotations

import sys
import time
from threading import Thread

import pytest
from heard import function
from jit import Program, source_ir
from traces import Slow, execute, inside, lifetimes, of, read

import listeners

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
