"""Which references the record of each call has to name, in a function as a front end has left it.

What no record could name is refused, because a collector would not find it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .ircall import Call, unquoted
from .irtext import NULL, REFERENCE, Instruction, IRFunction
from .liveness import Bases, Liveness, check_stored

__all__ = ["LOCAL", "FunctionRoots", "SafepointCall"]

LOCAL = re.compile(r"%[-\w.$]+")
"""A local value, or something else with a % in front."""
_MUSTTAIL = re.compile(r" *(?:%[-\w.$]+ = )?musttail ")
_LEAF = '"gc-leaf-function"'
_NOT_HERE = "@llvm.experimental.deoptimize", "@llvm.experimental.gc.", "@llvm.experimental.guard"
_STRUCT = re.compile(r'%(?:"([^"]*)"|([-\w.$]+))')
_COPIED = re.compile(r"\b(byval|inalloca|preallocated)\((?:[^()]|\([^()]*\))*\)")
_POINTERS = {
    "getelementptr": slice(1),
    "phi": slice(None),
    "select": slice(1, 3),
    "freeze": slice(1),
    "addrspacecast": slice(1),
}
"""Instructions that give a pointer into what their operands point to, and which of them."""
_UNNAMED = (
    "no record can name the references in this memory: give each one an alloca of its own in the"
    " entry block"
)


class SafepointCall(NamedTuple):
    call: Call
    roots: list[str]
    """What the statepoint relocates: references that are live after it, and their bases."""


class FunctionRoots:
    """The roots of a function's safepoints.

    The function is changed in this: its allocas of references are null at first, and live to its
    end. Raises JITListenerError for references that no record can name.
    """

    def __init__(self, function: IRFunction) -> None:
        self._function = function
        self.slots: list[str] = []
        """Allocas that hold a reference: roots of every safepoint."""
        self.safepoints: dict[Instruction, SafepointCall] = {}
        self.pads: dict[str, list[str]] = {}
        """By landing pad, the references that come to it, and their bases."""
        self._find_slots()
        self.bases = Bases(function)
        check_stored(function, self.bases)
        self._find_safepoints()

    def _find_slots(self) -> None:
        """Find the allocas that hold a reference; make them null at first, and live throughout."""
        function = self._function
        entry = next(iter(function.blocks))
        for block in function.blocks.values():
            for instruction in block.instructions:
                if instruction.opcode != "alloca":
                    continue
                type_ = instruction.text.partition(" = alloca ")[2].partition(", align")[0]
                if type_ == REFERENCE and block.name == entry:
                    self.slots.append(instruction.name)
                    instruction.text += f"\n  store {REFERENCE} null, ptr {instruction.name}"
                elif self._holds_references(type_):
                    function.fail(instruction, _UNNAMED)
        for passed in _COPIED.finditer(function.header):
            if self._holds_references(passed[0]):
                function.fail(None, f"references in an argument by {passed[1]}: {_UNNAMED}")
        for block in function.blocks.values():
            block.instructions = [i for i in block.instructions if not self._is_lifetime(i)]
        self._check_memory()

    def _holds_references(self, type_: str) -> bool:
        structs = (quoted or plain for quoted, plain in _STRUCT.findall(type_))
        return REFERENCE in type_ or not self._function.context.reference_structs.isdisjoint(
            structs
        )

    def _check_memory(self) -> None:
        """Raise JITListenerError for a reference in an alloca of something else."""
        types = self._function.types
        instructions = [i for b in self._function.blocks.values() for i in b.instructions]
        definitions = {i.name: i for i in instructions if i.name}
        for instruction in instructions:
            if instruction.opcode == "store" and instruction.operands[0] in types:
                pointer = instruction.operands[1]
            elif instruction.opcode == "load" and instruction.name in types:
                pointer = instruction.operands[0]
            else:
                continue
            waiting, seen = [pointer], set[str]()
            while waiting:
                pointer = waiting.pop()
                found = definitions.get(pointer)
                if found is None or pointer in seen or pointer in types:  # a reference: the heap
                    continue
                seen.add(pointer)
                waiting += found.operands[_POINTERS.get(found.opcode, slice(0))]
                if found.opcode == "alloca" and found.name not in self.slots:
                    self._function.fail(instruction, _UNNAMED)

    def _is_lifetime(self, instruction: Instruction) -> bool:
        """Whether it lets LLVM use a slot's memory for something else in between."""
        operands = instruction.operands
        return (
            instruction.opcode == "call"
            and operands[-1].startswith("@llvm.lifetime.")
            and any(slot in operands for slot in self.slots)
        )

    def _is_safepoint(self, instruction: Instruction) -> bool:
        if instruction.opcode not in ("call", "invoke"):
            return False
        callee = instruction.operands[-1]
        if callee.startswith("@llvm."):
            if callee.startswith(_NOT_HERE):
                self._function.fail(instruction, "no statepoints can be placed around this")
            return False
        if callee == "asm" or _MUSTTAIL.match(instruction.text):
            return False
        if instruction.opcode != "call":
            return True  # a leaf's, too, for which it is harmless
        return _LEAF not in self._function.attributes(instruction)

    def _find_safepoints(self) -> None:
        function = self._function
        liveness = Liveness(function)
        pads: dict[str, None] = {}
        for block in function.blocks.values():
            for instruction, live in liveness.after(block, self._is_safepoint).items():
                call = function.call(instruction)
                for value in instruction.operands[: len(call.arguments)]:
                    if value in function.types and not self.bases.is_base(value):
                        function.fail(
                            instruction,
                            f"{value} points into an object; a callee that collects would not know"
                            ' the object: pass that, or mark the callee "gc-leaf-function"',
                        )
                if mixed := live & function.aggregates:
                    function.fail(
                        instruction,
                        f"{min(mixed)} holds references among other data and is live across this"
                        " call: extract them where it is made",
                    )
                if instruction.opcode == "invoke":
                    normal, pad = block.successors
                    if not any(i.opcode == "landingpad" for i in function.blocks[pad].instructions):
                        function.fail(instruction, "it does not unwind to a landing pad")
                    live &= liveness.on_edge(block.name, normal)
                    pads[pad] = None
                live.update(function.types.keys() & set(LOCAL.findall(unquoted(call.deopt))))
                self.safepoints[instruction] = SafepointCall(call, self._with_bases(live))
        for pad in pads:
            phis = {phi.name for phi in function.blocks[pad].phis} & function.types.keys()
            self.pads[pad] = values = self._with_bases(liveness.at_begin(pad) | phis)
            for value in values:
                if function.types[value] != REFERENCE:
                    function.fail(
                        None,
                        f"{value}, a vector of references, is used by a landing pad: extract them",
                    )

    def _with_bases(self, references: set[str]) -> list[str]:
        """Those that point to objects, and their bases, in an order that is always the same."""
        based = {name: self.bases.base(name) for name in references}
        return sorted({n for pair in based.items() if pair[1] != NULL for n in pair})
