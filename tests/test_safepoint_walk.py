"""Walking the stack of JIT'd code: the readable walker and the compiled one give the same roots,
and these are where the references are."""

import ctypes
import gc
import sys
import threading
import weakref

import llvmlite.binding as llvm
import pytest
from jit import Program, target_machine
from stacks import EXTRA, FORMS, KIND, LEAF, REFERENCE, call, chained, result
from statepoints import DECLARATIONS, relocate, statepoint
from test_safepoints import loaded
from walkers import FIRST, MOVED, Runtime

import listeners
from listeners import JITListenerError
from listeners.safepoints import (
    Anchor,
    NativeWalker,
    ObjectTables,
    Stacks,
    read_word,
    walk,
    write_word,
)
from listeners.safepoints.stacks import TYPES


def move(roots: list[tuple[int, int]], by: int) -> None:
    """As a collector does: each slot once."""
    for slot in {slot for root in roots for slot in root if slot}:
        write_word(slot, read_word(slot) + by)


# Frames


@pytest.mark.parametrize("opt", [0, 2])
def test_every_frame_of_every_form_is_found_with_its_roots(linker, opt):
    runtime = Runtime(linker, opt)
    depth = 3 * len(FORMS)
    seen: list[list[str]] = []
    values: list[list[int]] = []

    def collect() -> None:
        frames = list(walk(runtime.safepoints, runtime.stacks.anchors()))
        seen.append([frame.safepoint.function.name for frame in frames])
        values.append([read_word(frame.roots[0].base) for frame in frames])
        roots = runtime.roots()
        assert roots == [root for frame in frames for root in frame.roots]
        move(roots, MOVED)

    (function,) = runtime.program.load(chained(runtime.entry(collect)), "f0")
    assert call(function, depth, FIRST) == result(depth, FIRST, MOVED)
    names = [f"f{number % len(FORMS)}" for number in range(depth + 1)]
    assert seen == [names[::-1]]
    assert values == [[FIRST + 16 * number for number in range(depth, -1, -1)]]


@pytest.mark.parametrize("form", FORMS)
def test_frames_of_one_form_alone(form):
    runtime = Runtime("mcjit")
    (function,) = runtime.program.load(
        chained(runtime.entry(lambda: move(runtime.roots(), MOVED)), (form,)), "f0"
    )
    assert call(function, 20, FIRST) == result(20, FIRST, MOVED)


def test_without_rewriting_the_roots_the_results_are_others(runtime):
    (function,) = runtime.program.load(chained(runtime.entry(runtime.roots)), "f0")
    assert call(function, 20, FIRST) == result(20, FIRST) != result(20, FIRST, MOVED)


def test_the_forms_are_what_they_are_named_for():
    elf = target_machine(opt=2).emit_object(llvm.parse_assembly(chained(0)))
    found = {}
    for safepoint in ObjectTables(loaded(elf)).safepoints:
        if safepoint.id == LEAF:
            continue
        rule = safepoint.frame_rule
        form = list(FORMS)[int(safepoint.function.name[1:])]
        found[form] = rule.size, safepoint.frame_size, rule.saved_fp
    assert found["plain"][0] == found["plain"][1] + 32
    assert found["pushed"][0] == found["pushed"][1] + 32
    assert found["framed_pushed"][:2] == (None, found["framed_pushed"][1])
    assert found["dynamic"] == found["realigned"] == (None, None, -8)
    assert found["all_registers"][0] is not None
    assert found["all_registers"][2] == -8
    assert found["plain"][2] == 0


def test_gc_live_allocas_are_roots_that_can_be_rewritten(runtime):
    poll = runtime.entry(lambda: move(runtime.roots(), MOVED))
    call = statepoint("t", "void ()", f"inttoptr (i64 {poll} to ptr)", live=("ptr %a", "ptr %b"))
    text = f"""{DECLARATIONS}
    define i64 @f(ptr addrspace(1) %o, ptr addrspace(1) %p) gc "statepoint-example" {{
      %a = alloca ptr addrspace(1)
      %b = alloca ptr addrspace(1)
      store ptr addrspace(1) %o, ptr %a
      store ptr addrspace(1) %p, ptr %b
      {call}
      %v = load i64, ptr %a
      %w = load i64, ptr %b
      %s = sub i64 %v, 1
      %t2 = mul i64 %s, %w
      ret i64 %t2
    }}
    """
    (function,) = runtime.program.load(text, "f")
    prototype = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    assert prototype(function)(5, 7) == (4 + MOVED) * (7 + MOVED)


# Parts, threads, objects


