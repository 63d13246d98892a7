"""Fault maps, exception tables and the tables of other collectors: what they say is what runs, and
what is malformed is refused."""

import ctypes
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from jit import LINKERS, Program, target_machine
from test_safepoints import loaded
from tools import PROGRAMS, run, tool

import listeners
from listeners import JITListenerError
from listeners.safepoints import Action, FaultKind, ObjectTables
from listeners.safepoints.faultmap import read_faultmaps
from listeners.safepoints.frametable import read_frametable
from listeners.safepoints.lsda import read_lsda
from listeners.safepoints.note_gc import read_note_gc

# Faults


@pytest.mark.parametrize("linker", LINKERS)
def test_a_null_dereference_goes_on_where_the_fault_map_says(linker):
    said = run(sys.executable, f"{PROGRAMS}/faults.py", linker)
    assert said.splitlines() == ["-11 5 1", "-12 7 2"]


def faultmap(*faults: tuple[int, int, int], function: int = 0x1000) -> bytes:
    content = struct.pack("<BBHIQII", 1, 0, 0, 1, function, len(faults), 0)
    return content + b"".join(struct.pack("<III", *fault) for fault in faults)


def test_a_section_may_hold_several_fault_maps():
    found = read_faultmaps(faultmap((1, 4, 8), (2, 6, 8)) + faultmap((3, 0, 5), function=0x2000))
    assert [(f.kind, f.function, f.address, f.handler) for f in found] == [
        (FaultKind.LOAD, 0x1000, 0x1004, 0x1008),
        (FaultKind.LOAD_STORE, 0x1000, 0x1006, 0x1008),
        (FaultKind.STORE, 0x2000, 0x2000, 0x2005),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\1\0\0", "offset 0x0: a header that is cut off"),
        (b"\2" + faultmap()[1:], "version 2"),
        (faultmap()[:-1], "offset 0x8: a function that is cut off"),
        (faultmap((1, 2, 3))[:-1], "the function at 0x1000: its 1 faults are cut off"),
        (faultmap((4, 2, 3)), "the function at 0x1000, offset 0x2: unknown kind 4"),
    ],
)
def test_a_malformed_fault_map_is_refused_with_the_place(content, problem):
    with pytest.raises(JITListenerError, match=problem):
        read_faultmaps(content)


# Exceptions

THROWING = """
@_ZTIi = external constant ptr
@_ZTIl = external constant ptr
@countdown = global i64 0
declare i32 @__gxx_personality_v0(...)
declare ptr @__cxa_allocate_exception(i64)
declare void @__cxa_throw(ptr, ptr, ptr)
declare ptr @__cxa_begin_catch(ptr)
declare void @__cxa_end_catch()
declare ptr @llvm.returnaddress(i32)

define void @maybe_throw() noinline {
  %r = call ptr @llvm.returnaddress(i32 0)
  %n = load i64, ptr @countdown
  %m = sub i64 %n, 1
  store i64 %m, ptr @countdown
  %now = icmp eq i64 %m, 0
  br i1 %now, label %throw, label %done
throw:
  call void inttoptr (i64 SEEN to ptr)(i64 0, ptr %r)
  %e = call ptr @__cxa_allocate_exception(i64 4)
  store i32 5, ptr %e
  call void @__cxa_throw(ptr %e, ptr @_ZTIi, ptr null)
  unreachable
done:
  ret void
}
define i64 @in_pad(i64 %which) noinline {
  %r = call ptr @llvm.returnaddress(i32 0)
  call void inttoptr (i64 SEEN to ptr)(i64 %which, ptr %r)
  ret i64 %which
}
define i64 @sites() noinline personality ptr @__gxx_personality_v0 {
  invoke void @maybe_throw() to label %a unwind label %p1
a:
  invoke void @maybe_throw() to label %b unwind label %p2
b:
  invoke void @maybe_throw() to label %c unwind label %p3
c:
  call void @maybe_throw()
  ret i64 0
p1:
  %l1 = landingpad { ptr, i32 } catch ptr @_ZTIl catch ptr @_ZTIi
  %w1 = call i64 @in_pad(i64 1)
  %e1 = extractvalue { ptr, i32 } %l1, 0
  %c1 = call ptr @__cxa_begin_catch(ptr %e1)
  call void @__cxa_end_catch()
  ret i64 %w1
p2:
  %l2 = landingpad { ptr, i32 } catch ptr null
  %w2 = call i64 @in_pad(i64 2)
  %e2 = extractvalue { ptr, i32 } %l2, 0
  %c2 = call ptr @__cxa_begin_catch(ptr %e2)
  call void @__cxa_end_catch()
  ret i64 %w2
p3:
  %l3 = landingpad { ptr, i32 } cleanup filter [1 x ptr] [ptr @_ZTIi]
  %w3 = call i64 @in_pad(i64 3)
  resume { ptr, i32 } %l3
}
define i64 @run(i64 %n) personality ptr @__gxx_personality_v0 {
  store i64 %n, ptr @countdown
  %v = invoke i64 @sites() to label %done unwind label %pad
done:
  ret i64 %v
pad:
  %l = landingpad { ptr, i32 } catch ptr null
  %e = extractvalue { ptr, i32 } %l, 0
  %c = call ptr @__cxa_begin_catch(ptr %e)
  call void @__cxa_end_catch()
  ret i64 99
}
define void @without_table() {
  call void @maybe_throw()
  ret void
}
"""
Saw = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_uint64)


