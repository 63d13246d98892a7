"""Walking the stack of JIT'd code: the readable walker and the compiled one give the same roots,
and these are where the references are."""

import ctypes
import random
import threading
from collections.abc import Callable

import llvmlite.binding as llvm
import pytest
from jit import Program, target_machine
from stacks import EXTRA, FORMS, KIND, LEAF, REFERENCE, call, chained, result
from statepoints import DECLARATIONS, relocate, statepoint
from test_safepoints import loaded
from test_stackmap import emitted

import listeners
from listeners import JITListenerError
from listeners.safepoints import (
    Anchor,
    NativeWalker,
    ObjectSafepoints,
    ObjectTables,
    Stacks,
    read_word,
    walk,
    write_word,
)
from listeners.safepoints.framerule import FrameRule, FunctionRules
from perfmap import FrameRules

FIRST = 0x7000_0000_0000
MOVED = 0x10_0000


class Runtime:
    """An engine, its safepoints, and both walkers over them."""

    def __init__(self, linker: str, opt: int = 2) -> None:
        self.program = Program(linker, opt=opt)
        self.safepoints = listeners.Safepoints()
        listeners.attach(self.program.engine, self.safepoints)
        self.native = NativeWalker(self.safepoints)
        self.stacks = Stacks()
        self.entries: list[object] = []

    def entry(self, function: Callable[..., object], *types: str) -> int:
        made = self.stacks.entry(function, *types)
        self.entries.append(made)
        return made.address

    def roots(self, anchors: list[Anchor] | None = None) -> list[tuple[int, int]]:
        """What both walkers say, which is the same."""
        anchors = self.stacks.anchors() if anchors is None else anchors
        python = [root for frame in walk(self.safepoints, anchors) for root in frame.roots]
        assert self.native.roots(anchors) == python
        return python


def move(roots: list[tuple[int, int]], by: int) -> None:
    """As a collector does: each slot once."""
    for slot in {slot for root in roots for slot in root if slot}:
        write_word(slot, read_word(slot) + by)


@pytest.fixture
def runtime(linker: str) -> Runtime:
    return Runtime(linker)


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


def test_a_frame_pointer_that_points_below_is_an_error():
    runtime = Runtime("mcjit")

    def poll() -> None:
        ((slot, _),) = runtime.stacks.anchors()
        for find in (runtime.native.roots, runtime.roots):
            with pytest.raises(JITListenerError, match="a frame pointer 0x10 below it"):
                find([Anchor(slot, 16)])
        checked.append(True)

    checked: list[bool] = []
    (function,) = runtime.program.load(chained(runtime.entry(poll), ("dynamic",)), "f0")
    call(function, 2, FIRST)
    assert checked


# The native table


def test_the_native_table_knows_what_is_loaded_and_no_more(runtime):
    runtime.program.load(chained(0), "f0")
    first = [safepoint.address for safepoint in runtime.safepoints]
    assert all(map(runtime.native.knows, first))
    assert not any(runtime.native.knows(address + 1) for address in first)
    late = NativeWalker(runtime.safepoints)
    assert all(map(late.knows, first))
    runtime.program.unload()
    assert not any(map(runtime.native.knows, first))
    assert not any(map(late.knows, first))


class Checker(listeners.JITEventListener):
    """Told after `Safepoints` of what goes, while nothing else can be at its addresses yet."""

    def __init__(self) -> None:
        self.native: NativeWalker
        self.loaded = self.freed = 0
        self.problems: list[str] = []

    def on_safepoints(self, obj: listeners.LoadedObject, found: ObjectSafepoints) -> None:
        self.loaded += 1
        if not all(map(self.native.knows, found.maps.addresses)):
            self.problems.append(f"{obj!r} is missing")

    def notify_freeing_object(self, obj: listeners.LoadedObject) -> None:
        self.freed += 1
        if any(map(self.native.knows, ObjectTables(obj).safepoints.maps.addresses)):
            self.problems.append(f"{obj!r} is left")


def test_the_native_table_is_right_during_a_thousand_loads_and_unloads():
    """Four threads load code, walk their stack in it and unload it; one walks its own all along."""
    checker = Checker()
    safepoints = listeners.Safepoints(checker.on_safepoints)
    checker.native = native = NativeWalker(safepoints)
    stacks = Stacks()
    ended = threading.Event()
    walked = 0

    def compare() -> None:
        anchors = stacks.anchors()
        roots = [root for frame in walk(safepoints, anchors) for root in frame.roots]
        if native.roots(anchors) != roots or len(roots) < 7:
            checker.problems.append("other roots")

    def stay() -> None:
        nonlocal walked
        anchors = stacks.anchors()
        expected = native.roots(anchors)
        while not ended.is_set():
            if native.roots(anchors) != expected:
                checker.problems.append("the roots have changed")
            walked += 1

    entry, staying = stacks.entry(compare), stacks.entry(stay)
    elf = target_machine(opt=2).emit_object(llvm.parse_assembly(chained(entry.address)))

    def load(linker: str) -> None:
        program = Program(linker, opt=2)
        with listeners.attach(program.engine, checker, safepoints):
            for number in range(250):
                builder = llvm.JITLibraryBuilder().add_object_img(elf).export_symbol("f0")
                with builder.link(program.engine, f"library{number}") as library:
                    if call(library["f0"], 3, FIRST) != result(3, FIRST):
                        checker.problems.append("another result")

    program = Program("mcjit", opt=2)
    listeners.attach(program.engine, safepoints)
    (function,) = program.load(chained(staying.address), "f0")
    threads = [threading.Thread(target=call, args=(function, 30, FIRST))]
    loaders = [
        threading.Thread(target=load, args=(linker,)) for linker in ("rtdyld", "jitlink") * 2
    ]
    for thread in (*threads, *loaders):
        thread.start()
    for thread in loaders:
        thread.join()
    ended.set()
    threads[0].join()
    assert checker.problems == []
    assert (checker.loaded, checker.freed) == (1001, 1000)
    assert walked > 20
    assert list(map(native.knows, [s.address for s in safepoints])) == [True] * 20


