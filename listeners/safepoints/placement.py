"""Statepoints for compiled functions: what a front end runs between optimising and code generation.

LLVM has a pass for this, RewriteStatepointsForGC, which llvmlite cannot reach. A front end writes
plain IR: calls, and references as values of type `ptr addrspace(1)`, in functions with a strategy
(`set_gc`). It optimises that as far as it likes, and then

    module = place_statepoints(module)

makes each call a statepoint whose record names the references that are live across it, and what is
used after the call is what the collector has left there.
"""

from __future__ import annotations

import re

import llvmlite.binding as llvm

from ..errors import JITListenerError
from .emit import DEFAULT_ID
from .ircall import substituted
from .irtext import CONSTANT, REFERENCE, Block, Instruction, IRFunction, parts
from .roots import LOCAL, FunctionRoots

__all__ = ["place_statepoints"]

_METADATA = re.compile(
    r", !(?:dereferenceable|dereferenceable_or_null|invariant\.group|invariant\.load|noalias|tbaa)"
    r" !\d+"
)
"""What allows a load to be moved across a call, and so across a collection."""
_PARAMETER = re.compile(
    r" (?:noalias|nofree|readnone|readonly|writeonly|dereferenceable(?:_or_null)?\(\d+\))(?=[ ,)])"
)
_ID = re.compile(r'"statepoint-id"="(\d+)"')


def place_statepoints(module: llvm.ModuleRef) -> llvm.ModuleRef:
    """A copy of `module` in which the calls of functions with a collector are statepoints.

    These are the functions that are marked `gc "statepoint-example"` or `gc "coreclr"`; others are
    left as they are. In them every call is a safepoint but those of intrinsics, of inline assembly
    and of functions with the attribute "gc-leaf-function" (`set_leaf`), and those marked musttail,
    whose caller's frame is gone. The callee is responsible for the references it is given.
    References are of type `ptr addrspace(1)`. The record of a safepoint names those that are live
    after it, each with its base, and the allocas of one reference that are left: these are roots
    from the entry on, null at first. Its id is that of LLVM, 0xABCDEF00, or the call's attribute
    "statepoint-id".

    Optimise before, not after: passes that know nothing of roots drop them from the records. With
    "-ni:1" (non-integral) at the end of the data layout they make no numbers of references, which
    nobody would find; it is taken out here, since no engine has it.

    Raises JITListenerError if the module is not a parsed one or not valid, if a function has
    statepoints already or a strategy without them, or if a reference is where no record can name
    it: in an alloca of other data, in a struct that is live across a call, behind a pointer into an
    object that is stored.
    """
    if not isinstance(module, llvm.ModuleRef):
        raise JITListenerError(
            f"place_statepoints takes a parsed module, no {type(module).__name__}: give it"
            " llvm.parse_assembly(str(module))"
        )
    copy = module.clone()
    try:
        copy.verify()
    except RuntimeError as error:
        raise JITListenerError(f"module {module.name!r} is not valid: {error}") from error
    found = parts(copy)
    functions = [part for part in found if isinstance(part, IRFunction)]
    for function in functions:
        _Placement(function).run()
    placed = _parsed("".join(map(str, found)), module)
    machine = llvm.Target.from_default_triple().create_target_machine()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options())
    for function in functions:
        manager = llvm.create_new_function_pass_manager()
        manager.add_sroa_pass()  # makes values of what has been a variable here
        manager.add_dead_code_elimination_pass()  # LLVM ends the process over unused relocates
        manager.run(placed.get_function(function.name), passes)
    # No engine has that, and to code generation it makes no difference.
    placed.data_layout = re.sub(r"(?:^|-)ni:[\d:]+", "", placed.data_layout)
    return placed


def _parsed(text: str, module: llvm.ModuleRef) -> llvm.ModuleRef:
    try:
        placed = llvm.parse_assembly(text, module._context)
        placed.verify()
    except RuntimeError as error:
        raise JITListenerError(
            f"module {module.name!r}: LLVM does not take the statepoints: {error}"
        ) from error
    placed.name = module.name
    return placed


