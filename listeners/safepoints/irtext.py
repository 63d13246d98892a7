"""A function of an LLVM module as text that can be rewritten, with what llvmlite knows of it.

llvmlite cannot build instructions in a parsed module, so what changes a compiled function edits the
text that LLVM prints, an instruction at a time. What an instruction is, its operands and its types
are asked of LLVM itself; the text is parsed only as far as it is rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from llvmlite.binding import ModuleRef
from llvmlite.binding.typeref import TypeKind
from llvmlite.binding.value import ValueKind

from ..errors import JITListenerError
from .emit import MOST_RETURNED

__all__ = ["NULL", "REFERENCE", "Block", "Call", "IRFunction", "Instruction", "parts"]

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
_CALLEE = re.compile(r'([@%](?:"[^"]*"|[-\w.$]+)|inttoptr \([^()]* to ptr\)|null|undef|poison)\(')
_NAME = re.compile(r'@(?:"[^"]*"|[-\w.$]+)\(')
_BEFORE_ATTRIBUTES = re.compile(r"(?: (?:local_)?unnamed_addr)?(?: addrspace\(\d+\))?")
_CONVENTION = re.compile(r"(?<![%@\w.$-])(?:\w+cc|cc \d+|cc\d+|\w+_pcs)(?![\w.$-])")
_NESTED = r"\((?:[^()]|\([^()]*\))*\)"
_ATTRIBUTE = re.compile(
    rf'(?:align \d+|"[^"]*"(?:="[^"]*")?|(?P<name>allocalign|allocptr|dead_on_\w+|immarg|inreg|'
    r"nest|noalias|nocapture|noext|nofree|nonnull|noundef|readnone|readonly|returned|signext|swift\w+|"
    r"writable|writeonly|zeroext|(?:alignstack|byref|byval|captures|dereferenceable|"
    r"dereferenceable_or_null|elementtype|inalloca|initializes|nofpclass|preallocated|range|sret)"
    rf"{_NESTED})) "
)
_EXTENSIONS = frozenset(("inreg", "signext", "zeroext"))
_UNSUPPORTED = re.compile(r"byval|inalloca|nest$|preallocated|sret|swift")


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


@dataclass
class Call:
    """A call or invoke, its parts as they are printed."""

    convention: str
    result: str
    """The type it returns."""
    function_type: str
    callee: str
    arguments: list[str]
    """Types, values, and of the attributes those that are part of the calling convention."""
    deopt: str
    """The operand bundle of that name, or nothing."""
    location: str
    """`, !dbg !7` or nothing."""


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

    def __str__(self) -> str:
        lines = [self.header]
        for block in self.blocks.values():
            lines.append(f"{block.name}:")
            lines += block.lines or (i.records + i.text for i in block.instructions)
        return "\n".join([*lines, "}\n"])

    def unwind(self) -> None:
        """Have it unwound, which walking its frames takes, also if it throws nothing."""
        name = _NAME.search(self.header)
        assert name
        end = _closing(self.header, name.end() - 1) + 1
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
        text = _type_name(type_)
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

    def call(self, instruction: Instruction) -> Call:
        """The parts of a call; raises JITListenerError for what a statepoint cannot do."""
        text = instruction.text
        callee = _CALLEE.search(text)
        if callee is None:
            self.fail(instruction, "this call's callee is of a kind that is not known here")
        head, end = text[: callee.start()].rstrip(), _closing(text, callee.end() - 1)
        convention = _CONVENTION.search(head)
        if _registers(instruction.value.type) > MOST_RETURNED:
            self.fail(
                instruction,
                f"a statepoint's callee cannot return more than {MOST_RETURNED} registers hold; let"
                " it write to memory that the caller gives",
            )
        result = _type_name(instruction.value.type)
        operands = instruction.value.operands
        arguments: list[str] = []
        types: list[str] = []
        declared = self._declared(instruction)
        for argument, operand in zip(_commas(text[callee.end() : end]), operands, strict=False):
            type_ = _type_name(operand.type)
            attributes = declared[len(types)] if len(types) < len(declared) else ""
            argument = f"{type_} {attributes}{argument[len(type_) + 1 :]}"
            arguments.append(self._argument(instruction, argument, type_))
            types.append(type_)
        variadic = re.search(r"\(([^()]|\([^()]*\))*\.\.\.\)$", head)
        if variadic and result != "void":
            self.fail(
                instruction,
                "LLVM has no statepoint for a variadic call with a result: call it in a function"
                ' of fixed arguments, or mark it "gc-leaf-function"',
            )
        function_type = f"{result} {variadic[0]}" if variadic else f"{result} ({', '.join(types)})"
        deopt = ""
        for name, bundle in re.findall(r'"([^"]*)"(\([^\]]*?\))(?=, "| \])', text[end:]):
            if name != "deopt":
                self.fail(instruction, f"a statepoint cannot take the operand bundle {name!r}")
            deopt = f'"deopt"{bundle}'
        location = re.search(r", !dbg ![^,\n]+", text[end:])
        return Call(
            convention[0] + " " if convention else "",
            result,
            function_type,
            callee[1],
            arguments,
            deopt,
            location[0] if location else "",
        )

    def _callee(self, instruction: Instruction) -> Any:
        """llvmlite's view of the function that a call names; None if it names none."""
        callee = instruction.operands[-1]
        return self.context.functions.get(callee[1:]) if callee[0] == "@" else None

    def _declared(self, instruction: Instruction) -> list[str]:
        """The attributes of a callee's parameters. A call may leave them out; a statepoint, whose
        callee is not that function, may not."""
        callee = self._callee(instruction)
        arguments = callee.arguments if callee else ()
        return [b"".join(a + b" " for a in argument.attributes).decode() for argument in arguments]

    def _argument(self, instruction: Instruction, text: str, type_: str) -> str:
        value, kept = text[len(type_) + 1 :], [type_]
        while attribute := _ATTRIBUTE.match(value):
            name = attribute["name"]
            if name and _UNSUPPORTED.match(name):
                self.fail(
                    instruction,
                    f"a statepoint cannot pass an argument by {name}; pass a pointer,"
                    ' or mark the callee "gc-leaf-function"',
                )
            if name in _EXTENSIONS and name not in kept:
                kept.append(name)
            value = value[attribute.end() :]
        return " ".join([*kept, value])

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
    structs = {struct.name: struct for struct in module.struct_types}
    defined = [function for function in module.functions if not function.is_declaration]
    strategies = []
    for function, definition in zip(defined, _DEFINITION.finditer(str(module)), strict=True):
        strategy = _STRATEGY.search(definition[0].partition("\n")[0])
        strategies.append(bool(strategy and _has_statepoints(strategy[1], function.name)))
        if strategies[-1]:
            _name_values(function, set(structs))
    text, end = str(module), 0
    context = ModuleContext(
        {function.name: function for function in module.functions},
        {name for name, struct in structs.items() if _holds_references(struct)},
    )
    found: list[str | IRFunction] = []
    for function, definition, marked in zip(
        defined, _DEFINITION.finditer(text), strategies, strict=True
    ):
        if marked:
            found += text[end : definition.start()], IRFunction(function, definition[0], context)
            end = definition.end()
    return [*found, text[end:]]


