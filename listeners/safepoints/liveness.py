"""Which references are live across a call of an IR function, and to which object each points.

A collector moves objects, so it has to know each derived pointer (one into an object) together with
its base (one to the object). The base of a value is itself where it is an argument, or was loaded
or returned: a reference that is stored or handed over is a base. What pointer arithmetic makes of a
value has that one's base. Where values meet, in a phi or select, their bases may be several, and
then meet in a phi or select of their own, which is added to the function.
"""

from __future__ import annotations

from collections.abc import Callable

from .irtext import CONSTANT, NULL, REFERENCE, Block, Instruction, IRFunction

__all__ = ["Bases", "Liveness", "check_stored"]

_MERGES = {
    "phi": slice(None),
    "select": slice(1, 3),
    "freeze": slice(1),
    "insertelement": slice(2),
    "shufflevector": slice(2),
    "extractelement": slice(1),
}
"""Instructions that give references as they got them, and which of their operands these are."""
_STORED = {"store": 0, "atomicrmw": 1, "cmpxchg": 2, "ret": 0, "insertvalue": 1}
"""The operand that a reader elsewhere takes for a base, by opcode."""


class Liveness:
    """Which values that are or hold references are live where."""

    def __init__(self, function: IRFunction) -> None:
        self._tracked = function.types.keys() | function.aggregates
        self._blocks = function.blocks
        self._edges: dict[tuple[str, str], set[str]] = {}
        """What a block's phis use of another one."""
        self._in: dict[str, set[str]] = {name: set() for name in function.blocks}
        predecessors: dict[str, list[str]] = {name: [] for name in function.blocks}
        for name, block in function.blocks.items():
            for successor in block.successors:
                predecessors[successor].append(name)
            for phi in block.phis:
                for value, origin in zip(phi.operands, phi.incoming, strict=True):
                    if value in self._tracked:
                        self._edges.setdefault((origin, name), set()).add(value)
        waiting = dict.fromkeys(reversed(function.blocks))
        while waiting:
            name, _ = waiting.popitem()
            live = self.at_end(name)
            block = function.blocks[name]
            for instruction in reversed(block.instructions):
                self._step(instruction, live)
            if live != self._in[name]:
                self._in[name] = live
                waiting.update(dict.fromkeys(predecessors[name]))

    def on_edge(self, block: str, successor: str) -> set[str]:
        """What is live when control goes from `block` to `successor`."""
        return self._in[successor] | self._edges.get((block, successor), set())

    def at_begin(self, block: str) -> set[str]:
        """What is live where a block begins, its phis left out."""
        return self._in[block]

    def at_end(self, block: str) -> set[str]:
        live: set[str] = set()
        for successor in self._blocks[block].successors:
            live |= self.on_edge(block, successor)
        return live

    def after(
        self, block: Block, chosen: Callable[[Instruction], bool]
    ) -> dict[Instruction, set[str]]:
        """What is live after each chosen instruction of a block, its own result left out."""
        found = {}
        live = self.at_end(block.name)
        for instruction in reversed(block.instructions):
            if chosen(instruction):
                found[instruction] = live - {instruction.name}
            self._step(instruction, live)
        return found

    def _step(self, instruction: Instruction, live: set[str]) -> None:
        live.discard(instruction.name)
        if instruction.opcode != "phi":
            live.update(self._tracked.intersection(instruction.operands))