def test_the_stack_goes_on_behind_python(runtime):
    """JIT, Python, JIT, Python, JIT: one stack in three parts."""
    depths: list[int] = []

    def again() -> None:
        anchors = runtime.stacks.anchors()
        if len(anchors) < 3:
            depth = 4 + len(anchors)
            assert call(addresses[0], depth, FIRST) == result(depth, FIRST, MOVED)
            return  # the outer frames were moved, too
        assert [anchor.slot for anchor in anchors] == sorted(anchor.slot for anchor in anchors)
        frames = list(walk(runtime.safepoints, anchors))
        depths.append(len(frames))
        move(runtime.roots(), MOVED)

    addresses = runtime.program.load(chained(runtime.entry(again)), "f0")
    assert call(addresses[0], 9, FIRST) == result(9, FIRST, MOVED)
    assert depths == [7 + 6 + 10]
    assert runtime.stacks.anchors() == []


def test_functions_of_two_objects_are_on_one_stack(runtime):
    (second,) = runtime.program.load(
        chained(runtime.entry(lambda: move(runtime.roots(), MOVED)), prefix="g"), "g0"
    )
    reference = f"{REFERENCE} %o"
    arguments = ("i64 %n", reference, *EXTRA.split(", "))
    text = (
        DECLARATIONS
        + f"""
    define i64 @outer(i64 %n, {reference}, {EXTRA}) gc "statepoint-example" {{
      {
            statepoint(
                "t", KIND, f"inttoptr (i64 {second} to ptr)", arguments=arguments, live=(reference,)
            )
        }
      {relocate("p", "t", 0, 0)}
      %r = call i64 @llvm.experimental.gc.result.i64(token %t)
      %v = ptrtoint {REFERENCE} %p to i64
      %s = add i64 %r, %v
      ret i64 %s
    }}
    """
    )
    (first,) = runtime.program.load(text, "outer")
    assert call(first, 10, FIRST) == result(10, FIRST, MOVED) + FIRST + MOVED


def test_four_threads_have_a_stack_each(linker):
    runtime = Runtime(linker)
    stopped, go = threading.Barrier(5), threading.Event()

    def stop() -> None:
        stopped.wait()
        go.wait()

    (function,) = runtime.program.load(chained(runtime.entry(stop)), "f0")
    results = {}

    def work(number: int) -> None:
        results[number] = call(function, 10 + number, FIRST * number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    stopped.wait()
    found = runtime.stacks.threads()
    assert sorted(found) == sorted(thread.ident for thread in threads)
    for anchors in found.values():
        move(runtime.roots(anchors), MOVED)
    go.set()
    for thread in threads:
        thread.join()
    assert results == {number: result(10 + number, FIRST * number, MOVED) for number in range(1, 5)}
    assert runtime.stacks.threads() == {}


# Entries


def test_an_entry_hands_on_arguments_and_results(runtime):
    seen = []

    def function(*arguments: object) -> float:
        seen.append(arguments)
        return 2.5

    address = runtime.entry(function, "double", "i8", "i64", "ptr", "double", "ptr addrspace(1)")
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_double, ctypes.c_int8, ctypes.c_int64, ctypes.c_uint64, ctypes.c_double,
        ctypes.c_uint64,
    )  # fmt: skip
    assert prototype(address)(-1, 1 << 40, 0, 0.5, 1 << 63) == 2.5
    assert seen == [(-1, 1 << 40, 0, 0.5, 1 << 63)]
    assert runtime.stacks.anchors() == []


def test_an_entry_lives_as_long_as_its_stacks():
    """Code that runs freed memory would end the process; so the entry says when it goes."""
    stacks = Stacks()
    entry = stacks.entry(lambda number: number + 1, "i64", "i64")
    gone, address = weakref.ref(entry), entry.address
    del entry
    gc.collect()
    assert gone()
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(41) == 42
    del stacks
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_an_entry_raises_is_reported_and_the_result_is_zero(raised, monkeypatch):
    def function(number: int) -> None:
        raise raised("said")

    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: reported.append(repr(about.exc_value)))
    stacks = Stacks()
    results = []
    for result_type, kind in TYPES.items():
        entry = stacks.entry(function, result_type, "i64")
        results.append(ctypes.CFUNCTYPE(kind, ctypes.c_int64)(entry.address)(-1))
    assert results == [0] * len(TYPES)
    assert reported == [repr(raised("said"))] * len(TYPES)
    assert stacks.anchors() == []


def test_a_result_of_another_type_is_reported_and_is_zero(monkeypatch):
    reported: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: reported.append(about.exc_type))
    entry = Stacks().entry(lambda: "text", "ptr addrspace(1)")
    assert ctypes.CFUNCTYPE(ctypes.c_uint64)(entry.address)() == 0
    assert reported == [TypeError]


def test_an_entry_of_another_type_is_refused(runtime):
    with pytest.raises(JITListenerError, match="the type 'i128'"):
        runtime.stacks.entry(print, "void", "i128")


# Failing closed


