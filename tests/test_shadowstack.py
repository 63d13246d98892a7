"""The shadow stack: roots that the code keeps in a list."""

import ctypes
from collections.abc import Callable

import llvmlite.binding as llvm
import pytest
from jit import Program
from llvmlite import ir

from listeners import JITListenerError
from listeners.safepoints import emit, read_word, walk_shadow_stack, write_word
from listeners.safepoints.shadowstack import CHAIN

I64, POINTER = ir.IntType(64), ir.PointerType()


def recursive(callback: int) -> str:
    """f(n, p): p and p + 1 are roots; calls f(n - 1, p + 2), at last the callback; their sum."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(I64, [I64, I64]), "f")
    emit.set_gc(function, "shadow-stack")
    function.attributes.add("nounwind")
    count, pointer = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    slots = [builder.alloca(POINTER) for _ in range(3)]
    for slot, metadata in zip(slots, (0x1234, 0, 0), strict=True):
        emit.shadow_root(builder, slot, metadata)
    for number, slot in enumerate(slots[:2]):
        builder.store(builder.inttoptr(builder.add(pointer, I64(number)), POINTER), slot)
    with builder.if_else(builder.icmp_signed("==", count, I64(0))) as (bottom, further):
        with bottom:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.inttoptr(I64(callback), kind.as_pointer()), [])
            bottom_block = builder.block
        with further:
            arguments = [builder.sub(count, I64(1)), builder.add(pointer, I64(2))]
            below = builder.call(function, arguments)
            further_block = builder.block
    sum_ = builder.phi(I64)
    sum_.add_incoming(I64(0), bottom_block)
    sum_.add_incoming(below, further_block)
    for slot in slots[:2]:
        value = builder.ptrtoint(builder.load(slot, typ=POINTER), I64)
        sum_ = builder.add(sum_, value)
    builder.ret(sum_)
    return str(module)


def run(linker: str, collect: Callable[[int], None]) -> int:
    """What f(99, 1000) gives; at the bottom `collect` gets the address of the list."""
    callback = ctypes.CFUNCTYPE(None)(lambda: collect(chain))
    program = Program(linker)
    text = recursive(ctypes.cast(callback, ctypes.c_void_p).value)
    if linker == "mcjit":
        (address,) = program.load(text, "f")
        chain = program.engine.get_global_value_address(CHAIN)
    else:
        address, chain = program.load(text, "f", CHAIN)
    result = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)(99, 1000)
    assert list(walk_shadow_stack(chain)) == []
    return result


def test_it_has_the_roots_of_every_function_that_has_not_returned(linker):
    frames = []
    result = run(linker, lambda chain: frames.extend(walk_shadow_stack(chain)))
    assert result == sum(range(1000, 1200))
    assert len(frames) == 100
    assert {len(frame.roots) for frame in frames} == {3}
    assert {tuple(sorted(frame.metadata)) for frame in frames} == {(0, 0, 0x1234)}


def test_a_collector_rewrites_them(linker):
    def move(chain: int) -> None:
        for frame in walk_shadow_stack(chain):
            for root in frame.roots:
                if value := read_word(root):
                    write_word(root, value + 1000)

    assert run(linker, move) == sum(range(2000, 2200))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([8, 0, 0], "has no map"),
        ([8, 8, 24, 0xFFFFFFFF_00000001], "1 roots, -1 with metadata"),
        ([8, 8, 24, 0x00000002_00000001], "1 roots, 2 with metadata"),
        ([8, 8, 24, 0], "has no end"),
    ],
)
def test_what_is_no_list_is_an_error(words, problem):
    memory = (ctypes.c_uint64 * len(words))()
    start = ctypes.addressof(memory)
    memory[:] = [w + start if w in (8, 24) else w for w in words]
    with pytest.raises(JITListenerError, match=problem):
        list(walk_shadow_stack(start))


def test_only_allocas_of_functions_with_a_shadow_stack_are_roots():
    function = ir.Function(ir.Module(), ir.FunctionType(I64, [I64]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    slot, number = builder.alloca(POINTER), builder.alloca(I64)
    with pytest.raises(JITListenerError, match="has no shadow stack"):
        emit.shadow_root(builder, slot)
    emit.set_gc(function, "shadow-stack")
    with pytest.raises(JITListenerError, match="no alloca of a pointer"):
        emit.shadow_root(builder, number)
    emit.shadow_root(builder, slot)
    builder.ret(I64(0))
    llvm.parse_assembly(str(function.module)).verify()