def _has_statepoints(strategy: str, function: str) -> bool:
    if strategy in ("statepoint-example", "coreclr"):
        return True
    if strategy == "shadow-stack":
        return False
    raise JITListenerError(
        f"function {function!r}: LLVM has no statepoints for the garbage collection strategy"
        f" {strategy!r}; use 'statepoint-example' or 'coreclr'"
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


def _type_name(type_: Any) -> str:
    return str(type_).split(" = type ")[0]


def _holds_references(type_: Any) -> bool:
    if type_.is_pointer or type_.is_function:
        return str(type_) == REFERENCE
    if type_.is_struct or type_.is_array or type_.is_vector:
        return any(_holds_references(element) for element in type_.elements)
    return False


def _registers(type_: Any) -> int:
    """At most how many registers a returned value takes."""
    if type_.type_kind == TypeKind.integer:
        return -(-int(type_.type_width) // 64)
    if type_.is_array or type_.is_vector:
        return int(type_.element_count) * _registers(next(type_.elements))
    if type_.is_struct:
        return sum(map(_registers, type_.elements))
    return int(type_.type_kind != TypeKind.void)


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = quoted = 0
    for at in range(opening, len(text)):
        character = text[at]
        if character == '"':
            quoted ^= 1
        elif not quoted:
            depth += (character == "(") - (character == ")")
            if not depth:
                return at
    raise ValueError(text)


def _commas(text: str) -> list[str]:
    """The parts between commas that are in no brackets."""
    parts, depth, quoted, start = [], 0, 0, 0
    for at, character in enumerate(text):
        if character == '"':
            quoted ^= 1
        elif not quoted:
            depth += (character in "([{<") - (character in ")]}>")
            if character == "," and not depth:
                parts.append(text[start:at].strip())
                start = at + 1
    return [*parts, text[start:].strip()] if text.strip() else []