def test_jitted_code_walks_its_own_stack(runtime):
    """A collector in IR: it moves every reference by 2^20, each slot once."""
    walker = runtime.native
    text = f"""
    declare ptr @llvm.addressofreturnaddress.p0()
    declare ptr @llvm.frameaddress.p0(i32)
    define void @collect() "frame-pointer"="all" {{
      %anchor = alloca [4 x i64]
      %buffer = alloca [2000 x i64]
      %slot = call ptr @llvm.addressofreturnaddress.p0()
      %frame = call ptr @llvm.frameaddress.p0(i32 0)
      %fp = load i64, ptr %frame
      store ptr %slot, ptr %anchor
      %fp.at = getelementptr i64, ptr %anchor, i64 1
      store i64 %fp, ptr %fp.at
      %outer.at = getelementptr i64, ptr %anchor, i64 2
      store ptr null, ptr %outer.at
      %count = call i64 inttoptr (i64 {walker.walk_address} to ptr)(
        ptr inttoptr (i64 {walker.table_address} to ptr), ptr %anchor, ptr %buffer, i64 1000)
      %some = icmp sgt i64 %count, 0
      br i1 %some, label %each, label %done
    each:
      %i = phi i64 [ 0, %0 ], [ %next, %after ]
      %at = mul i64 %i, 2
      %derived.at = add i64 %at, 1
      %place = getelementptr i64, ptr %buffer, i64 %derived.at
      %root = load ptr, ptr %place
      %none = icmp eq ptr %root, null
      br i1 %none, label %after, label %move
    move:
      %old = load i64, ptr %root
      %new = add i64 %old, {MOVED}
      store i64 %new, ptr %root
      br label %after
    after:
      %next = add i64 %i, 1
      %more = icmp slt i64 %next, %count
      br i1 %more, label %each, label %done
    done:
      ret void
    }}
    """
    (collect,) = runtime.program.load(text, "collect")
    (function,) = runtime.program.load(chained(collect), "f0")
    assert call(function, 40, FIRST) == result(40, FIRST, MOVED)


def test_more_roots_than_expected_are_all_given(runtime):
    found = []
    (function,) = runtime.program.load(
        chained(runtime.entry(lambda: found.append(len(runtime.roots())))), "f0"
    )
    call(function, 2000, FIRST)
    assert found[0] > 4000


# Rules of a frame


def rules(code: bytes, initial: bytes = b"\x0c\x07\x08\x90\x01") -> FunctionRules:
    return FunctionRules(FrameRules(1, -8, 16, initial, code))


def test_rules_follow_the_code():
    # push rbp; CFA rsp+16; rbp at CFA-16; mov rbp, rsp; CFA by rbp; …; pop; CFA rsp+8
    found = rules(b"\x41\x0e\x10\x86\x02\x43\x0d\x06\x0a\x48\x0c\x07\x08\xc6\x44\x0b")
    assert [found.at(offset) for offset in (1, 2, 5, 12, 13, 17)] == [
        FrameRule(0, 0),
        FrameRule(8, -8),
        FrameRule(None, -8),
        FrameRule(None, -8),
        FrameRule(0, 0),
        FrameRule(None, -8),
    ]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (b"\x0c\x07", "cut off"),
        (b"\x0b", "cut off"),
        (b"\x3f", "call frame instruction 0x3f"),
        (b"\x10\x06\x01\x00", "that compute rbp"),
        (b"\x09\x06\x03", "that do not keep rbp"),
    ],
)
def test_rules_that_are_malformed_or_unknown_are_refused(code, problem):
    with pytest.raises(JITListenerError, match=problem):
        rules(code)


@pytest.mark.parametrize(
    "code", [b"\x0f\x01\x00", b"\x0c\x03\x10", b"\x0c\x06\x20", b"\x0e\x04", b"\x86\x05"]
)
def test_a_frame_that_cannot_be_left_is_refused(code):
    with pytest.raises(JITListenerError, match="whose return address is found by register"):
        rules(code).at(4)


def test_noise_for_rules_are_read_or_refused():
    chance = random.Random(5)
    refused = 0
    for _ in range(10_000):
        try:
            rules(chance.randbytes(chance.randrange(30))).at(chance.randrange(100))
        except JITListenerError:
            refused += 1
    assert 3000 < refused < 10_000


def test_walks_are_refused_for_another_machine():
    elf = emitted(chained(0, ("plain",)), "aarch64-unknown-linux-gnu", 2)
    safepoint = ObjectTables(loaded(elf)).safepoints[0]
    with pytest.raises(JITListenerError, match="on x86-64 alone"):
        _ = safepoint.frame_rule