def refused(runtime: Runtime, text: str, *functions: str) -> str:
    """What both walkers say of the stack at a safepoint."""
    said: list[str] = []

    def poll() -> None:
        anchors = runtime.stacks.anchors()
        for find in (runtime.native.roots, runtime.roots):
            with pytest.raises(JITListenerError) as caught:
                find(anchors)
            said.append(str(caught.value))

    (function,) = runtime.program.load(text.replace("POLL", str(runtime.entry(poll))), *functions)
    call(function, 3, FIRST)
    assert len(said) == 2
    assert said[0] == said[1]
    return said[0]


def test_an_entry_called_by_code_that_is_not_heard_is_an_error(runtime):
    """It would seem to be a stack without roots, of which a collector frees everything."""
    runtime.safepoints = listeners.Safepoints()
    runtime.native = NativeWalker(runtime.safepoints)
    said = refused(runtime, chained(0).replace("i64 0 to ptr", "i64 POLL to ptr"), "f0")
    assert "in no code that these Safepoints have heard of: attach them to the engine" in said


def test_an_entry_called_by_python_is_an_error(runtime):
    said = []

    def poll() -> None:
        for find in (runtime.native.roots, runtime.roots):
            with pytest.raises(JITListenerError, match="in no code") as caught:
                find(runtime.stacks.anchors())
            said.append(str(caught.value))

    runtime.program.load(chained(0), "f0")
    ctypes.CFUNCTYPE(None)(runtime.entry(poll))()
    assert said[0] == said[1]


def test_a_part_further_out_that_is_not_heard_is_an_error(runtime):
    """Code that is heard, Python, and code that is not."""
    other = Program(runtime.program.linker, opt=2)
    text = chained(0).replace("i64 0 to ptr", "i64 POLL to ptr")
    outer = runtime.entry(lambda: said.append(refused(runtime, text, "f0")))
    said: list[str] = []
    (function,) = other.load(chained(outer), "f0")
    call(function, 2, FIRST)
    assert "in no code that these Safepoints have heard of" in said[0]


def test_a_call_that_is_not_a_safepoint_is_an_error(runtime):
    text = (
        chained(0).replace("i64 0 to ptr", "i64 POLL to ptr")
        + """
    define i64 @outer(i64 %n, ptr addrspace(1) %o, i64, i64, i64, i64, i64, i64, i64, i64) {
      %v = call i64 @f0(i64 %n, ptr addrspace(1) %o, i64 0, i64 0, i64 0, i64 0, i64 0, i64 0,
                        i64 0, i64 0)
      %w = add i64 %v, 1
      ret i64 %w
    }
    """
    )
    assert "the frame of outer, which returns to 0x" in refused(runtime, text, "outer")


def test_a_function_without_call_frame_information_is_an_error(runtime):
    text = chained(0, ("plain",)).replace("i64 0 to ptr", "i64 POLL to ptr")
    text = text.replace("noinline", "noinline nounwind")
    assert "f0+0x" in (said := refused(runtime, text, "f0"))
    assert "give the function the attribute uwtable" in said


def test_anchors_out_of_order_are_an_error(runtime):
    def poll() -> None:
        anchors = runtime.stacks.anchors()
        if len(anchors) == 1:
            call(function, 1, FIRST)
            return
        for find in (runtime.native.roots, runtime.roots):
            with pytest.raises(JITListenerError, match="inside the part that ends at"):
                find(anchors[::-1])
        checked.append(True)

    checked: list[bool] = []
    (function,) = runtime.program.load(chained(runtime.entry(poll)), "f0")
    call(function, 2, FIRST)
    assert checked


# Below the frame, beyond what 47 bits address, not aligned.
@pytest.mark.parametrize("fp", [0x10, 1 << 47, (1 << 64) - 16, (1 << 46) + 4])
def test_a_frame_pointer_that_is_none_is_an_error(fp):
    runtime = Runtime("mcjit")

    def poll() -> None:
        ((slot, _),) = runtime.stacks.anchors()
        for find in (runtime.native.roots, runtime.roots):
            with pytest.raises(JITListenerError, match=f"a frame pointer {fp:#x} that is not"):
                find([Anchor(slot, fp)])
        checked.append(True)

    checked: list[bool] = []
    (function,) = runtime.program.load(chained(runtime.entry(poll), ("dynamic",)), "f0")
    call(function, 2, FIRST)
    assert checked


@pytest.mark.parametrize("address", [4, 1 << 47, (1 << 64) - 8])
def test_an_anchor_where_no_slot_can_be_is_an_error(address):
    runtime = Runtime("mcjit")
    for find in (runtime.native.roots, runtime.roots):
        with pytest.raises(JITListenerError, match=f"no slot can be at {address:#x}"):
            find([Anchor(address, 0)])


@pytest.mark.parametrize("address", [-8, 4, 1 << 47, (1 << 64) - 8])
def test_words_are_read_and_written_where_slots_can_be(address):
    for use in (lambda: read_word(address), lambda: write_word(address, 1)):
        with pytest.raises(JITListenerError, match=f"no slot can be at {address:#x}"):
            use()
