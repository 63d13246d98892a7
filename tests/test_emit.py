"""`listeners.safepoints.emit`: llvmlite.ir with what collectors and patching need."""

import ctypes
import subprocess
import sys

import llvmlite.binding as llvm
import pytest
from collector import Runtime
from llvmlite import ir

import listeners
from listeners import JITListenerError
from listeners.safepoints import emit

pytestmark = pytest.mark.usefixtures("patchpoints_built")

I64 = ir.IntType(64)
VOID = ir.VoidType()
NOTHING = ir.LiteralStructType([])
POINTERS = ir.VectorType(ir.PointerType(), 2)


class Building:
    """A module with functions to call, and the builder of one."""

    def __init__(
        self, strategy: str | None = "statepoint-example", *arguments: ir.Type, triple: str = ""
    ) -> None:
        self.module = ir.Module()
        if triple:
            self.module.triple = triple
        self.alloc = self.declare("alloc", emit.REFERENCE, I64, I64)
        self.poll = self.declare("poll", VOID)
        self.function = self.declare("f", I64, *arguments)
        if strategy:
            emit.set_gc(self.function, strategy)
        self.builder = ir.IRBuilder(self.function.append_basic_block())

    def declare(self, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
        return ir.Function(self.module, ir.FunctionType(result, arguments), name)

    def defined(self) -> str:
        """The module without its declarations."""
        lines = str(self.module).splitlines()
        return "\n".join(line for line in lines if not line.startswith("declare"))


def ends(text: str) -> bool:
    """Whether LLVM ends a process that compiles this."""
    program = (
        "import sys, llvmlite.binding as llvm\n"
        "llvm.initialize_all_targets(); llvm.initialize_all_asmprinters()\n"
        "module = llvm.parse_assembly(sys.argv[1])\n"
        "target = llvm.Target.from_triple(module.triple or llvm.get_default_triple())\n"
        "target.create_target_machine().emit_object(module)"
    )
    done = subprocess.run([sys.executable, "-c", program, text], capture_output=True, check=False)
    return done.returncode < 0


def test_statepoints_built_by_hand_relocate_what_is_live(linker):
    runtime = Runtime(linker)
    made = Building("coreclr", I64)
    builder = made.builder
    alloc, poll = (
        builder.inttoptr(I64(entry.address), function.type)
        for entry, function in ((runtime.alloc, made.alloc), (runtime.poll, made.poll))
    )
    first = emit.statepoint(builder, alloc, [I64(0), I64(2)]).result()
    slot = builder.alloca(emit.REFERENCE)
    builder.store(first, slot)
    inside = builder.gep(first, [I64(2)], source_etype=I64)
    builder.store(made.function.args[0], inside)
    call = emit.statepoint(
        builder, poll, live=[first, inside, slot], deopt=[I64(7), made.function.args[0]], id=99
    )
    moved, moved_inside = call.relocate(first), call.relocate(inside, first)
    reloaded = builder.load(slot, typ=emit.REFERENCE)
    distance = builder.sub(builder.ptrtoint(moved_inside, I64), builder.ptrtoint(reloaded, I64))
    same = builder.icmp_unsigned("==", moved, reloaded)
    number = builder.add(builder.load(moved_inside, typ=I64), distance)
    builder.ret(builder.select(same, number, I64(0)))

    (address,) = runtime.load(made.defined(), "f")
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(1000) == 1016
    assert runtime.heap.moved == 1
    (safepoint,) = runtime.safepoints.by_id(99)
    assert safepoint.deopt[0].offset == 7
    assert len(safepoint.roots) == 3


def test_stackmaps_and_patchpoints_are_recorded(program):
    """Floating-point code and a call behind a patchpoint do not end the process."""
    made = Building(None, I64, ir.DoubleType())
    builder = made.builder
    number, real = made.function.args
    emit.stackmap(builder, 11, [number, real], shadow_bytes=8)
    returned = emit.patchpoint(builder, 12, 16, None, [number], live=[real], returns=I64)
    target = ir.Function(made.module, ir.FunctionType(VOID, []), "target")
    ir.IRBuilder(target.append_basic_block()).ret_void()
    emit.patchpoint(builder, 13, 24, target)
    twice = builder.fptosi(builder.fadd(real, real), I64)
    builder.call(target, [])
    builder.ret(builder.add(builder.sub(returned, returned), twice))

    safepoints = listeners.Safepoints()
    listeners.attach(program.engine, safepoints)
    (address,) = program.load(made.defined(), "f")
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_double)(address)
    assert function(1, 21.0) == 42
    assert [safepoint.id for safepoint in safepoints] == [11, 12, 13]
    assert [len(safepoint.values) for safepoint in safepoints] == [2, 1, 0]


def test_a_callee_is_called_as_it_is_declared():
    made = Building()
    callee = made.declare("g", VOID, ir.IntType(8), ir.IntType(16), I64)
    callee.calling_convention = "fastcc"
    callee.args[0].add_attribute("zeroext")
    callee.args[1].add_attribute("signext")
    callee.args[1].add_attribute("noundef")
    emit.statepoint(made.builder, callee, [ir.IntType(8)(200), ir.IntType(16)(-1), I64(1)])
    made.builder.ret(I64(0))
    text = str(llvm.parse_assembly(str(made.module)))
    assert "call fastcc token" in text
    assert "i8 zeroext -56, i16 signext -1, i64 1" in text


