"""The listener `Safepoints`: each safepoint where the code really is, from load to unload."""

import ctypes
import sys
import threading

import llvmlite.binding as llvm
import pytest
from jit import Long, Program, target_machine
from statepoints import DECLARATIONS, relocate, statepoint

import listeners
from listeners import JITListenerError
from listeners.objectfile import ObjectFile
from listeners.safepoints import (
    Anchor,
    NativeWalker,
    ObjectSafepoints,
    ObjectTables,
    Root,
    Safepoint,
    Slot,
    walk,
)

Seen = ctypes.CFUNCTYPE(None, ctypes.c_uint64)


def chain(poll: int, depth: int = 4) -> str:
    """Functions of which each calls the next and, before and after it, the callee at `poll`.

    The callee gets its return address.
    """
    lines = [
        DECLARATIONS.replace("declare void @poll()", ""),
        "declare ptr @llvm.returnaddress(i32)",
        "define void @poll() noinline {",
        "  %r = call ptr @llvm.returnaddress(i32 0)",
        "  %n = ptrtoint ptr %r to i64",
        f"  call void inttoptr (i64 {poll} to ptr)(i64 %n)",
        "  ret void",
        "}",
    ]
    for number in range(depth):
        reference = "ptr addrspace(1) %o"
        lines += [
            f'define i64 @f{number}(i64 %n, {reference}) noinline gc "statepoint-example" {{',
            f"  {statepoint('a', identity=10 * number + 1, live=(reference,), deopt=('i64 %n',))}",
            f"  {relocate('p', 'a', 0, 0)}",
        ]
        reference = "ptr addrspace(1) %p"
        if number + 1 < depth:
            callee = "i64 (i64, ptr addrspace(1))", f"@f{number + 1}"
            called = statepoint("b", *callee, arguments=("i64 %n", reference), live=(reference,),
                                identity=10 * number + 2)  # fmt: skip
            lines += [f"  {called}", f"  {relocate('q', 'b', 0, 0)}"]
            reference = "ptr addrspace(1) %q"
        last = statepoint("c", identity=10 * number + 3, live=(reference,))
        lines += [
            f"  {last}",
            f"  {relocate('r', 'c', 0, 0)}",
            "  %v = ptrtoint ptr addrspace(1) %r to i64",
            "  ret i64 %v",
            "}",
        ]
    return "\n".join(lines)


