"""What llvmlite.ir lacks for garbage collection and patching, beside its IRBuilder.

For front ends: strategies of functions, the type of references, statepoints with what is live
across them and the values that come out of them, stackmaps, patchpoints. What would make LLVM end
the process is refused here, with JITListenerError. The intrinsics are those of
https://llvm.org/docs/Statepoints.html and https://llvm.org/docs/StackMaps.html.

Most front ends need `set_gc` and REFERENCE only: `place_statepoints` does the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir.values import FunctionAttributes

from ..errors import JITListenerError
from .shadowstack import CHAIN

__all__ = [
    "REFERENCE",
    "STRATEGIES",
    "StatepointCall",
    "patchpoint",
    "set_gc",
    "set_leaf",
    "shadow_root",
    "stackmap",
    "statepoint",
]

REFERENCE = ir.PointerType(addrspace=1)
"""The type of references to collected objects, by LLVM's own strategies."""

WITH_STATEPOINTS = "statepoint-example", "coreclr"
"""The strategies whose functions can have statepoints."""

STRATEGIES = (*WITH_STATEPOINTS, "shadow-stack")
"""The strategies that llvmlite's LLVM can generate code for. It knows "erlang" and "ocaml", too,
but not how to print their tables, and then ends the process."""

DEFAULT_ID = 0xABCDEF00
"""The id of a statepoint that is given none, as in LLVM."""

MOST_RETURNED = 2
"""How many registers of results LLVM can take from a statepoint, by every calling convention."""

_SIMPLE = "LLVM can take integers of up to 64 bits, pointers, float and double"

SMALLEST_CALL, SMALLEST_AARCH64_CALL = 13, 16
"""How many bytes LLVM needs to call a patchpoint's target, on x86-64 and on AArch64."""

AARCH64_INSTRUCTION = 4
"""The size of each, and so what sizes of code are multiples of."""

UNWINDER = "libgcc_s.so.1"

_ADDRESS = re.compile(r"null|inttoptr \(i64 (-?\d+) to ptr\)")

EXTENSIONS = "inreg", "signext", "zeroext"
"""The attributes of an argument that a statepoint passes on."""

NOT_PASSED = frozenset(
    ("byval", "inalloca", "nest", "preallocated", "sret", "swiftasync", "swifterror", "swiftself")
)
"""The attributes of an argument that a statepoint cannot pass."""


class _Token(ir.Type):  # type: ignore[misc]
    def _to_string(self) -> str:
        return "token"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Token)

    def __hash__(self) -> int:
        return hash(_Token)


class _Attributes(FunctionAttributes):  # type: ignore[misc]
    """A function's attributes, with what llvmlite has no place for."""

    gc = ""
    leaf = False

    def __bool__(self) -> bool:
        return True

    def _to_list(self, ret_type: ir.Type) -> list[str]:
        attributes: list[str] = super()._to_list(ret_type)
        if self.leaf:
            attributes.insert(0, '"gc-leaf-function"')
        if self.gc:
            attributes.insert(len(attributes) - bool(self.personality), f'gc "{self.gc}"')
        return attributes


def set_gc(function: ir.Function, strategy: str = "statepoint-example") -> None:
    """Mark a function as one whose frames a collector walks; REFERENCE is what it looks for.

    A function with a shadow stack takes itself off it when an exception passes, unless it is
    "nounwind". It calls libgcc for that, which is loaded here, so that the engines of this process
    find it: MCJIT by itself, LLJIT in libraries with `add_current_process()`.

    Raises JITListenerError for a strategy that llvmlite cannot generate code for, and for a shadow
    stack where libgcc cannot be loaded.
    """
    if strategy not in STRATEGIES:
        raise JITListenerError(
            f"llvmlite cannot generate code for the garbage collection strategy {strategy!r}; it"
            f" can for {', '.join(STRATEGIES)}"
        )
    if strategy == "shadow-stack":
        _load_unwinder()
    _attributes(function).gc = strategy


def _load_unwinder() -> None:
    """Have engines find `_Unwind_Resume` and `__gcc_personality_v0`: without, MCJIT ends the
    process. libgcc is loaded for the C++ of LLVM already, but where engines do not look."""
    try:
        llvm.load_library_permanently(UNWINDER)
    except RuntimeError as error:
        raise JITListenerError(
            f"a shadow stack is unwound by {UNWINDER}, which cannot be loaded: {error}; install"
            " libgcc"
        ) from error


def set_leaf(function: ir.Function) -> None:
    """Say that a function never collects and calls none that does: its calls are no safepoints."""
    _attributes(function).leaf = True