class _Placement:
    """Places the statepoints of one function.

    References that are live across a safepoint become variables: stored where they are defined,
    loaded where they are used, stored anew after the statepoint. SROA makes values of them again.

    A statepoint that unwinds has no results. So what a landing pad uses comes to it in memory, in
    slots that are roots themselves.
    """

    def __init__(self, function: IRFunction) -> None:
        self._function = function
        self._roots = roots = FunctionRoots(function)
        self._variables: dict[str, str] = {}
        """Where the references that statepoints relocate are kept."""
        self._pads: dict[str, dict[str, tuple[str, str]]] = {}
        """By landing pad and value: the slot of its base, the place of its distance from that."""
        self._edges: dict[tuple[str, str, str], str] = {}
        """What phis use in the place of a variable, by block that it comes from, phi's block, and
        variable."""
        self._origins: dict[tuple[str, str], str] = {}
        """The blocks that are now between a block and the one that follows."""
        self._allocas: list[str] = []
        for safepoint in roots.safepoints.values():
            self._make_variables(safepoint.roots)
        for pad, values in roots.pads.items():
            self._make_variables(values)
            self._pads[pad] = {
                value: (
                    self._alloca(REFERENCE),
                    "" if roots.bases.is_base(value) else self._alloca("i64"),
                )
                for value in values
            }

    def run(self) -> None:
        function = self._function
        if not self._roots.safepoints:
            return
        function.header = substituted(_PARAMETER, lambda _: "", function.header)
        function.unwind()
        bodies = {block: self._body(block) for block in function.blocks.values()}
        for block, body in bodies.items():
            in_memory = self._pads.get(block.name, {})
            phis = [self._phi(block, phi) for phi in block.phis if phi.name not in in_memory]
            block.lines = [*phis, *body]
        first = next(iter(function.blocks.values()))
        lines = list(self._allocas)
        for name in function.arguments:
            self._store(name, name, lines)
        first.lines[:0] = lines

    def _make_variables(self, references: list[str]) -> None:
        for name in references:
            if name not in self._variables:
                self._variables[name] = self._alloca(self._function.types[name])

    # Instructions

    def _new(self) -> str:
        return f"%{self._function.new_name()}"

    def _alloca(self, type_: str) -> str:
        place = self._new()
        self._allocas.append(f"  {place} = alloca {type_}")
        return place

    def _store(self, name: str, value: str, lines: list[str]) -> None:
        """Store `value` in the variable of `name`, if it has one."""
        if place := self._variables.get(name):
            lines.append(f"  store {self._function.types[name]} {value}, ptr {place}")

    def _load(self, name: str, lines: list[str]) -> str:
        """What stands for the reference `name` here."""
        if name not in self._variables:
            return name
        value = self._new()
        place = self._variables[name]
        lines.append(f"  {value} = load {self._function.types[name]}, ptr {place}")
        return value

    def _replaced(self, instruction: Instruction, text: str, lines: list[str]) -> str:
        """`text` with what stands for the instruction's operands here, loaded before."""
        used = self._variables.keys() & set(instruction.operands)
        values = {name: self._load(name, lines) for name in sorted(used)}
        if not used:
            return text
        return substituted(LOCAL, lambda name: values.get(name[0], name[0]), text)

    def _phi(self, block: Block, phi: Instruction) -> str:
        values, origins = [], []
        for value, origin in zip(phi.incoming_values(), phi.incoming, strict=True):
            values.append(self._edges.get((origin, block.name, value), value))
            origins.append(self._origins.get((origin, block.name), origin))
        return phi.records + phi.with_incoming(values, origins)

    def _body(self, block: Block) -> list[str]:
        """The lines of a block but for its phis."""
        lines: list[str] = []
        instructions = [i for i in block.instructions if i.opcode != "phi"]
        if instructions[0].opcode == "landingpad":
            pad = instructions.pop(0)
            lines.append(pad.records + pad.text)
        self._enter_pad(block, lines)
        for phi in block.phis:
            if phi.name not in self._pads.get(block.name, {}):
                self._store(phi.name, phi.name, lines)
        *others, terminator = instructions
        for instruction in others:
            self._instruction(instruction, lines)
        if terminator.opcode == "invoke":
            self._leave_for_pad(block, block.successors[1], lines)
        if terminator in self._roots.safepoints:
            normal = block.successors[0]
            between = self._function.new_name()
            self._origins[block.name, normal] = between
            after = self._statepoint(terminator, lines, block.successors[1], between)
            lines += f"{between}:", *after
            self._leave(block, normal, lines)
            lines.append(f"  br label %{normal}")
        else:
            for successor in dict.fromkeys(block.successors):
                if successor not in self._pads:
                    self._leave(block, successor, lines)
            self._instruction(terminator, lines)
        return lines

    def _instruction(self, instruction: Instruction, lines: list[str]) -> None:
        if instruction in self._roots.safepoints:
            lines += self._statepoint(instruction, lines)
            return
        text = self._replaced(
            instruction, substituted(_METADATA, lambda _: "", instruction.text), lines
        )
        lines.append(instruction.records + text)
        self._store(instruction.name, instruction.name, lines)

    def _leave(self, block: Block, successor: str, lines: list[str]) -> None:
        """Load what the phis of `successor` take from this block."""
        for phi in self._function.blocks[successor].phis:
            value = phi.operands[phi.incoming.index(block.name)]
            edge = block.name, successor, value
            if value in self._variables and edge not in self._edges:
                self._edges[edge] = self._load(value, lines)

    def _statepoint(
        self, instruction: Instruction, lines: list[str], pad: str = "", normal: str = ""
    ) -> list[str]:
        """Add the statepoint to `lines`; what comes after it."""
        call, roots = self._roots.safepoints[instruction]
        token = self._new()
        live = [f"{self._function.types[name]} {self._load(name, lines)}" for name in roots]
        live += (f"ptr {slot}" for slot in self._roots.slots)
        live += (f"ptr {slot}" for slot, _ in self._pads.get(pad, {}).values())
        given = _ID.search(self._function.attributes(instruction))
        identity = int(given[1]) if given else DEFAULT_ID
        if identity >= 2**64:
            self._function.fail(instruction, f"the id {identity} has more than 64 bits")
        arguments = [
            f"i64 {identity}",
            "i32 0",
            f"ptr elementtype({call.function_type}) {call.callee}",
            f"i32 {len(call.arguments)}",
            "i32 0",
            *call.arguments,
            "i32 0",
            "i32 0",
        ]
        head = (
            f"{instruction.opcode} {call.convention}token (i64, i32, ptr, i32, i32, ...)"
            f" @llvm.experimental.gc.statepoint.p0({', '.join(arguments)})"
        )
        head = self._replaced(instruction, head, lines)
        bundles = [self._replaced(instruction, call.deopt, lines)] if call.deopt else []
        if live:
            bundles.append(f'"gc-live"({", ".join(live)})')
        targets = f"\n          to label %{normal} unwind label %{pad}" if normal else ""
        lines.append(
            f"{instruction.records}  {token} = {head}"
            f"{' [ ' + ', '.join(bundles) + ' ]' if bundles else ''}{targets}{call.location}"
        )
        after: list[str] = []
        if name := instruction.name:
            after.append(
                f"  {name} = call {call.result} @llvm.experimental.gc.result(token {token})"
            )
            self._store(name, name, after)
        for at, name in enumerate(roots):
            base, moved = roots.index(self._roots.bases.base(name)), self._new()
            type_ = self._function.types[name]
            indices = f"token {token}, i32 {base}, i32 {at}"
            after.append(f"  {moved} = call {type_} @llvm.experimental.gc.relocate({indices})")
            self._store(name, moved, after)
        return after

    # What goes to a landing pad in memory

    def _leave_for_pad(self, block: Block, pad: str, lines: list[str]) -> None:
        if pad not in self._pads:
            self._leave(block, pad, lines)
            return
        phis = {phi.name: phi for phi in self._function.blocks[pad].phis}
        for name, (slot, place) in self._pads[pad].items():
            value = text = name
            if phi := phis.get(name):
                at = phi.incoming.index(block.name)
                value, text = phi.operands[at], phi.incoming_values()[at]
            base = self._load(self._roots.bases.base(value), lines)
            lines.append(f"  store {REFERENCE} {base}, ptr {slot}")
            if place:
                text = self._load(value, lines) if value != CONSTANT else text
                numbers = [self._new() for _ in range(3)]
                for number, pointer in zip(numbers, (text, base), strict=False):
                    lines.append(f"  {number} = ptrtoint {REFERENCE} {pointer} to i64")
                lines.append(f"  {numbers[2]} = sub i64 {numbers[0]}, {numbers[1]}")
                lines.append(f"  store i64 {numbers[2]}, ptr {place}")

    def _enter_pad(self, block: Block, lines: list[str]) -> None:
        phis = {phi.name for phi in block.phis}
        for name, (slot, place) in self._pads.get(block.name, {}).items():
            value = name if name in phis else self._new()
            base = self._new() if place else value
            lines.append(f"  {base} = load {REFERENCE}, ptr {slot}")
            if place:
                distance = self._new()
                lines.append(f"  {distance} = load i64, ptr {place}")
                element = f"i8, {REFERENCE} {base}, i64 {distance}"
                lines.append(f"  {value} = getelementptr {element}")
            self._store(name, value, lines)
