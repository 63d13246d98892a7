"""The shadow stack: roots that the code keeps in a list."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import pytest
import tools
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


DOCUMENTED = """
import ctypes, sys
import llvmlite.binding as llvm
from llvmlite import ir
from listeners.safepoints import emit, read_word, walk_shadow_stack, write_word

build, collect = sys.argv[1].split("\\n\\n")
pointer = ir.PointerType()
module = ir.Module()
poll = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "poll")
function = ir.Function(module, ir.FunctionType(pointer, []), "f")
builder = ir.IRBuilder(function.append_basic_block())
slot = builder.alloca(pointer)
exec(build)
builder.store(builder.inttoptr(ir.IntType(64)(1000), pointer), slot)
builder.call(poll, [])
builder.ret(builder.load(slot, typ=pointer))

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
machine = llvm.Target.from_default_triple().create_target_machine()
parsed = llvm.parse_assembly(str(module))
engine = llvm.create_mcjit_compiler(parsed, machine)
moved = (24).__add__
called = ctypes.CFUNCTYPE(None)(lambda: exec(collect))
address = ctypes.cast(called, ctypes.c_void_p).value
engine.add_global_mapping(parsed.get_function("poll"), address)
engine.finalize_object()
print(ctypes.CFUNCTYPE(ctypes.c_uint64)(engine.get_function_address("f"))())
"""


def test_what_the_docs_show_runs():
    """In a process of its own: here, other tests may have loaded what engines have to find."""
    docs = (Path(__file__).parents[1] / "docs/gc.md").read_text()
    (block,) = (b for b in docs.split("```") if b.startswith("python") and "shadow_root" in b)
    block = block.removeprefix("python\n").strip()
    assert tools.run(sys.executable, "-c", DOCUMENTED, block) == "1024\n"


def test_an_exception_takes_the_functions_that_it_passes_off_the_list(program):
    ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)
    module = ir.Module()
    nothing = ir.FunctionType(ir.VoidType(), [])
    thrower = ir.Function(module, nothing, "throw")
    function = ir.Function(module, nothing, "f")
    emit.set_gc(function, "shadow-stack")
    builder = ir.IRBuilder(function.append_basic_block())
    emit.shadow_root(builder, builder.alloca(POINTER))
    builder.call(thrower, [])
    builder.ret_void()
    defined = "\n".join(x for x in str(module).splitlines() if not x.startswith("declare"))
    text = f"""{defined}
    @_ZTIi = external constant ptr
    declare i32 @__gxx_personality_v0(...)
    declare ptr @__cxa_allocate_exception(i64)
    declare void @__cxa_throw(ptr, ptr, ptr)
    declare ptr @__cxa_begin_catch(ptr)
    declare void @__cxa_end_catch()
    define void @throw() {{
      %e = call ptr @__cxa_allocate_exception(i64 4)
      call void @__cxa_throw(ptr %e, ptr @_ZTIi, ptr null)
      unreachable
    }}
    define ptr @caught() personality ptr @__gxx_personality_v0 {{
      invoke void @f() to label %done unwind label %pad
    done:
      ret ptr inttoptr (i64 1 to ptr)
    pad:
      %l = landingpad {{ ptr, i32 }} catch ptr null
      %e = extractvalue {{ ptr, i32 }} %l, 0
      %c = call ptr @__cxa_begin_catch(ptr %e)
      call void @__cxa_end_catch()
      %head = load ptr, ptr @{CHAIN}
      ret ptr %head
    }}
    """
    (caught,) = program.load(text, "caught")
    assert ctypes.CFUNCTYPE(ctypes.c_uint64)(caught)() == 0


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