def _attributes(function: ir.Function) -> _Attributes:
    old = function.attributes
    if not isinstance(old, _Attributes):
        function.attributes = new = _Attributes(old)
        new.alignstack, new.personality = old.alignstack, old.personality
    attributes: _Attributes = function.attributes
    return attributes


class _Call(ir.Instruction):  # type: ignore[misc]
    """A call of an intrinsic, as LLVM reads it. Its declaration LLVM adds itself."""

    def __init__(
        self, block: ir.Block, type_: ir.Type, callee: str, arguments: Sequence[str], rest: str = ""
    ) -> None:
        super().__init__(block, type_, "call", [])
        self._text = f"{callee}({', '.join(arguments)}){rest}"

    def descr(self, buf: list[str]) -> None:
        buf.append(f"call {self._text}{self._stringify_metadata(leading_comma=True)}\n")


def _insert(builder: ir.IRBuilder, *call: Any) -> _Call:
    instruction = _Call(builder.block, *call)
    builder._insert(instruction)
    return instruction


def _typed(value: ir.Value) -> str:
    return f"{value.type} {value.get_reference()}"


def _passed(function: ir.Value, arguments: Sequence[ir.Value]) -> Iterator[str]:
    """The arguments, with the attributes of parameters that say how to pass them."""
    parameters = function.args if isinstance(function, ir.Function) else ()
    for value, parameter in zip_longest(arguments, parameters):
        attributes = parameter.attributes if parameter else set()
        if refused := NOT_PASSED.intersection(attributes):
            raise JITListenerError(
                f"a statepoint cannot pass an argument of {function.get_reference()} by"
                f" {min(refused)}; pass a pointer"
            )
        extended = "".join(f"{name} " for name in EXTENSIONS if name in attributes)
        yield f"{value.type} {extended}{value.get_reference()}"


