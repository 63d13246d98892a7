"""What comes in the middle of a call of LLVM's: Ctrl-C, a listener's own, the garbage collector."""

from __future__ import annotations

import gc
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm
import pytest
from heard import Log, function
from jit import Program, target_machine
from tools import run, tool

import listeners

# A constructor, which LLVM runs, sends the signal: Python's handler runs when LLVM comes back.
CONSTRUCTOR = """
@llvm.global_ctors = appending global [1 x { i32, ptr, ptr }]
  [{ i32, ptr, ptr } { i32 65535, ptr @interrupted, ptr null }]
declare i32 @raise(i32)
define void @interrupted() {
  %done = call i32 @raise(i32 2)
  ret void
}
"""


class Interrupted(listeners.JITEventListener):
    """Ctrl-C comes while the first object is announced."""

    first = True

    def notify_object_loaded(self, obj: listeners.LoadedObject) -> None:
        if self.first:
            self.first = False
            raise KeyboardInterrupt


def load_two(program: Program) -> None:
    """Two objects with one call of LLVM's."""
    if program.linker == "mcjit":
        for name in "one", "two":
            program.engine.add_module(llvm.parse_assembly(function(name)))
        program.engine.finalize_object()
    else:
        builder = llvm.JITLibraryBuilder().add_ir(function("one")).add_ir(function("two"))
        builder.export_symbol("one").export_symbol("two").link(program.engine, "both")


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Whoever started the tests may have had the signal ignored, as shells do for what they leave
    in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run_constructor(program: Program) -> None:
    if program.linker == "mcjit":
        program.engine.add_module(llvm.parse_assembly(CONSTRUCTOR))
        program.engine.run_static_constructors()
    else:
        builder = llvm.JITLibraryBuilder().add_ir(CONSTRUCTOR).add_current_process()
        builder.export_symbol("interrupted").link(program.engine, "library")


def heard_from_now_on() -> tuple[Log, listeners.Attachment]:
    """What any engine loads; what others have left in memory is not in it."""
    log = Log()
    attachment = listeners.attach(None, log)
    log.events.clear()
    return log, attachment


def events_of(log: Log, *names: str) -> list[str]:
    """What others have left may be collected at any moment."""
    return [event for event in log.events if event[1:] in names]


def test_ctrl_c_while_llvm_loads_leaves_nothing_unheard(program: Program) -> None:
    log, everything = heard_from_now_on()
    other = Log()
    with pytest.raises(KeyboardInterrupt):
        run_constructor(program)
    assert events_of(log, "interrupted") == ["+interrupted"]
    another = Program(program.linker)
    listeners.attach(another.engine, other)
    another.load(function("later"), "later")
    assert other.events == ["+later"]
    if program.linker == "mcjit":
        program.engine.close()
        assert events_of(log, "interrupted") == ["+interrupted", "-interrupted"]
    everything.detach()


def test_an_interrupted_listener_keeps_no_object_from_the_others(program: Program) -> None:
    log = Log()
    listeners.attach(program.engine, Interrupted(), log)
    everything, attachment = heard_from_now_on()
    with pytest.raises(KeyboardInterrupt):
        load_two(program)
    assert sorted(log.events) == ["+one", "+two"]
    assert events_of(everything, "one", "two") == log.events
    another = Program(program.linker)
    another.load(function("later"), "later")
    assert "+later" not in log.events
    if program.linker == "mcjit":
        program.engine.close()
        assert {"-one", "-two"} <= {*log.events}
    attachment.detach()


def test_trackers_that_the_collector_frees_while_another_is_looked_up_are_announced() -> None:
    """A look-up over JITLink links a library of ours: at any moment of that others may go."""

    class Node:
        tracker: Any

    log, attachment = heard_from_now_on()
    numbers = range(1, 200)
    for number in numbers:
        looked_into, others = Program("jitlink").engine, Program("rtdyld").engine
        builder = llvm.JITLibraryBuilder().add_ir(function(f"first_{number}"))
        builder = builder.add_ir(function(f"second_{number}")).export_symbol(f"first_{number}")
        first = builder.link(looked_into, "library")
        gc.collect()
        gc.disable()
        try:
            node = Node()
            node.itself = node
            builder = llvm.JITLibraryBuilder().add_ir(function(f"collected_{number}"))
            builder = builder.export_symbol(f"collected_{number}")
            node.tracker = builder.link(others, "library")
            del node
            gc.set_threshold(gc.get_count()[0] + number)
            gc.enable()
            second = looked_into.lookup("library", f"second_{number}")
        finally:
            gc.set_threshold(700, 10, 10)
            gc.enable()
        gc.collect()
        second.close()
        first.close()
    names = [f"{kind}_{number}" for number in numbers for kind in ("first", "second", "collected")]
    assert sorted(events_of(log, *names)) == sorted(sign + name for sign in "+-" for name in names)
    attachment.detach()


def test_what_is_closed_again_by_a_listener_that_hears_its_end_goes_once(program: Program) -> None:
    class Closing(Log):
        def notify_freeing_object(self, obj: listeners.LoadedObject) -> None:
            super().notify_freeing_object(obj)
            for thing in (*program.trackers, program.engine):
                thing.close()

    log = Closing()
    listeners.attach(program.engine, log)
    program.load(function("f"), "f")
    program.unload()
    assert log.events == ["+f", "-f"]


def test_an_attachment_ends_with_its_engine(linker: str) -> None:
    gone = []
    for _ in range(3):
        program = Program(linker)
        log = Log()
        attachment = listeners.attach(program.engine, log)
        program.load(function("f"), "f")
        program.unload()
        program.engine.close()
        assert attachment.objects == ()
        gone += [weakref.ref(log), weakref.ref(attachment)]
        del log, attachment, program
    gc.collect()
    assert [reference() for reference in gone] == [None] * 6


def test_an_object_that_only_llvm_can_read_is_linked(tmp_path: Any) -> None:
    """Of more sections than the ELF header has room for, next to IR that is not in memory yet."""
    source, path = tmp_path / "many.s", tmp_path / "many.o"
    source.write_text(
        "".join(f'.section .text.{n},"ax"\n.globl f{n}\nf{n}: ret\n' for n in range(65_300))
    )
    run(tool("as"), str(source), "-o", str(path))
    engine = llvm.create_lljit_compiler(target_machine())
    log = Log()
    with listeners.attach(engine, log):
        builder = (
            llvm.JITLibraryBuilder().add_object_img(path.read_bytes()).add_ir(function("mine"))
        )
        tracker = builder.export_symbol("mine").link(engine, "library")
        assert tracker["mine"]
        assert log.events == ["+mine"]
        tracker.close()