@pytest.fixture(scope="module")
def cxx() -> None:
    ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)


def test_an_exception_goes_on_at_the_landing_pad_of_its_call_site(program, cxx):
    safepoints = listeners.Safepoints()
    attachment = listeners.attach(program.engine, safepoints)
    seen: list[tuple[int, int]] = []
    callback = Saw(lambda which, address: seen.append((which, address)))
    address = ctypes.cast(callback, ctypes.c_void_p).value
    (function,) = program.load(THROWING.replace("SEEN", str(address)), "run")
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(function)
    (obj,) = attachment.objects
    pads = sorted({site.landing_pad for site in ObjectTables(obj).call_sites if site.landing_pad})
    caught = {}
    for number, result in ((1, 1), (2, 2), (3, 99), (4, 99), (5, 0)):
        seen.clear()
        assert call(number) == result
        if number == 5:
            assert seen == []
            continue
        (_, thrown), *entered = seen
        site = safepoints.landing_pad(thrown)
        assert site.start < thrown <= site.end
        caught[number] = site.actions
        if number == 4:
            assert (entered, site.landing_pad) == ([], None)
        else:
            ((which, inside),) = entered
            assert which == number
            assert max(pad for pad in pads if pad <= inside) == site.landing_pad
    types = {number: [action.types for action in actions] for number, actions in caught.items()}
    assert types == {1: [("_ZTIl",), ("_ZTIi",)], 2: [(None,)], 3: [("_ZTIi",), ()], 4: []}
    assert caught[3][0].filter < 0
    assert caught[3][1] == Action(0, ())
    plain = obj.function("without_table")
    assert plain.address > obj.function("run").address
    assert safepoints.landing_pad(plain.address + plain.size) is None
    call(1)
    (_, thrown), _ = seen
    program.unload()
    assert safepoints.landing_pad(thrown) is None


