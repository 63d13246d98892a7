"""`attach`: what is announced, to whom, when, and in which order."""

import ctypes
import gc
import logging
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from heard import Int, Log, function
from jit import Program, target_machine

import listeners
import perfmap

DATA = """
@counter = global i64 41
@table = private constant [4 x i64] [i64 11, i64 22, i64 33, i64 44]
define i64 @next(i64 %i) {
  %old = load i64, ptr @counter
  %place = getelementptr i64, ptr @table, i64 %i
  %step = load i64, ptr %place
  %new = add i64 %old, %step
  store i64 %new, ptr @counter
  ret i64 %new
}
"""


@pytest.mark.parametrize("small", [False, True], ids=["default", "small"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_object_is_announced_with_the_exact_address_of_every_section(linker, small, when):
    program = Program(linker, small)
    if when == "before":
        attachment = listeners.attach(program.engine, Log())
        (address,) = program.load(DATA, "next")
    else:
        (address,) = program.load(DATA, "next")
        attachment = listeners.attach(program.engine, Log())
    (obj,) = attachment.objects
    assert obj.function("next").address == address
    names = {section.name for section in obj.sections}
    assert len(names) == len(obj.sections)
    assert ".eh_frame" in names
    assert {name.replace(".l", ".") for name in names} >= {".text", ".data"}
    for section in obj.sections:
        assert section.address % 4 == 0
        memory = ctypes.string_at(section.address, section.size)
        if section.name.replace(".l", ".") in (".data", ".rodata"):  # nothing in it is relocated
            assert memory in obj.elf
    data = next(s for s in obj.sections if s.name.replace(".l", ".") == ".data")
    assert ctypes.c_int64.from_address(data.address).value == 41
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(2) == 74
    assert ctypes.c_int64.from_address(data.address).value == 74


def test_nobody_has_the_address_before_the_listeners_do(program):
    class Calls(listeners.JITEventListener):
        def notify_object_loaded(self, obj):
            self.result = Int(obj.function("f").address)()  # it can run already

    calls = Calls()
    listeners.attach(program.engine, calls)
    program.load(function("f", 5), "f")
    assert calls.result == 5


def test_going_is_announced_while_the_code_can_still_run(program):
    class Calls(listeners.JITEventListener):
        def notify_freeing_object(self, obj):
            self.result = Int(obj.function("f").address)()

    calls = Calls()
    attachment = listeners.attach(program.engine, calls)
    program.load(function("f", 6), "f")
    program.unload()
    assert calls.result == 6
    assert attachment.objects == ()


def test_listeners_hear_loads_in_order_and_frees_in_reverse(program):
    events = []
    listeners.attach(program.engine, Log("a", events), Log("b", events))
    program.load(function("f"), "f")
    program.unload()
    assert events == ["a+f", "b+f", "b-f", "a-f"]


def test_none_attaches_to_every_engine_and_to_those_to_come(linker):
    earlier = Program(linker)
    log = Log()
    attachment = listeners.attach(None, log)
    later = Program(linker)
    earlier.load(function("in_earlier"), "in_earlier")
    later.load(function("in_later"), "in_later")
    attachment.detach()
    mine = "+in_earlier", "+in_later"
    assert [event for event in log.events if event in mine] == [*mine]


def test_an_attachment_to_one_engine_does_not_hear_another(program, linker):
    log = Log()
    other = Program(linker)
    other.load(function("before"), "before")
    listeners.attach(program.engine, log)
    other.load(function("after"), "after")
    other.unload()
    assert log.events == []


def test_two_attachments_share_the_objects(program):
    first = listeners.attach(program.engine, Log())
    program.load(function("f"), "f")
    second = listeners.attach(program.engine, Log())
    assert first.objects == second.objects
    assert first.objects[0] is second.objects[0]


def test_what_was_announced_is_followed_to_its_end_after_detach(program):
    log = Log()
    attachment = listeners.attach(program.engine, log)
    program.load(function("f"), "f")
    attachment.detach()
    program.load(function("g"), "g")
    program.unload()
    if program.trackers:
        program.unload()
    assert log.events == ["+f", "-f"]
    assert attachment.objects == ()


def test_an_attachment_is_a_context_manager(program):
    log = Log()
    with listeners.attach(program.engine, log):
        program.load(function("f"), "f")
    program.load(function("g"), "g")
    assert log.events == ["+f"]


def test_a_listener_that_raises_is_reported_once_and_disturbs_nobody(program, caplog):
    class Broken(listeners.JITEventListener):
        def notify_object_loaded(self, obj):
            raise ZeroDivisionError

        notify_freeing_object = notify_object_loaded

    log = Log()
    listeners.attach(program.engine, Broken(), log)
    with caplog.at_level(logging.DEBUG, "listeners"):
        (address,) = program.load(function("f", 7), "f")
        program.load(function("g"), "g")
        assert Int(address)() == 7
        program.unload()
        if program.trackers:
            program.unload()
    assert sorted(log.events) == ["+f", "+g", "-f", "-g"]
    assert len(caplog.records) == 1
    assert "Broken.notify_object_loaded failed for <LoadedObject" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert "Traceback" in caplog.text


def test_an_error_of_ours_needs_no_traceback(program, caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("JITDUMPDIR", f"{tmp_path}/no-directory")
    (tmp_path / "no-directory").touch()
    attachment = listeners.attach(program.engine, listeners.JITDump())
    program.load(function("f"), "f")
    assert len(attachment.objects) == 1
    (record,) = caplog.records
    assert "JITDump.notify_object_loaded failed for <LoadedObject" in record.getMessage()
    assert "PerfMapError: cannot make a directory for this run" in record.getMessage()
    assert "Traceback" not in caplog.text


def test_an_interrupted_listener_lets_the_others_know_and_the_memory_go(program):
    class Interrupted(listeners.JITEventListener):
        def notify_freeing_object(self, obj):
            raise KeyboardInterrupt

    attachment = listeners.attach(program.engine, log := Log(), Interrupted())
    program.load(function("f"), "f")
    with pytest.raises(KeyboardInterrupt):
        program.unload()
    assert log.events == ["+f", "-f"]
    assert attachment.objects == ()


def test_a_listener_may_load_and_free_code_itself(program, linker):
    log = Log()

    class Compiles(listeners.JITEventListener):
        def notify_object_loaded(self, obj):
            if obj.name == "compiles":  # a name that no other test has: some leave theirs loaded
                inner = Program(linker)
                inner.load(function("compiled"), "compiled")
                inner.unload()

    attachment = listeners.attach(None, Compiles(), log)
    program.load(function("compiles"), "compiles")
    attachment.detach()
    ours = [event for event in log.events if event[1:] in ("compiles", "compiled")]
    assert ours == ["+compiles", "+compiled", "-compiled"]


def test_code_the_collector_frees_amid_an_announcement_goes_after_it(linker):
    class Holder:
        pass

    holder = Holder()
    holder.itself = holder  # only the collector can free it
    holder.program = Program(linker)
    holder.program.load(function("held"), "held")
    gone = weakref.ref(holder)
    events = []

    class Collects(Log):
        def notify_object_loaded(self, obj):
            super().notify_object_loaded(obj)
            if obj.name == "collects":
                gc.collect()
                events.append("collected")

    attachment = listeners.attach(None, Collects("a", events), Log("b", events))
    program = Program(linker)
    gc.disable()  # not before the announcement
    try:
        del holder
        program.load(function("collects"), "collects")
    finally:
        gc.enable()
    attachment.detach()
    assert gone() is None
    mine = "+collects", "-held"
    ours = [event for event in events if event[1:] in mine or event == "collected"]
    assert ours == ["a+collects", "collected", "b+collects", "b-held", "a-held"]


def test_engines_load_from_many_threads_while_others_attach(linker):
    attachment = listeners.attach(None, log := Log())

    def load(thread: int) -> None:
        for turn in range(10):
            name = f"loader_{thread}_{turn}"
            program = Program(linker)
            (address,) = program.load(function(name, turn), name)
            with listeners.attach(program.engine, mine := Log()):
                assert mine.objects[0].function(name).address == address
            assert Int(address)() == turn
            program.unload()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, range(4))) == [None] * 4
    attachment.detach()
    ours = [event for event in log.events if event[1:].startswith("loader_")]
    names = [f"loader_{thread}_{turn}" for thread in range(4) for turn in range(10)]
    assert sorted(ours) == sorted(sign + name for sign in "+-" for name in names)


@pytest.mark.parametrize("thing", ["gdb", 7, [], llvm])
def test_what_is_no_engine_is_refused(thing):
    with pytest.raises(listeners.JITListenerError, match="no engine that can be attached to"):
        listeners.attach(thing, Log())


def test_a_closed_engine_is_refused(program):
    program.engine.close()
    with pytest.raises(listeners.JITListenerError, match="is closed"):
        listeners.attach(program.engine, Log())


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (object(), "no listener: give instances"),
        (listeners.PerfMap, "a class: give instances"),
        ([listeners.PerfMap()], "no listener: .* one by one"),
    ],
)
def test_what_is_no_listener_is_refused(program, given, what):
    with pytest.raises(listeners.JITListenerError, match=what):
        listeners.attach(program.engine, given)