class Bases:
    """The base of each reference of a function."""

    def __init__(self, function: IRFunction) -> None:
        self._function = function
        self._definitions = {
            i.name: i for block in function.blocks.values() for i in block.instructions if i.name
        }
        self._own: set[str]
        self._find_own()
        self._merged: dict[str, str | None]
        self._find_merged()

    def is_base(self, value: str) -> bool:
        """Whether a reference's base is that reference itself; True for null."""
        if value in (NULL, CONSTANT):
            return value == NULL
        definition = self._definitions.get(value)
        if definition is None or definition.opcode not in (*_MERGES, "getelementptr"):
            return True
        return value in self._own

    def base(self, value: str) -> str:
        """The base of a reference: null where it is no object's."""
        return self._look(value) or NULL

    def _find_own(self) -> None:
        """Of the values where others meet: those all of whose inputs are bases."""
        types = self._function.types
        self._own = {
            name for name, i in self._definitions.items() if name in types and i.opcode in _MERGES
        }
        while spoilt := {
            name
            for name in self._own
            if not all(map(self.is_base, _merged(self._definitions[name])))
        }:
            self._own -= spoilt

    def _find_merged(self) -> None:
        """The bases of the phis and selects that are none: one they share, or one of their own."""
        derived = [
            name
            for name, i in self._definitions.items()
            if i.opcode in ("phi", "select")
            and self._function.types.get(name) == REFERENCE
            and name not in self._own
        ]
        own: dict[str, str | None] = {}
        while True:
            # What is not known yet, in a loop, is what the loop begins with.
            self._merged = {**dict.fromkeys(derived), **own}
            changed = True
            mixed = None
            while changed and not mixed:
                changed = False
                for name in derived:
                    if name in own:
                        continue
                    bases = {self._look(o) for o in _merged(self._definitions[name])}
                    bases.discard(None)
                    if len(bases) > 1:
                        mixed = name
                        break
                    if bases and self._merged[name] not in bases:
                        (self._merged[name],) = bases
                        changed = True
            if mixed is None:
                break
            own[mixed] = f"%{self._function.new_name()}"
        for name, base in own.items():
            assert base
            self._add_merge(self._definitions[name], base)

    def _look(self, value: str) -> str | None:
        while not self.is_base(value):
            if value == CONSTANT:
                return NULL
            if value in self._merged:
                return self._merged[value]
            definition = self._definitions[value]
            if self._function.types[value] != REFERENCE or definition.opcode == "extractelement":
                self._function.fail(
                    definition,
                    "the base of a vector of derived pointers is not known; optimise without"
                    " vectorisation: slp_vectorization and loop_vectorization of"
                    " create_pipeline_tuning_options()",
                )
            value = definition.operands[0]  # a freeze's, or that of pointer arithmetic
        return value

    def _add_merge(self, merge: Instruction, name: str) -> None:
        """Add the phi or select of the bases to that of the values."""
        blocks = self._function.blocks.values()
        block = next(block for block in blocks if merge in block.instructions)
        bases = [self.base(o) for o in _merged(merge)]
        if merge.opcode == "phi":
            parts = zip(bases, merge.incoming, strict=True)
            what = f"phi {REFERENCE} " + ", ".join(f"[ {b}, %{origin} ]" for b, origin in parts)
            operands = bases
        else:
            condition = merge.text.partition(" = select ")[2].split(f", {REFERENCE} ")[0]
            what = f"select {condition}, {REFERENCE} {bases[0]}, {REFERENCE} {bases[1]}"
            operands = [merge.operands[0], *bases]
        added = Instruction(merge.opcode, name, operands, f"  {name} = {what}", merge.incoming)
        block.instructions.insert(block.instructions.index(merge), added)
        self._function.types[name] = REFERENCE
        self._definitions[name] = added
        self._own.add(name)


def _merged(instruction: Instruction) -> list[str]:
    return instruction.operands[_MERGES[instruction.opcode]]


def check_stored(function: IRFunction, bases: Bases) -> None:
    """Raise JITListenerError if a derived pointer goes where a base is expected."""
    for block in function.blocks.values():
        for instruction in block.instructions:
            at = _STORED.get(instruction.opcode)
            if at is None or len(instruction.operands) <= at:
                continue
            value = instruction.operands[at]
            if value in function.types and not bases.is_base(value):
                function.fail(
                    instruction,
                    f"{value} points into an object; only a reference to its begin may be"
                    " stored or returned, or a collector would not know the object",
                )