class StatepointCall:
    """A call that is a safepoint, with what is to be used after it."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        function: ir.Value,
        arguments: Sequence[ir.Value],
        live: Sequence[ir.Value],
        deopt: Sequence[ir.Value],
        id: int,
        patch_bytes: int,
    ) -> None:
        self._builder = builder
        self._returns = function.function_type.return_type
        convention = getattr(function, "calling_convention", "")
        self._live = {value.get_reference(): at for at, value in enumerate(live)}
        bundles = [
            f'"{name}"({", ".join(map(_typed, values))})'
            for name, values in (("deopt", deopt), ("gc-live", live))
            if values
        ]
        self.token = _insert(
            builder,
            _Token(),
            f"{convention} token (i64, i32, ptr, i32, i32, ...)"
            " @llvm.experimental.gc.statepoint.p0",
            [
                f"i64 {id}",
                f"i32 {patch_bytes}",
                f"ptr elementtype({function.function_type}) {function.get_reference()}",
                f"i32 {len(arguments)}",
                "i32 0",
                *_passed(function, arguments),
                "i32 0",
                "i32 0",
            ],
            f" [ {', '.join(bundles)} ]" if bundles else "",
        )

    def result(self) -> ir.Value:
        """Build the value that the callee has returned."""
        if isinstance(self._returns, ir.VoidType):
            raise JITListenerError("the callee of this statepoint returns nothing")
        return _insert(
            self._builder,
            self._returns,
            f"{self._returns} @llvm.experimental.gc.result",
            [_typed(self.token)],
        )

    def relocate(self, value: ir.Value, base: ir.Value | None = None) -> ir.Value:
        """Build what `value` is after the call; for one that points into an object, with its base.

        Raises JITListenerError unless both are among the live ones, and references.
        """
        indices = []
        for live in (base or value, value):
            if live.type != REFERENCE or live.get_reference() not in self._live:
                raise JITListenerError(
                    f"{live.get_reference()} is not among the references that are live across"
                    " this statepoint"
                )
            indices.append(f"i32 {self._live[live.get_reference()]}")
        return _insert(
            self._builder,
            REFERENCE,
            f"{REFERENCE} @llvm.experimental.gc.relocate.p1",
            [_typed(self.token), *indices],
        )


def statepoint(
    builder: ir.IRBuilder,
    function: ir.Value,
    arguments: Sequence[ir.Value] = (),
    *,
    live: Sequence[ir.Value] = (),
    deopt: Sequence[ir.Value] = (),
    id: int = DEFAULT_ID,
    patch_bytes: int = 0,
) -> StatepointCall:
    """Build a call of `function` at which a collector can run.

    `live` are references (REFERENCE), which the collector may move: after the call use what
    `relocate` gives. Or they are allocas that hold one. `deopt` are values for the record that the
    callee may want to know. With `patch_bytes` there is no call but so many bytes of no-ops.

    Raises JITListenerError where LLVM would end the process: if the function that is built has no
    strategy with statepoints, if a live value is no reference, the arguments do not fit, or
    `patch_bytes` is no multiple of 4 on AArch64.
    """
    caller = builder.function
    if getattr(caller.attributes, "gc", "") not in WITH_STATEPOINTS:
        raise JITListenerError(
            f"function {caller.name!r} has no garbage collection strategy with statepoints; call"
            " set_gc(function) first"
        )
    parameters = function.function_type.args
    if [value.type for value in arguments] != list(parameters) or function.function_type.var_arg:
        raise JITListenerError(
            f"a statepoint in function {caller.name!r}: {function.get_reference()} takes"
            f" ({', '.join(map(str, parameters))}) and no variable arguments"
        )
    for value in live:
        alloca = isinstance(value, ir.AllocaInstr) and value.allocated_type == REFERENCE
        if value.type != REFERENCE and not alloca:
            raise JITListenerError(
                f"a statepoint in function {caller.name!r}: {_typed(value)} is no reference"
                f" ({REFERENCE}) and no alloca of one"
            )
    if _registers(function.function_type.return_type) > MOST_RETURNED:
        raise JITListenerError(
            f"a statepoint in function {caller.name!r}: {function.get_reference()} returns more"
            f" than {MOST_RETURNED} registers hold; let it write to memory that the caller gives"
        )
    for value in (*arguments, *deopt):
        vector = isinstance(value.type, ir.VectorType) and value in deopt
        pointers = vector and isinstance(value.type.element, ir.PointerType)
        if pointers or not _registers(value.type):
            raise JITListenerError(
                f"a statepoint in function {caller.name!r} cannot take {_typed(value)}, which is no"
                " value that LLVM can record"
            )
    _check_id(id)
    _check_bytes(builder, patch_bytes)
    return StatepointCall(builder, function, arguments, live, deopt, id, patch_bytes)


def shadow_root(builder: ir.IRBuilder, slot: ir.AllocaInstr, metadata: int = 0) -> None:
    """Make an alloca of a pointer a root on the shadow stack (`walk_shadow_stack`), null at first.

    `metadata` is for the collector: the address of a type's description, for instance.

    Raises JITListenerError if the function's strategy is another, or if `slot` is not an alloca of
    a pointer in its entry block.
    """
    function = builder.function
    if getattr(function.attributes, "gc", "") != "shadow-stack":
        raise JITListenerError(
            f"function {function.name!r} has no shadow stack; call set_gc(function, 'shadow-stack')"
        )
    alloca = isinstance(slot, ir.AllocaInstr) and isinstance(slot.allocated_type, ir.PointerType)
    if not alloca or slot.parent is not function.entry_basic_block:
        raise JITListenerError(
            f"function {function.name!r}: {slot.get_reference()} is no alloca of a pointer in its"
            " entry block"
        )
    module = function.module
    if CHAIN not in module.globals:  # LLVM would define it too late for LLJIT
        chain = ir.GlobalVariable(module, ir.PointerType(), CHAIN)
        chain.linkage, chain.initializer = "weak", ir.Constant(ir.PointerType(), None)
    about = f"inttoptr (i64 {metadata} to ptr)" if metadata else "null"
    with builder.goto_entry_block():
        builder.position_after(slot)
        _insert(builder, ir.VoidType(), "void @llvm.gcroot", [_typed(slot), f"ptr {about}"])


def stackmap(
    builder: ir.IRBuilder, id: int, live: Sequence[ir.Value] = (), shadow_bytes: int = 0
) -> ir.Instruction:
    """Build a stackmap: the record of this point says where the live values are.

    The next `shadow_bytes` bytes of code can be overwritten. Raises JITListenerError for a value
    that LLVM cannot record, and a number of bytes that it cannot reserve: on AArch64 they are
    multiples of 4.
    """
    _check_id(id)
    _check_bytes(builder, shadow_bytes)
    _check_values(live)
    return _insert(
        builder,
        ir.VoidType(),
        "void (i64, i32, ...) @llvm.experimental.stackmap",
        [f"i64 {id}", f"i32 {shadow_bytes}", *map(_typed, live)],
    )


def patchpoint(
    builder: ir.IRBuilder,
    id: int,
    size: int = 16,
    target: ir.Value | None = None,
    arguments: Sequence[ir.Value] = (),
    *,
    live: Sequence[ir.Value] = (),
    returns: ir.Type | None = None,
) -> ir.Instruction:
    """Build a patchpoint: `size` bytes of code that call `target` with the arguments, or nothing.

    The target is a function, or a constant address: `ir.Constant(i64, address).inttoptr(pointer)`;
    on AArch64 it is an address of 48 bits. Without one the code is no-ops, and what it `returns` is
    undefined: `Patchpoints` makes calls of them, and jumps.

    Code generation then leaves out the registers that are live after a patchpoint, in all modules
    of this process: with them LLVM 22 ends the process where floating-point code or a call follows.

    Raises JITListenerError if `size` is too small for the call (13 bytes, on AArch64 16), if it is
    no multiple of 4 on AArch64, or for a value that LLVM cannot take.
    """
    _check_id(id)
    _check_bytes(builder, size)
    smallest = SMALLEST_AARCH64_CALL if _is_aarch64(builder) else SMALLEST_CALL
    if target is not None and size < smallest:
        raise JITListenerError(
            f"patchpoint {id} of {size} bytes: LLVM needs {smallest} to call a target"
        )
    if target is not None:
        _check_target(builder, target)
    returned = ir.VoidType() if returns is None else returns
    if returns is not None and not _is_simple(returned):
        raise JITListenerError(f"patchpoint {id} returns {returned}: {_SIMPLE}")
    _check_values((*arguments, *live))
    _leave_out_live_registers()
    kind = "void" if returns is None else returned.intrinsic_name
    return _insert(
        builder,
        returned,
        f"{returned} (i64, i32, ptr, i32, ...) @llvm.experimental.patchpoint.{kind}",
        [
            f"i64 {id}",
            f"i32 {size}",
            "ptr null" if target is None else _typed(target),
            f"i32 {len(arguments)}",
            *map(_typed, (*arguments, *live)),
        ],
    )


def _check_target(builder: ir.IRBuilder, target: ir.Value) -> None:
    address = _ADDRESS.fullmatch(target.get_reference())
    number = int(address[1] or 0) if address else None
    if _is_aarch64(builder):
        fits, what = number is not None and 0 <= number < 1 << 48, "a constant address of 48 bits"
    else:
        fits = number is not None or isinstance(target, ir.GlobalValue)
        what = "a function, or a constant address"
    if not fits:
        raise JITListenerError(
            f"a patchpoint cannot call {target.get_reference()}: give {what},"
            " ir.Constant(i64, address).inttoptr(pointer)"
        )


def _is_simple(type_: ir.Type) -> bool:
    simple = isinstance(type_, ir.PointerType | ir.FloatType | ir.DoubleType)
    return simple or (isinstance(type_, ir.IntType) and type_.width <= 64)


def _registers(type_: ir.Type) -> int:
    """At most how many registers a returned value takes."""
    if isinstance(type_, ir.VoidType):
        return 0
    if isinstance(type_, ir.IntType):
        return -(-int(type_.width) // 64)
    if isinstance(type_, ir.VectorType | ir.ArrayType):
        return int(type_.count) * _registers(type_.element)
    if isinstance(type_, ir.LiteralStructType | ir.IdentifiedStructType):
        return sum(map(_registers, type_.elements))
    return 1


def _check_values(values: Sequence[ir.Value]) -> None:
    for value in values:
        if not _is_simple(value.type):
            raise JITListenerError(f"{_typed(value)} cannot be recorded: {_SIMPLE}")


def _leave_out_live_registers() -> None:
    llvm.set_option("", "-enable-patchpoint-liveness=false")


def _check_id(id: int) -> None:
    if not 0 <= id < 2**64:
        raise JITListenerError(f"the id {id} is no number of 64 bits without a sign")


def _check_bytes(builder: ir.IRBuilder, size: int) -> None:
    if not 0 <= size < 2**31:
        raise JITListenerError(f"{size} is no number of bytes that LLVM can reserve")
    if size % AARCH64_INSTRUCTION and _is_aarch64(builder):
        raise JITListenerError(
            f"{size} bytes in function {builder.function.name!r}: on AArch64 LLVM reserves"
            f" multiples of {AARCH64_INSTRUCTION}"
        )


def _is_aarch64(builder: ir.IRBuilder) -> bool:
    """A module that does not say what it is for is for this machine."""
    triple: str = builder.module.triple
    if triple.startswith("unknown"):
        triple = llvm.get_default_triple()
    return triple.startswith(("aarch64", "arm64"))
