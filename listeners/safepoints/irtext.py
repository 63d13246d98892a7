"""A function of an LLVM module as text that can be rewritten, with what llvmlite knows of it.

llvmlite cannot build instructions in a parsed module, so what changes a compiled function edits the
text that LLVM prints, an instruction at a time. What an instruction is, its operands and its types
are asked of LLVM itself; the text is parsed only as far as it is rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple, NoReturn

from llvmlite.binding import ModuleRef
from llvmlite.binding.value import ValueKind

from ..errors import JITListenerError
from .emit import WITH_STATEPOINTS
from .ircall import Call, closing, read_call, type_name, unquoted

__all__ = ["NULL", "REFERENCE", "Block", "IRFunction", "Instruction", "parts"]

REFERENCE = "ptr addrspace(1)"
"""The type of references to collected objects, by LLVM's own strategies."""
NULL = "null"
"""The operand that is null, undef or poison."""
CONSTANT = "constant"
"""The operand that is any other constant."""
GENERATED = "gc."
"""What new names begin with."""

_VECTOR = re.compile(r"<\d+ x ptr addrspace\(1\)>")
_DEFINITION = re.compile(r"^define [^\n]*\{\n.*?^\}\n", re.MULTILINE | re.DOTALL)
_STRATEGY = re.compile(r'\) .*?\bgc "([^"]*)"')
_PLAIN = re.compile(r"[A-Za-z._][-\w.]*")
_NAME = re.compile(r'@(?:"[^"]*"|[-\w.$]+)\(')
_BEFORE_ATTRIBUTES = re.compile(r"(?: (?:local_)?unnamed_addr)?(?: addrspace\(\d+\))?")
_INCOMING = re.compile(r"\[ (.*?), %([-\w.$]+) \]")


@dataclass(eq=False)
class Instruction:
    opcode: str
    name: str
    """With its %; empty if it has no result."""
    operands: list[str]
    """Local values with their %, functions with their @, else NULL or CONSTANT; no blocks."""
    text: str
    """Its lines."""
    incoming: list[str] = field(default_factory=list)
    """Of a phi: the names of the blocks that its operands come from."""
    records: str = ""
    """The debug records in front of it."""
    value: Any = None
    """llvmlite's view of it; None if it was added here."""

    def incoming_values(self) -> list[str]:
        """Of a phi: its operands as they are printed."""
        found = _INCOMING.finditer(unquoted(self.text))
        return [self.text[slice(*pair.span(1))] for pair in found]

    def with_incoming(self, values: Iterable[str], blocks: Iterable[str]) -> str:
        """A phi's text with other operands, and other blocks that they come from."""
        pairs = list(_INCOMING.finditer(unquoted(self.text)))
        given = ", ".join(f"[ {v}, %{b} ]" for v, b in zip(values, blocks, strict=True))
        return self.text[: pairs[0].start()] + given + self.text[pairs[-1].end() :]

    def keep_incoming(self, blocks: Container[str]) -> None:
        """Of a phi: drop what comes from other blocks."""
        kept = [block in blocks for block in self.incoming]
        if not all(kept):
            origins = list(compress(self.incoming, kept))
            self.text = self.with_incoming(compress(self.incoming_values(), kept), origins)
            self.operands, self.incoming = list(compress(self.operands, kept)), origins


@dataclass(eq=False)
class Block:
    name: str
    instructions: list[Instruction]
    successors: list[str]
    lines: list[str] = field(default_factory=list)
    """What takes the place of the instructions, if anything."""

    @property
    def phis(self) -> Iterator[Instruction]:
        return (i for i in self.instructions if i.opcode == "phi")


class ModuleContext(NamedTuple):
    """What of a module its functions refer to."""

    functions: dict[str, Any]
    """llvmlite's view of them, by name."""
    reference_structs: set[str]
    """The names of the struct types that hold references."""