def test_a_method_that_is_never_called_is_said(program, caplog):
    class Mistaken(listeners.JITEventListener):
        def notify_object_emitted(self, obj):
            raise AssertionError

    with listeners.attach(program.engine, Mistaken()):
        pass
    (record,) = caplog.records
    assert record.getMessage() == (
        "Mistaken.notify_object_emitted is never called: a listener has notify_object_loaded,"
        " notify_freeing_object, notify_time_spent"
    )


def test_perf_maps_share_their_process_s_file(program):
    path = f"/tmp/perf-{os.getpid()}.map"
    attachments = [listeners.attach(program.engine, listeners.PerfMap()) for _ in range(5)]
    (address,) = program.load(function("in_the_map"), "in_the_map")
    lines = [entry for entry in perfmap.read_map(path) if entry.name == "in_the_map"]
    assert [line.address for line in lines] == [address]
    opened = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert opened.count(path) == 2
    program.unload()
    assert not [entry for entry in perfmap.read_map(path) if entry.name == "in_the_map"]
    for attachment in attachments:
        attachment.detach()


# MCJIT


def mcjit(text: str) -> llvm.ExecutionEngine:
    return llvm.create_mcjit_compiler(llvm.parse_assembly(text), target_machine())


def test_mcjit_compiles_lazily_when_an_address_is_asked_for():
    engine = mcjit(function("first"))
    engine.add_module(llvm.parse_assembly(function("second")))
    attachment = listeners.attach(engine, log := Log())
    assert log.events == []
    engine.get_function_address("second")
    assert log.events == ["+second"]
    engine.get_function_address("first")
    assert log.events == ["+second", "+first"]
    assert [obj.name for obj in attachment.objects] == ["second", "first"]


