"""The compiled walker: its table while code comes and goes, and JIT'd code that calls it."""

import ctypes
import gc
import random
import re
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator

import llvmlite.binding as llvm
import pytest
from jit import Program, target_machine
from stacks import call, chained, result
from test_safepoints import loaded
from walkers import FIRST, MOVED, Runtime

import listeners
from listeners import JITListenerError
from listeners.objectfile import ObjectFile
from listeners.safepoints import NativeWalker, ObjectSafepoints, ObjectTables, Stacks, walk
from listeners.safepoints.nativewalk import ENTRY, NOT_UNDERSTOOD, _packed, _word


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


def announced(safepoints: listeners.Safepoints, elf: bytes, times: int) -> None:
    """Objects come and go, one after the other, each at addresses of its own."""
    for number in range(times):
        obj = loaded(elf, number << 24)
        safepoints.notify_object_loaded(obj)
        safepoints.notify_freeing_object(obj)


@pytest.fixture
def traced() -> Iterator[Callable[[], int]]:
    """How many bytes of memory Python has got."""
    tracemalloc.start()
    yield lambda: (gc.collect(), tracemalloc.get_traced_memory()[0])[1]
    tracemalloc.stop()


def test_what_a_walk_may_read_is_kept_until_no_walk_is_under_way(traced):
    elf = target_machine(opt=2).emit_object(llvm.parse_assembly(chained(0)))
    safepoints = listeners.Safepoints()
    native = NativeWalker(safepoints)
    announced(safepoints, elf, 3)  # what is made once is there
    obj = loaded(elf, 1 << 40)
    safepoints.notify_object_loaded(obj)
    first = ObjectTables(obj).safepoints.maps.addresses[0]
    entry = native._functions.find(native.table_address, first)
    roots = ctypes.c_uint64.from_address(entry + 16).value
    before, content = traced(), ctypes.string_at(roots, 16)

    walks = ctypes.c_uint64.from_address(native.table_address)
    walks.value += 1  # as one in JIT'd code does when it begins
    safepoints.notify_freeing_object(obj)
    announced(safepoints, elf, 100)
    assert traced() - before > 100 * 20 * 16  # a root or more at each of 20 safepoints
    assert ctypes.string_at(roots, 16) == content
    walks.value -= 1
    announced(safepoints, elf, 1)
    assert traced() - before < 4096


def test_memory_is_bounded_while_threads_walk_and_objects_come_and_go(traced):
    elf = target_machine(opt=2).emit_object(llvm.parse_assembly(chained(0)))
    runtime, ended = Runtime("mcjit"), threading.Event()
    counts: set[int] = set()
    walks = [0] * 3

    def stay() -> None:
        chain = (ctypes.c_uint64 * 4)(*runtime.stacks.anchors()[0], 0, 0)
        number = next(numbers)
        while not ended.is_set():
            # It writes no roots, only counts them, and leaves no objects of Python's.
            counts.add(runtime.native._functions.walk(runtime.native.table_address, chain, 0, 0))
            walks[number] += 1

    numbers = iter(range(3))
    (function,) = runtime.program.load(chained(runtime.entry(stay)), "f0")
    threads = [threading.Thread(target=call, args=(function, 200, FIRST)) for _ in walks]
    for thread in threads:
        thread.start()
    announced(runtime.safepoints, elf, 20)
    before, most = traced(), 0
    for _ in range(5):
        announced(runtime.safepoints, elf, 20)
        most = max(most, traced() - before)
    ended.set()
    for thread in threads:
        thread.join()
    assert len(counts) == 1
    assert min(walks) > 20
    assert most < 50_000


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


# Tables that are not LLVM's


def packed_roots(found: ObjectSafepoints) -> dict[int, list[tuple[int, int]] | None]:
    """What the compiled walker has, by return address: pairs of words; None for an error."""
    entries, memory = _packed(found)
    packed: dict[int, list[tuple[int, int]] | None] = {}
    for address, size, roots, form, _ in ENTRY.iter_unpack(entries):
        start = roots - ctypes.addressof(memory)
        words = struct.unpack_from(f"<{form & ~1}i", memory, start)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        packed[address] = None if size == NOT_UNDERSTOOD else pairs
    return packed


def changed_tables(elf: bytes, count: int) -> Iterator[bytes]:
    """The object with a few bytes of its stack map changed, or with noise for its records."""
    chance = random.Random(7)
    file = ObjectFile(elf)
    names = [file.section_name(index) for index in range(len(file.sections))]
    header = file.sections[names.index(".llvm_stackmaps")]
    for number in range(count):
        content = bytearray(elf)
        if number % 20:
            for _ in range(chance.randrange(1, 5)):
                at = header.offset + chance.randrange(header.size)
                content[at] = chance.choice((0, 1, 2, 3, 4, 5, 7, 8, 0xFF, chance.randrange(256)))
        else:
            at = header.offset + chance.randrange(header.size)
            end = header.offset + header.size
            content[at:end] = chance.randbytes(end - at)
        yield bytes(content)


def test_ten_thousand_changed_tables_give_both_walkers_the_same_roots_or_an_error():
    elf = target_machine(opt=2).emit_object(
        llvm.parse_assembly(chained(0, ("plain", "framed_pushed")))
    )
    refused = unknown = read = 0
    for content in changed_tables(elf, 10_000):
        try:
            found = ObjectTables(loaded(content)).safepoints
        except JITListenerError as error:
            assert re.search(r"llvm_stackmaps.*0x[0-9a-f]+", str(error))
            refused += 1
            continue
        packed = packed_roots(found)
        for safepoint in found:
            try:
                roots = [tuple(map(_word, root)) for root in safepoint.roots]
            except JITListenerError as error:
                assert re.search(r"f[01][+]-?0x[0-9a-f]+.*: ", str(error))
                assert packed.get(safepoint.address) is None
                unknown += 1
                continue
            if packed.get(safepoint.address) is not None:
                assert packed[safepoint.address] == roots
                read += 1
    assert min(refused, unknown, read) > 2_000