@pytest.mark.parametrize("triple", ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"])
@pytest.mark.parametrize("model", ["small", "large", "pic"])
def test_call_sites_and_types_are_read_in_every_encoding(triple, model):
    """Landing pads are labels of llc's assembly; the offsets are those of its object's symbols."""
    options = {"pic": {"codemodel": "small", "reloc": "pic"}}.get(model, {"codemodel": model})
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(THROWING.replace("SEEN", "0"))
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(opt=2, **options)
    tables = ObjectTables(loaded(machine.emit_object(module)))
    sites = [site for site in tables.call_sites if site.function == tables.call_sites[0].function]
    found = [
        (site.landing_pad is not None, [action.types for action in site.actions]) for site in sites
    ]
    assert found == [
        (True, [("_ZTIl",), ("_ZTIi",)]),
        (True, [(None,)]),
        (True, [("_ZTIi",), ()]),
        (False, []),
    ]
    assert all(a.end <= b.start for a, b in pairwise(sites))


# Other collectors

COLLECTED = """
declare void @poll()
declare void @llvm.gcroot(ptr, ptr)
define i64 @f(ptr %o) gc "STRATEGY" {
  %r = alloca ptr
  %s = alloca ptr
  call void @llvm.gcroot(ptr %r, ptr null)
  call void @llvm.gcroot(ptr %s, ptr null)
  store ptr %o, ptr %r
  store ptr %o, ptr %s
  call void @poll()
  call void @poll()
  %p = load ptr, ptr %r
  %n = ptrtoint ptr %p to i64
  ret i64 %n
}
define i64 @g(ptr %o) gc "STRATEGY" {
  %r = alloca ptr
  call void @llvm.gcroot(ptr %r, ptr null)
  store ptr %o, ptr %r
  %v = call i64 @f(ptr %o)
  call void @poll()
  %p = load ptr, ptr %r
  %n = ptrtoint ptr %p to i64
  ret i64 %n
}
"""
POLL = """
declare ptr @llvm.addressofreturnaddress.p0()
define void @poll() noinline {
  %r = call ptr @llvm.addressofreturnaddress.p0()
  call void inttoptr (i64 SEEN to ptr)(ptr %r)
  ret void
}
"""


def made_by_llc(strategy: str, directory: Path) -> bytes:
    source, result = directory / "object.ll", directory / "object.o"
    source.write_text(COLLECTED.replace("STRATEGY", strategy))
    options = "-O2", "-filetype=obj", "-code-model=large", "-o"
    run(tool("llc-19"), *options, str(result), str(source))
    return result.read_bytes()


@pytest.mark.parametrize("strategy", ["erlang", "ocaml"])
def test_tables_of_other_collectors_tell_where_calls_return_and_roots_are(strategy, tmp_path):
    program = Program("mcjit")
    attachment = listeners.attach(program.engine, listeners.Safepoints())
    seen: list[tuple[int, list[int]]] = []

    def look(slot: int) -> None:
        words = (ctypes.c_uint64 * 8).from_address(slot)
        seen.append((words[0], words[1:]))

    callback = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(look)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    program.load(POLL.replace("SEEN", str(address)))
    elf = made_by_llc(strategy, tmp_path)
    program.engine.add_object_file(llvm.ObjectFileRef.from_data(elf))
    program.engine.finalize_object()
    function = program.engine.get_function_address("g")
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(function)(12345) == 12345

    tables = ObjectTables(attachment.objects[-1])
    if strategy == "erlang":
        (_, *_), (g, *_) = tables.note_gc
        assert [found.arity for found in tables.note_gc] == [0, 0]
        sites = {a: (s.frame_size, s.roots) for s in tables.note_gc for a in s.safepoints}
        assert len(g) == 2
    else:
        sites = {s.return_address: (s.frame_size, s.roots) for s in tables.frametable}
    assert len(sites) == 4
    assert len(seen) == 3
    for return_address, words in seen:
        frame_size, roots = sites[return_address]
        assert [words[root // 8] for root in roots] == [12345] * len(roots)
        assert frame_size % 16 == 8
    return_address, words = seen[0]
    assert words[sites[return_address][0] // 8] in sites  # the caller's, in g


def test_a_safepoint_without_an_address_is_refused():
    content = struct.pack("<HIHHH", 1, 0, 3, 0, 0)
    assert read_note_gc(content, {2: 0x1000})[0].safepoints == (0x1000,)
    with pytest.raises(JITListenerError, match="offset 0x2: a safepoint without an address"):
        read_note_gc(content, {})


# What is malformed


def noise(seed: int, real: bytes, count: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(count):
        content = bytearray(real)
        for _ in range(chance.randrange(1, 4)):
            content[chance.randrange(len(content))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        if not chance.randrange(4):
            del content[chance.randrange(len(content)) :]
        yield bytes(content) or b"\xff"


def except_table() -> bytes:
    machine = target_machine(opt=2)
    elf = machine.emit_object(llvm.parse_assembly(THROWING.replace("SEEN", "0")))
    relocated = ObjectTables(loaded(elf))._relocated
    ((_, _, content),) = relocated.sections(".gcc_except_table")
    return content


READERS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
    "faultmap": (lambda: faultmap((1, 2, 3), (2, 3, 4)), read_faultmaps),
    "lsda": (except_table, lambda content: read_lsda(content, 0, 0, 0x1000, {})),
    "note_gc": (
        lambda: struct.pack("<HIIHHHHH", 2, 0, 0, 3, 0, 2, 1, 2),
        lambda content: read_note_gc(content, {2: 16, 6: 32}),
    ),
    "frametable": (
        lambda: struct.pack("<H6xQHHHHQHH", 2, 16, 3, 2, 1, 2, 32, 1, 0),
        lambda content: read_frametable(content, 0),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_malformed_tables_are_read_or_refused(name):
    make, read = READERS[name]
    real = make()
    read(real)
    refused = 0
    for content in noise(1, real, 10_000):
        try:
            read(content)
        except JITListenerError as error:
            assert re.search(r"offset 0x|at 0x", str(error))
            refused += 1
    assert refused > 1000


def test_actions_in_a_circle_are_refused():
    table = bytes([0xFF, 0, 12, 1, 4, 0, 1, 1, 1, 1, 0x7F, 0, 0, 0, 0])
    with pytest.raises(JITListenerError, match="actions that go in a circle"):
        read_lsda(table, 0, 0, 0, {})
