"""A call in LLVM's text, taken apart: what a statepoint is made of, and what none can do.

Also how to look into a line of that text without taking what is in quotes for code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llvmlite.binding.typeref import TypeKind
from llvmlite.binding.value import ValueKind

from ..errors import JITListenerError
from .emit import EXTENSIONS, MOST_RETURNED, NOT_PASSED

__all__ = ["Call", "closing", "read_call", "substituted", "type_name", "unquoted"]

_QUOTED = re.compile(r'"[^"]*"')  # LLVM prints a quotation mark as \22
_NAMED_TYPE = re.compile(r'%(?:"[^"]*"|[-\w.$]+)')
_CALLEE = re.compile(r'([@%](?:"[^"]*"|[-\w.$]+)|inttoptr \([^()]* to ptr\)|null|undef|poison)\(')
_CONVENTION = re.compile(r"(?<![%@\w.$-])(?:\w+cc|cc \d+|cc\d+|\w+_pcs)(?![\w.$-])")
_NESTED = r"\((?:[^()]|\([^()]*\))*\)"
_ATTRIBUTE = re.compile(
    rf'(?:align \d+|"[^"]*"(?:="[^"]*")?|(?P<name>allocalign|allocptr|dead_on_\w+|immarg|inreg|'
    r"nest|noalias|nocapture|noext|nofree|nonnull|noundef|readnone|readonly|returned|signext|swift\w+|"
    r"writable|writeonly|zeroext|(?:alignstack|byref|byval|captures|dereferenceable|"
    r"dereferenceable_or_null|elementtype|inalloca|initializes|nofpclass|preallocated|range|sret)"
    rf"{_NESTED})) "
)
_VARIADIC = re.compile(r"\((?:[^()]|\([^()]*\))*\.\.\.\)$")
_BUNDLES = re.compile(r"\)(?: #\d+)? \[ ")
_BUNDLE = re.compile(r'(?:, )?"([^"]*)"\(')
_LOCATION = re.compile(r", !dbg ![^,\n]+")
_SMALL_FLOATS = TypeKind.half, TypeKind.bfloat


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


def read_call(text: str, value: Any, declared: list[str]) -> Call:
    """The parts of a call that LLVM prints as `text`, `value` being llvmlite's view of it.

    `declared` are the attributes of the callee's parameters, as far as the callee is known. A call
    may leave them out; a statepoint, whose callee is not that function, may not.

    Raises JITListenerError for what a statepoint cannot do.
    """
    plain = unquoted(text)
    callee = _CALLEE.search(plain)
    if callee is None:
        raise JITListenerError("this call's callee is of a kind that is not known here")
    head, end = plain[: callee.start()].rstrip(), closing(plain, callee.end() - 1)
    _check_result(value)
    result = type_name(value.type)
    convention = _CONVENTION.search(head)
    operands = [o for o in value.operands if o.value_kind != ValueKind.basic_block][:-1]
    arguments: list[str] = []
    types: list[str] = []
    given = _commas(text[callee.end() : end])
    for number, (argument, operand) in enumerate(zip(given, operands, strict=False)):
        _check_recorded(operand.type, "an argument")
        type_ = type_name(operand.type)
        attributes = declared[number] if number < len(declared) else ""
        arguments.append(_argument(type_, f"{attributes}{argument[len(type_) + 1 :]}"))
        types.append(type_)
    for operand in operands[len(given) :]:
        _check_recorded(operand.type, "a deopt value")
    variadic = _VARIADIC.search(head)
    if variadic and result != "void":
        raise JITListenerError(
            "LLVM has no statepoint for a variadic call with a result: call it in a function of"
            ' fixed arguments, or mark it "gc-leaf-function"'
        )
    parameters = text[slice(*variadic.span())] if variadic else f"({', '.join(types)})"
    location = _LOCATION.search(plain, end)
    return Call(
        convention[0] + " " if convention else "",
        result,
        f"{result} {parameters}",
        text[slice(*callee.span(1))],
        arguments,
        _deopt(text, plain, end),
        location[0] if location else "",
    )


def _argument(type_: str, value: str) -> str:
    """An argument without the attributes that say nothing of how it is passed."""
    kept = [type_]
    while attribute := _ATTRIBUTE.match(value):
        name = attribute["name"]
        if name and name.partition("(")[0] in NOT_PASSED:
            raise JITListenerError(
                f"a statepoint cannot pass an argument by {name}; pass a pointer,"
                ' or mark the callee "gc-leaf-function"'
            )
        if name in EXTENSIONS and name not in kept:
            kept.append(name)
        value = value[attribute.end() :]
    return " ".join([*kept, value])


def _deopt(text: str, plain: str, end: int) -> str:
    """The bundle of deopt values of a call whose arguments end at `end`."""
    found = ""
    bundles = _BUNDLES.match(plain, end)
    at = bundles.end() if bundles else len(plain)
    while bundle := _BUNDLE.match(plain, at):
        at = closing(plain, bundle.end() - 1) + 1
        name = text[slice(*bundle.span(1))]
        if name != "deopt":
            raise JITListenerError(f"a statepoint cannot take the operand bundle {name!r}")
        found = f'"deopt"{text[bundle.end() - 1 : at]}'
    return found


# What LLVM's StatepointLowering.cpp ends the process over


def _check_result(value: Any) -> None:
    type_ = value.type
    _check_recorded(type_, "a result")
    if _registers(type_) > MOST_RETURNED:
        raise JITListenerError(
            f"a statepoint's callee cannot return more than {MOST_RETURNED} registers hold; let it"
            " write to memory that the caller gives"
        )
    for leaf in _leaves(type_):
        scalar = next(leaf.elements) if leaf.is_vector else leaf
        small = leaf.is_vector and scalar.type_kind in _SMALL_FLOATS and value.opcode == "invoke"
        if small or scalar.type_kind == TypeKind.x86_fp80:
            raise JITListenerError(
                f"a statepoint's callee cannot return {type_name(type_)} here; let it write to"
                " memory that the caller gives"
            )


def _check_recorded(type_: Any, what: str) -> None:
    try:
        nothing = type_.type_kind != TypeKind.void and not _registers(type_)
        pointers = what == "a deopt value" and any(
            leaf.is_vector and next(leaf.elements).is_pointer for leaf in _leaves(type_)
        )
    except ValueError:  # a kind of type that llvmlite does not know: one of another target
        nothing = True
        pointers = False
    if nothing or pointers:
        raise JITListenerError(f"a statepoint cannot take {what} of type {type_name(type_)}")


def _leaves(type_: Any) -> Iterator[Any]:
    """The types that it is made of, vectors as a whole."""
    if type_.is_struct:
        for element in type_.elements:
            yield from _leaves(element)
    elif type_.is_array:
        yield from _leaves(next(type_.elements))
    else:
        yield type_


def _registers(type_: Any) -> int:
    """At most how many registers a returned value takes."""
    if type_.type_kind == TypeKind.integer:
        return -(-int(type_.type_width) // 64)
    if type_.is_array or type_.is_vector:
        return int(type_.element_count) * _registers(next(type_.elements))
    if type_.is_struct:
        return sum(map(_registers, type_.elements))
    return int(type_.type_kind != TypeKind.void)


# LLVM's text


def type_name(type_: Any) -> str:
    """A type as it is printed where it is used."""
    text = str(type_)
    named = _NAMED_TYPE.match(text)
    return named[0] if named else text


def unquoted(text: str) -> str:
    """The text with other characters, as many, for all that is in quotes."""
    return _QUOTED.sub(lambda quoted: f'"{"_" * (len(quoted[0]) - 2)}"', text)


def substituted(
    pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], text: str
) -> str:
    """As `pattern.sub`, but for what is in quotes."""
    parts: list[str] = []
    end = 0
    for match in pattern.finditer(unquoted(text)):
        parts += text[end : match.start()], replacement(match)
        end = match.end()
    return "".join((*parts, text[end:]))


def closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`, in unquoted text."""
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    raise ValueError(text)


def _commas(text: str) -> list[str]:
    """The parts between commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(unquoted(text)):
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()] if text.strip() else []