Chain = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Witness:
    """A callee, and the return addresses it has seen."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.callback = Seen(self.seen.append)
        self.address = ctypes.cast(self.callback, ctypes.c_void_p).value


@pytest.fixture
def safepoints(program: Program) -> listeners.Safepoints:
    found = listeners.Safepoints()
    listeners.attach(program.engine, found)
    return found


def test_a_statepoint_is_at_the_return_address_its_callee_saw(program, safepoints):
    witness = Witness()
    (first,) = program.load(chain(witness.address), "f0")
    assert Chain(first)(5, 1234) == 1234
    polls = [s for s in safepoints if s.id % 10 in (1, 3)]
    assert len(witness.seen) == len(polls) == 8
    assert [safepoints.lookup(address).id for address in witness.seen] == [
        1, 11, 21, 31, 33, 23, 13, 3
    ]  # fmt: skip
    assert {s.address for s in polls} == set(witness.seen)


def test_a_safepoint_has_function_frame_roots_and_deopt_values(program, safepoints):
    witness = Witness()
    (first,) = program.load(chain(witness.address), "f0")
    (found,) = safepoints.by_id(1)
    assert found.kind == "statepoint"
    assert (found.function.name, found.function.address) == ("f0", first)
    assert found.frame_size % 16 == 8
    ((root, derived),) = found.roots
    assert root == derived == Slot(7, root.offset)
    assert 0 <= root.offset < found.frame_size
    (value,) = found.deopt
    assert value.kind.name == "INDIRECT"
    assert [s.id for s in safepoints.by_function("f3")] == [31, 33]
    assert [s.id for s in safepoints] == [1, 2, 3, 11, 12, 13, 21, 22, 23, 31, 33]
    assert safepoints.by_id(999) == safepoints.by_function("nobody") == []


def test_what_was_unloaded_is_not_found(program, safepoints):
    program.load(chain(Witness().address), "f0")
    addresses = [s.address for s in safepoints]
    assert all(map(safepoints.lookup, addresses))
    program.unload()
    assert list(safepoints) == []
    assert list(map(safepoints.lookup, addresses)) == [None] * len(addresses)


def test_an_object_heard_twice_is_known_once(program, safepoints):
    native = NativeWalker(safepoints)
    listeners.attach(program.engine, safepoints)
    program.load(chain(Witness().address), "f0")
    addresses = [s.address for s in safepoints]
    assert len(addresses) == 11
    program.unload()
    assert list(map(safepoints.lookup, addresses)) == [None] * 11
    assert not any(map(native.knows, addresses))


def test_a_runtime_is_given_the_safepoints_of_each_object_before_it_can_run(program):
    given: list[tuple[listeners.LoadedObject, ObjectSafepoints]] = []
    found = listeners.Safepoints(lambda obj, safepoints: given.append((obj, safepoints)))
    attachment = listeners.attach(program.engine, found)
    program.load("define void @plain() { ret void }", "plain")
    program.load(chain(Witness().address), "f0")
    ((obj, safepoints),) = given
    assert obj is attachment.objects[-1]
    assert len(safepoints) == 11
    assert safepoints[0] is found.lookup(safepoints[0].address)
    assert [s.id for s in safepoints[-2:]] == [31, 33]


def test_stackmaps_and_patchpoints_are_where_their_bytes_begin(program, safepoints):
    text = """
    declare void @llvm.experimental.stackmap(i64, i32, ...)
    declare void @llvm.experimental.patchpoint.void(i64, i32, ptr, i32, ...)
    define i64 @f(i64 %a) {
      call void (i64, i32, ...) @llvm.experimental.stackmap(i64 5, i32 0, i64 %a, i64 1099511627776)
      %b = mul i64 %a, %a
      call void (i64, i32, ptr, i32, ...) @llvm.experimental.patchpoint.void(
        i64 6, i32 16, ptr null, i32 0, i64 %a)
      %c = mul i64 %b, %b
      call void (i64, i32, ptr, i32, ...) @llvm.experimental.patchpoint.void(
        i64 7, i32 16, ptr inttoptr (i64 4660 to ptr), i32 0)
      ret i64 %c
    }
    """
    program.load(text, "f")
    stackmap, empty, call = safepoints
    assert [s.kind for s in safepoints] == ["stackmap", "patchpoint", "patchpoint"]
    assert ctypes.string_at(empty.address, 10).hex() == "2e660f1f840000020000"
    assert empty.live_outs
    assert ctypes.string_at(call.address, 13).hex() == "49bb341200000000000041ffd3"
    assert stackmap.values[1].offset == 1 << 40
    with pytest.raises(JITListenerError, match=r"safepoint 5 in f\+0x.*not those of a statepoint"):
        _ = stackmap.roots


def test_a_call_that_never_returns_is_found_at_the_end_of_the_code(program, safepoints):
    text = f"""{DECLARATIONS.replace("declare void @poll()", "define void @poll() {{ ret void }}")}
    define void @f(ptr addrspace(1) %o) noreturn gc "statepoint-example" {{
      {statepoint("t", live=("ptr addrspace(1) %o",))}
      unreachable
    }}
    """.replace("{{", "{").replace("}}", "}")
    program.load(text, "f")
    (safepoint,) = safepoints
    code = safepoint.object.section(".ltext")
    assert safepoint.address == code.address + code.size
    assert safepoints.lookup(safepoint.address) is safepoint


@pytest.mark.parametrize("values", ["", ", i64 0, i64 0, i64 0"])  # these as a statepoint's
def test_a_stackmap_right_behind_a_call_does_not_hide_its_roots(program, safepoints, values):
    native = NativeWalker(safepoints)
    text = f"""{DECLARATIONS.replace("declare void @poll()", "define void @poll() {{ ret void }}")}
    define ptr addrspace(1) @f(ptr addrspace(1) %o) gc "statepoint-example" {{
      {statepoint("t", identity=1, live=("ptr addrspace(1) %o",))}
      call void (i64, i32, ...) @llvm.experimental.stackmap(i64 2, i32 0{values})
      {relocate("p", "t", 0, 0)}
      ret ptr addrspace(1) %p
    }}
    """.replace("{{", "{").replace("}}", "}")
    program.load(text, "f")
    call, point = safepoints
    assert (call.id, point.id, call.address) == (1, 2, point.address)
    assert safepoints.lookup(call.address) is call
    assert len(call.roots) == 1
    stack = (ctypes.c_uint64 * 8)(call.address)
    anchor = Anchor(ctypes.addressof(stack), ctypes.addressof(stack) + 32)
    (frame,) = walk(safepoints, [anchor])
    assert frame.safepoint is call
    assert native.roots([anchor]) == frame.roots != []


def test_objects_from_a_cache_are_found_where_they_are_loaded():
    witness = Witness()
    cache: dict[str, bytes] = {}
    for _ in range(2):  # compiled, then from the cache
        program = Program("mcjit")
        program.engine.set_object_cache(
            lambda module, elf: cache.__setitem__(module.name, elf),
            lambda module: cache.get(module.name),
        )
        safepoints = listeners.Safepoints()
        listeners.attach(program.engine, safepoints)
        (first,) = program.load(chain(witness.address), "f0")
        witness.seen.clear()
        assert Chain(first)(1, 2) == 2
        assert all(safepoints.lookup(address) for address in witness.seen)
        assert len(cache) == 1


def test_numbas_code_and_safepoints_are_told_apart():
    import numba

    safepoints = listeners.Safepoints()
    with listeners.attach(None, safepoints) as attachment:
        before = set(attachment.objects)  # other tests leave theirs, which go at any time
        assert numba.njit(lambda x: x + 1)(1) == 2
        program = Program("jitlink")
        program.load(chain(Witness().address), "f0")
        new = [obj for obj in attachment.objects if obj not in before]
        assert {s.object for s in safepoints}.intersection(new) == {new[-1]}
        others = [obj for obj in new[:-1] if obj.functions]
        assert others
        assert [safepoints.lookup(obj.functions[0].address) for obj in others] == [None] * len(
            others
        )


def loaded(elf: bytes, start: int = 0) -> listeners.LoadedObject:
    file = ObjectFile(elf)
    addresses = {
        index: start + 0x10000 * index
        for index, header in enumerate(file.sections)
        if header.flags & 2
    }
    return listeners.LoadedObject(lambda: file, ctypes.string_at, addresses)


def compiled(text: str) -> bytes:
    return target_machine(opt=2).emit_object(llvm.parse_assembly(text))


def broken(change: bytes, at: int) -> listeners.LoadedObject:
    """An object whose table has other bytes at some offset."""
    elf = bytearray(compiled(chain(0)))
    file = ObjectFile(bytes(elf))
    names = [file.section_name(index) for index in range(len(file.sections))]
    start = file.sections[names.index(".llvm_stackmaps")].offset + at
    elf[start : start + len(change)] = change
    return loaded(bytes(elf))


def test_an_object_with_a_malformed_table_answers_for_all_its_code_with_the_error():
    safepoints = listeners.Safepoints()
    obj = broken(b"\2", 0)
    with pytest.raises(JITListenerError, match="version 2"):
        safepoints.notify_object_loaded(obj)
    with pytest.raises(JITListenerError, match="version 2"):
        safepoints.lookup(obj.function("f1").address + 5)
    safepoints.notify_freeing_object(obj)
    assert safepoints.lookup(obj.function("f1").address + 5) is None


def test_look_ups_find_what_stays_while_other_objects_come_and_go():
    safepoints = listeners.Safepoints()
    elf = compiled("define void @plain() { ret void }")
    stays, around = loaded(elf, 1 << 30), [loaded(elf, number << 24) for number in range(40)]
    safepoints.notify_object_loaded(stays)
    address = stays.function("plain").address
    ended, missed = threading.Event(), []

    def look() -> None:
        while not ended.is_set():
            if safepoints.code_name(address) != "plain":
                missed.append(address)

    threads = [threading.Thread(target=look) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(300):
            for obj in around:
                safepoints.notify_object_loaded(obj)
            for obj in around:
                safepoints.notify_freeing_object(obj)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert missed == []


def test_functions_in_several_sections_are_found_in_any_order():
    text = chain(0).replace("noinline gc", 'noinline section ".elsewhere" gc', 1)
    safepoints = listeners.Safepoints()
    safepoints.notify_object_loaded(loaded(compiled(text), 1 << 30))
    addresses = [safepoint.address for safepoint in safepoints]
    assert addresses != sorted(addresses)
    assert [safepoints.lookup(address) for address in addresses] == list(safepoints)


def test_a_function_outside_the_objects_code_is_refused():
    elf = compiled(chain(0))
    obj = loaded(elf)
    real = ObjectTables(obj).safepoints
    relocated = real.maps.functions[0].address
    assert relocated == obj.function("f0").address
    file = ObjectFile(elf)
    text = next(s for s in obj.sections if s.flags & 4)
    addresses = {s.index: s.address for s in obj.sections if s is not text}
    moved = listeners.LoadedObject(lambda: file, ctypes.string_at, addresses)
    with pytest.raises(JITListenerError, match="function at 0x0, where the object has no code"):
        _ = ObjectTables(moved).safepoints


def test_a_root_that_is_not_understood_names_function_and_offset():
    obj = broken(b"\1", 16 + 4 * 24 + 16 + 4 * 12)  # the first record's first root: a register
    safepoint = ObjectTables(obj).safepoints[0]
    assert isinstance(safepoint, Safepoint)
    with pytest.raises(JITListenerError, match=r"safepoint 1 in f0\+0x.*location 5: a root in a"):
        _ = safepoint.roots


def test_pairs_of_roots_are_where_the_values_are(program, safepoints):
    """The callee reads the slots that the record names."""
    found: list[int] = []

    def look(slot: int) -> None:
        (address,) = (ctypes.c_uint64.from_address(slot),)
        safepoint = safepoints.lookup(address.value)
        for base, derived in safepoint.roots:
            assert Root(base, derived)
            found.extend(ctypes.c_uint64.from_address(slot + 8 + s.offset).value
                         for s in (base, derived))  # fmt: skip

    callback = Seen(look)
    poll = ctypes.cast(callback, ctypes.c_void_p).value
    text = (
        DECLARATIONS.replace("declare void @poll()", "")
        + f"""
    declare ptr @llvm.addressofreturnaddress.p0()
    define void @poll() noinline {{
      %r = call ptr @llvm.addressofreturnaddress.p0()
      %n = ptrtoint ptr %r to i64
      call void inttoptr (i64 {poll} to ptr)(i64 %n)
      ret void
    }}
    define i64 @f(i64 %n) gc "statepoint-example" {{
      %o = inttoptr i64 %n to ptr addrspace(1)
      %d = getelementptr i8, ptr addrspace(1) %o, i64 40
      {statepoint("t", live=("ptr addrspace(1) %o", "ptr addrspace(1) %d"))}
      {relocate("p", "t", 0, 0)}
      {relocate("q", "t", 0, 1)}
      %a = ptrtoint ptr addrspace(1) %p to i64
      %b = ptrtoint ptr addrspace(1) %q to i64
      %c = sub i64 %b, %a
      ret i64 %c
    }}
    """
    )
    (function,) = program.load(text, "f")
    assert Long(function)(1 << 20) == 40
    assert sorted(set(found)) == [1 << 20, (1 << 20) + 40]