class IRFunction:
    """A function definition: its blocks, and the types of the values that matter to a collector."""

    def __init__(self, function: Any, text: str, context: ModuleContext) -> None:
        self.name: str = function.name
        self.context = context
        self.types: dict[str, str] = {}
        """Of all references and vectors of them."""
        self.aggregates: set[str] = set()
        """Values that hold references among other things."""
        self._generated = 0
        for argument in function.arguments:
            self._note_type(f"%{argument.name}", argument.type)
        self.arguments = list(self.types)
        self.header, _, body = text.partition("\n")
        self.blocks: dict[str, Block] = {}
        texts = _split(body)
        for value, instructions in zip(function.blocks, texts, strict=True):
            self.blocks[value.name] = self._block(value, instructions)
        self._empty_unreached()

    def __str__(self) -> str:
        lines = [self.header]
        for block in self.blocks.values():
            lines.append(f"{block.name}:")
            lines += block.lines or (i.records + i.text for i in block.instructions)
        return "\n".join([*lines, "}\n"])

    def unwind(self) -> None:
        """Have it unwound, which walking its frames takes, also if it throws nothing."""
        plain = unquoted(self.header)
        name = _NAME.search(plain)
        assert name
        end = closing(plain, name.end() - 1) + 1
        unnamed = _BEFORE_ATTRIBUTES.match(self.header, end)
        assert unnamed
        self.header = f"{self.header[: unnamed.end()]} uwtable{self.header[unnamed.end() :]}"

    def new_name(self) -> str:
        self._generated += 1
        return f"{GENERATED}{self._generated}"

    def fail(self, instruction: Instruction | None, problem: str) -> NoReturn:
        where = f": {instruction.text.split('!')[0].strip(' ,')}" if instruction else ""
        raise JITListenerError(f"function {self.name!r}{where}: {problem}")

    def _note_type(self, name: str, type_: Any) -> str:
        text = type_name(type_)
        if text == REFERENCE or _VECTOR.fullmatch(text):
            self.types[name] = text
        elif _holds_references(type_):
            self.aggregates.add(name)
        return text

    def _block(self, block: Any, texts: list[tuple[str, str]]) -> Block:
        found, successors = [], []
        for value, (records, text) in zip(block.instructions, texts, strict=True):
            operands = []
            for operand in value.operands:
                kind = operand.value_kind
                if kind == ValueKind.basic_block:
                    successors.append(operand.name)
                else:
                    operands.append(_operand(operand, kind))
            name = f"%{value.name}" if value.name else ""
            if name:
                self._note_type(name, value.type)
            opcode = value.opcode
            incoming = [b.name for b in value.incoming_blocks] if opcode == "phi" else []
            found.append(Instruction(opcode, name, operands, text, incoming, records, value))
        return Block(block.name, found, successors)

    def _empty_unreached(self) -> None:
        """Leave nothing in blocks that control never gets to: a value may be its own operand there.

        They stay, as their addresses may be taken.
        """
        waiting = [next(iter(self.blocks))]
        reached = set(waiting)
        while waiting:
            fresh = set(self.blocks[waiting.pop()].successors) - reached
            reached |= fresh
            waiting += fresh
        for block in self.blocks.values():
            if block.name not in reached:
                block.instructions = [Instruction("unreachable", "", [], "  unreachable")]
                block.successors = []
            for phi in block.phis:
                phi.keep_incoming(reached)

    def call(self, instruction: Instruction) -> Call:
        """The parts of a call; raises JITListenerError for what a statepoint cannot do."""
        callee = self._callee(instruction)
        parameters = callee.arguments if callee else ()
        declared = [b"".join(a + b" " for a in p.attributes).decode() for p in parameters]
        try:
            return read_call(instruction.text, instruction.value, declared)
        except JITListenerError as error:
            self.fail(instruction, str(error))

    def _callee(self, instruction: Instruction) -> Any:
        """llvmlite's view of the function that a call names; None if it names none."""
        callee = instruction.operands[-1]
        return self.context.functions.get(callee[1:]) if callee[0] == "@" else None

    def attributes(self, instruction: Instruction) -> str:
        """The attributes of a call and of its callee, if that is known."""
        found = b" ".join(instruction.value.attributes)
        if callee := self._callee(instruction):
            found += b" ".join(callee.attributes)
        return found.decode()