def test_mcjit_announces_an_added_object_when_it_can_run():
    engine = Program("mcjit").engine
    calls = []

    class Calls(listeners.JITEventListener):
        def notify_object_loaded(self, obj):
            calls.append(Int(obj.function("added").address)())

    listeners.attach(engine, Calls())
    elf = target_machine().emit_object(llvm.parse_assembly(function("added", 3)))
    engine.add_object_file(llvm.ObjectFileRef.from_data(elf))
    assert calls == []
    engine.finalize_object()
    assert calls == [3]


def test_mcjit_an_object_that_a_listener_frees_before_it_can_run_is_never_announced():
    engine, other = Program("mcjit").engine, Program("mcjit").engine

    class Closing(Log):
        def notify_object_loaded(self, obj):
            super().notify_object_loaded(obj)
            other.close()

    with listeners.attach(engine, log := Closing()), listeners.attach(other, log):
        for each, name in (engine, "early"), (other, "late"):
            elf = target_machine().emit_object(llvm.parse_assembly(function(name)))
            each.add_object_file(llvm.ObjectFileRef.from_data(elf))
        engine.finalize_object()
        assert log.events == ["+early"]


@pytest.mark.parametrize("linker", ["mcjit", "rtdyld", "jitlink"])
def test_mcjit_an_added_object_is_its_engines_whoever_loads_before_it_can_run(linker):
    engine = Program("mcjit").engine
    with listeners.attach(engine, log := Log()):
        elf = target_machine().emit_object(llvm.parse_assembly(function("added")))
        engine.add_object_file(llvm.ObjectFileRef.from_data(elf))
        other = Program(linker)
        (address,) = other.load(function("other", 2), "other")
        assert Int(address)() == 2
        assert log.events == []
        engine.finalize_object()
        assert log.events == ["+added"]
        other.unload()
        assert log.events == ["+added"]
        engine.close()
        assert log.events == ["+added", "-added"]


def test_mcjit_an_object_added_in_the_middle_of_another_engines_call_is_its_own_engines():
    engine, other = Program("mcjit").engine, mcjit(function("other"))
    elf = target_machine().emit_object(llvm.parse_assembly(function("added")))
    other.set_object_cache(
        lambda *_: engine.add_object_file(llvm.ObjectFileRef.from_data(elf)), lambda _: None
    )
    with listeners.attach(engine, log := Log()), listeners.attach(other, others := Log()):
        other.finalize_object()
        assert (log.events, others.events) == ([], ["+other"])
        engine.finalize_object()
        engine.close()
        assert (log.events, others.events) == (["+added", "-added"], ["+other"])


def test_mcjit_keeps_the_code_of_a_removed_module_until_it_is_closed():
    engine = Program("mcjit").engine
    module = llvm.parse_assembly(function("f"))
    engine.add_module(module)
    attachment = listeners.attach(engine, log := Log())
    engine.finalize_object()
    engine.remove_module(module)
    assert [obj.name for obj in attachment.objects] == ["f"]
    engine.close()
    assert log.events == ["+f", "-f"]


def test_mcjit_with_an_object_cache_of_the_users():
    cache = {}

    def load(found: list) -> None:
        engine = mcjit(function("f", 9))
        engine.set_object_cache(
            lambda module, elf: cache.__setitem__("f", elf),
            lambda module: found.append("f" in cache) or cache.get("f"),
        )
        with listeners.attach(engine, log := Log()):
            assert Int(engine.get_function_address("f"))() == 9
        assert log.events == ["+f"]
        assert log.objects[0].elf == cache["f"]

    looks: list[bool] = []
    load(looks)
    load(looks)
    assert looks == [False, True]