def test_a_function_keeps_its_other_attributes():
    made = Building(None)
    made.function.attributes.add("noinline")
    personality = ir.Function(made.module, ir.FunctionType(ir.IntType(32), [], True), "personality")
    made.function.attributes.personality = personality
    emit.set_gc(made.function)
    emit.set_leaf(made.poll)
    made.builder.ret(I64(0))
    text = str(llvm.parse_assembly(str(made.module)))
    assert 'gc "statepoint-example" personality ptr @personality' in text
    assert "noinline" in text
    assert '{ "gc-leaf-function" }' in text


AARCH64 = "aarch64-linux-gnu"
WITH_REFERENCE = "statepoint-example", emit.REFERENCE
REFUSED = {
    "no strategy": (
        lambda: emit.statepoint((made := Building(None)).builder, made.poll),
        "set_gc(function) first",
    ),
    "a strategy without statepoints": (
        lambda: emit.statepoint((made := Building("shadow-stack")).builder, made.poll),
        "set_gc(function) first",
    ),
    "an unknown strategy": (lambda: Building("mine"), "'mine'"),
    "a strategy that llvmlite cannot print": (lambda: Building("erlang"), "'erlang'"),
    "a live value that is no reference": (
        lambda: emit.statepoint((made := Building()).builder, made.poll, live=[I64(1)]),
        "i64 1 is no reference",
    ),
    "arguments that do not fit": (
        lambda: emit.statepoint((made := Building()).builder, made.alloc, [I64(1)]),
        "takes (i64, i64)",
    ),
    "a result of nothing": (
        lambda: emit.statepoint((made := Building()).builder, made.poll).result(),
        "returns nothing",
    ),
    "a relocated value that is not live": (
        lambda: emit.statepoint((made := Building(*WITH_REFERENCE)).builder, made.poll).relocate(
            made.function.args[0]
        ),
        "not among the references that are live",
    ),
    "a result that no registers hold": (
        lambda: emit.statepoint(
            (made := Building()).builder, made.declare("g", ir.ArrayType(I64, 4))
        ),
        "more than 2 registers",
    ),
    "an argument of nothing": (
        lambda: emit.statepoint(
            (made := Building()).builder, made.declare("g", VOID, NOTHING), [NOTHING(None)]
        ),
        "cannot take {}",
    ),
    "an argument that is copied": (
        lambda: (
            (made := Building()),
            (callee := made.declare("g", VOID, ir.PointerType())),
            callee.args[0].add_attribute("byval"),
            emit.statepoint(made.builder, callee, [ir.PointerType()(None)]),
        ),
        "by byval",
    ),
    "a deopt value in several registers": (
        lambda: emit.statepoint((made := Building()).builder, made.poll, deopt=[POINTERS(None)]),
        "cannot take <2 x ptr>",
    ),
    "a call that is too long for its patchpoint": (
        lambda: emit.patchpoint((made := Building()).builder, 1, 12, made.poll),
        "13",
    ),
    "a call that is too long for its patchpoint on AArch64": (
        lambda: emit.patchpoint((made := Building(triple=AARCH64)).builder, 1, 12, made.poll),
        "needs 16",
    ),
    "a computed target of a patchpoint": (
        lambda: emit.patchpoint(
            (made := Building(None, ir.PointerType())).builder, 1, 16, made.function.args[0]
        ),
        "a function, or a constant address",
    ),
    "a function as a patchpoint's target on AArch64": (
        lambda: emit.patchpoint((made := Building(triple=AARCH64)).builder, 1, 16, made.poll),
        "a constant address of 48 bits",
    ),
    "half an instruction as a patchpoint": (
        lambda: emit.patchpoint(Building(triple=AARCH64).builder, 1, 18),
        "multiples of 4",
    ),
    "half an instruction as a stackmap's shadow": (
        lambda: emit.stackmap(Building(triple=AARCH64).builder, 1, shadow_bytes=2),
        "multiples of 4",
    ),
    "half an instruction as a statepoint": (
        lambda: emit.statepoint(
            (made := Building(triple=AARCH64)).builder, made.poll, patch_bytes=6
        ),
        "multiples of 4",
    ),
    "a patchpoint's result in several registers": (
        lambda: emit.patchpoint(Building().builder, 1, returns=ir.LiteralStructType([I64, I64])),
        "integers of up to 64 bits",
    ),
    "a recorded number that is too wide": (
        lambda: emit.stackmap(Building().builder, 1, [ir.IntType(128)(1)]),
        "integers of up to 64 bits",
    ),
    "an id that is no id": (lambda: emit.stackmap(Building().builder, -1), "-1"),
    "a size that is no size": (lambda: emit.patchpoint(Building().builder, 1, -16), "-16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(case):
    build, problem = REFUSED[case]
    with pytest.raises(JITListenerError) as refused:
        build()
    assert problem in str(refused.value)


STATEPOINT = (
    "call token (i64, i32, ptr, i32, i32, ...) @llvm.experimental.gc.statepoint.p0("
    "i64 0, i32 0, ptr elementtype({}) @g, i32 0, i32 0, i32 0, i32 0)"
)
PATCHPOINT = "call void (i64, i32, ptr, i32, ...) @llvm.experimental.patchpoint.void"
ABORTS = {
    "an unknown strategy": 'define void @f() gc "mine" { ret void }',
    "a strategy that llvmlite cannot print": 'define void @f() gc "erlang" { ret void }',
    "no strategy": f"define void @f() {{ %t = {STATEPOINT.format('void ()')} ret void }}"
    " declare void @g()",
    "a result that no registers hold": (
        'define i64 @f() gc "coreclr" {'
        f" %t = {STATEPOINT.format('[4 x i64] ()')}"
        " %r = call [4 x i64] @llvm.experimental.gc.result(token %t)"
        " %x = extractvalue [4 x i64] %r, 3 ret i64 %x } declare [4 x i64] @g()"
    ),
    "a result in a register of its own kind": (
        'define x86_fp80 @f() gc "coreclr" {'
        f" %t = {STATEPOINT.format('x86_fp80 ()')}"
        " %r = call x86_fp80 @llvm.experimental.gc.result(token %t)"
        " ret x86_fp80 %r } declare x86_fp80 @g()"
    ),
    "an argument of nothing": (
        'define void @f() gc "coreclr" {'
        " %t = call token (i64, i32, ptr, i32, i32, ...) @llvm.experimental.gc.statepoint.p0("
        "i64 0, i32 0, ptr elementtype(void ({})) @g, i32 1, i32 0, {} undef, i32 0, i32 0)"
        " ret void } declare void @g({})"
    ),
    "a deopt value in several registers": (
        'define void @f(<2 x ptr> %p) gc "coreclr" {'
        f" %t = {STATEPOINT.format('void ()')}"
        ' [ "deopt"(<2 x ptr> %p) ] ret void } declare void @g()'
    ),
    "a small vector that a call returns or throws": (
        'define <2 x half> @f(<2 x half> %d) gc "coreclr" personality ptr @p {'
        f" %t = {STATEPOINT.format('<2 x half> ()').replace('call', 'invoke')}"
        " to label %a unwind label %b a: %r = call <2 x half> @llvm.experimental.gc.result("
        "token %t) ret <2 x half> %r b: %l = landingpad { ptr, i32 } cleanup ret <2 x half> %d }"
        " declare <2 x half> @g() declare i32 @p(...)"
    ),
    "a call that is too long for its patchpoint": (
        f"define void @f() {{ {PATCHPOINT}(i64 1, i32 12, ptr inttoptr (i64 81985529216486895 to"
        " ptr), i32 0) ret void }"
    ),
    "a call that is too long for its patchpoint on AArch64": (
        f'target triple = "{AARCH64}" define void @f() {{ {PATCHPOINT}(i64 1, i32 12,'
        " ptr inttoptr (i64 4096 to ptr), i32 0) ret void }"
    ),
    "a computed target of a patchpoint": (
        f"define void @f(ptr %p) {{ {PATCHPOINT}(i64 1, i32 16, ptr %p, i32 0) ret void }}"
    ),
    "a function as a patchpoint's target on AArch64": (
        f'target triple = "{AARCH64}" define void @f() {{ {PATCHPOINT}(i64 1, i32 16, ptr @f,'
        " i32 0) ret void }"
    ),
    "half an instruction as a patchpoint": (
        f'target triple = "{AARCH64}" define void @f() {{ {PATCHPOINT}(i64 1, i32 18,'
        " ptr null, i32 0) ret void }"
    ),
    "half an instruction as a stackmap's shadow": (
        f'target triple = "{AARCH64}" define void @f() {{'
        " call void (i64, i32, ...) @llvm.experimental.stackmap(i64 1, i32 2) ret void }"
    ),
    "half an instruction as a statepoint": (
        f'target triple = "{AARCH64}" define void @f() gc "coreclr" {{'
        f" %t = {STATEPOINT.format('void ()').replace('i32 0', 'i32 6', 1)}"
        " ret void } declare void @g()"
    ),
    "a call behind a patchpoint": (
        f"define void @f() {{ {PATCHPOINT}(i64 1, i32 16, ptr null, i32 0)"
        " call void @g() ret void } declare void @g()"
    ),
    "a patchpoint's result in several registers": (
        "define { i64, i64 } @f() { %r = call { i64, i64 } (i64, i32, ptr, i32, ...)"
        " @llvm.experimental.patchpoint.sl(i64 1, i32 16, ptr null, i32 0) ret { i64, i64 } %r }"
    ),
    "a recorded number that is too wide": (
        "define void @f(i128 %n) {"
        " call void (i64, i32, ...) @llvm.experimental.stackmap(i64 1, i32 0, i128 %n) ret void }"
    ),
}


@pytest.mark.parametrize("case", ABORTS)
def test_llvm_would_have_ended_the_process(case):
    assert ends(ABORTS[case])