def parts(module: ModuleRef) -> list[str | IRFunction]:
    """The text of a module in parts, of which the functions that are to have statepoints are
    IRFunctions. All values of functions that have a collector get names, in the module itself.
    """
    if not all(function.name for function in module.functions):
        raise JITListenerError(f"module {module.name!r}: a function without a name: give it one")
    structs = {struct.name: struct for struct in module.struct_types}
    defined = [function for function in module.functions if not function.is_declaration]
    strategies = []
    for function, definition in zip(defined, _DEFINITION.finditer(str(module)), strict=True):
        header = definition[0].partition("\n")[0]
        found = _STRATEGY.search(unquoted(header))
        strategy = header[slice(*found.span(1))] if found else ""
        strategies.append(bool(strategy and _has_statepoints(strategy, function.name)))
        if strategies[-1]:
            _name_values(function, set(structs))
    text, end = str(module), 0
    context = ModuleContext(
        {function.name: function for function in module.functions},
        {name for name, struct in structs.items() if _holds_references(struct)},
    )
    separated: list[str | IRFunction] = []
    for function, definition, marked in zip(
        defined, _DEFINITION.finditer(text), strategies, strict=True
    ):
        if marked:
            separated += (
                text[end : definition.start()],
                IRFunction(function, definition[0], context),
            )
            end = definition.end()
    return [*separated, text[end:]]


def _has_statepoints(strategy: str, function: str) -> bool:
    if strategy in WITH_STATEPOINTS:
        return True
    if strategy == "shadow-stack":
        return False
    raise JITListenerError(
        f"function {function!r}: LLVM has no statepoints for the garbage collection strategy"
        f" {strategy!r}; use {' or '.join(map(repr, WITH_STATEPOINTS))}"
    )


def _name_values(function: Any, structs: set[str]) -> None:
    """Give everything a name that is printed without quotes and that no type has."""

    def named(value: Any, name: str) -> None:
        old = value.name
        if not _PLAIN.fullmatch(old) or old in structs or old.startswith(GENERATED):
            value.name = name

    for argument in function.arguments:
        named(argument, "arg")
    for block in function.blocks:
        named(block, "bb")
        for value in block.instructions:
            if str(value.type) != "void":
                named(value, "v")


def _split(body: str) -> list[list[tuple[str, str]]]:
    """By block, the debug records and the lines of each instruction."""
    blocks: list[list[tuple[str, str]]] = []
    records: list[str] = []
    for line in body.split("\n"):
        if not line or line == "}":
            continue
        if line[0] != " ":
            blocks.append([])
        elif line.startswith("    #dbg_"):
            records.append(line + "\n")
        elif line[2] not in " ]":
            blocks[-1].append(("".join(records), line))
            records = []
        else:
            before, text = blocks[-1][-1]
            blocks[-1][-1] = before, f"{text}\n{line}"
    return blocks


def _operand(operand: Any, kind: ValueKind) -> str:
    if kind in (ValueKind.instruction, ValueKind.argument):
        return f"%{operand.name}"
    if kind == ValueKind.function:
        return f"@{operand.name}"
    nulls = ValueKind.constant_pointer_null, ValueKind.undef_value, ValueKind.poison_value
    if kind in nulls or kind == ValueKind.constant_aggregate_zero:
        return NULL
    return "asm" if kind == ValueKind.inline_asm else CONSTANT


def _holds_references(type_: Any) -> bool:
    if type_.is_pointer or type_.is_function:
        return str(type_) == REFERENCE
    if type_.is_struct or type_.is_array or type_.is_vector:
        return any(_holds_references(element) for element in type_.elements)
    return False
