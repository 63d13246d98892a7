"""LLJIT over JITLink, which tells nobody what it links: sections learnt by their symbols.

What is to be linked is compiled here first, as the engine would have, and gets section-start
symbols (`sectionsymbols`), which are looked up together with the user's own exports. The user's
link goes as it would without us: what LLVM would not have materialised is not looked up, static
constructors stay LLVM's to run, and an error names none of our symbols.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import llvmlite.binding as llvm
from llvmlite.binding.orcjit import _LinkElement, _SymbolAddress

from ..errors import JITListenerError
from ..objectfile import SHN_UNDEF, ObjectFile
from .constructors import Constructors, split_constructors
from .sectionsymbols import add_symbols, forget_symbols, is_ours, new_symbol
from .targets import TargetOptions

__all__ = [
    "LIBRARY",
    "OBJECT",
    "UNKNOWN_TARGET",
    "Library",
    "Link",
    "defined_symbols",
    "forget_symbols_in",
    "given_elements",
    "is_ours",
    "materialised",
    "new_symbol",
    "section_addresses",
]

UNKNOWN_TARGET = (
    "IR of an engine that was made, or whose target machine was made, before `import listeners`:"
    " how it generates code is not known; import listeners first"
)

# Kinds of LinkElement, in llvmlite's ffi/orcjit.cpp.
IR, ASSEMBLY, OBJECT, LIBRARY = range(4)  # "assembly" is LLVM's assembly language: IR again

STB_LOCAL, STB_WEAK, STB_GNU_UNIQUE = 0, 2, 10
STV_DEFAULT, STV_PROTECTED = 0, 3
SHN_COMMON = 0xFFF2

_process = ctypes.CDLL(None)


@dataclass(eq=False)
class Element:
    """An object of a library, and whether LLVM has put it in memory."""

    file: ObjectFile
    """As it was emitted, without our symbols."""
    starts: dict[int, bytes]
    """The names of its section-start symbols, by section index."""
    strong: set[bytes]
    """The symbols it defines for others to see."""
    weak: set[bytes]
    """Those it defines unless another object of the library has done so."""
    undefined: set[bytes]
    hidden: set[bytes]
    """The symbols it defines for its own library alone."""
    in_memory: bool = False


@dataclass(eq=False)
class Library:
    """A library: what one call of `JITLibraryBuilder.link` links."""

    name: bytes
    elements: list[Element] = field(default_factory=list)
    searched: list[bytes] = field(default_factory=list)
    """The libraries that are searched for what this one does not define."""
    imported: set[bytes] = field(default_factory=set)
    """The symbols it was given an address for."""
    sees_process: bool = False
    """Whether it takes what it does not define from the process, before any other library."""
    initialisers: list[bytes] = field(default_factory=list)
    """The functions LLVM runs at the link."""
    unheard: list[str] = field(default_factory=list)
    """Why elements could not be prepared: they are linked as they are."""

    def defining(self, symbol: bytes) -> Element | None:
        """The element whose definition LLVM takes: a strong one, else the first."""
        weak = None
        for element in self.elements:
            if symbol in element.strong:
                return element
            if weak is None and symbol in element.weak:
                weak = element
        return weak

    def has_address_of(self, symbol: bytes) -> bool:
        """Whether it has the symbol without any element that defines it."""
        return symbol in self.imported or (self.sees_process and _is_in_process(symbol))


def materialised(
    libraries: Mapping[bytes, Library], wanted: Iterable[tuple[bytes, bytes]]
) -> list[tuple[Library, Element]]:
    """What LLVM puts in memory to look up the (library, symbol) pairs of `wanted`.

    A symbol brings the object that defines it, and that brings all it refers to; what is in
    memory already is left out.
    """
    found: list[tuple[Library, Element]] = []
    reached: set[Element] = set()
    todo = deque(wanted)
    while todo:
        name, symbol = todo.popleft()
        library = libraries.get(name)
        element = library.defining(symbol) if library else None
        if library is None or element is None or element.in_memory or element in reached:
            continue
        reached.add(element)
        found.append((library, element))
        for need in element.undefined | element.weak:
            for other in (name, *library.searched):
                if other not in libraries:
                    continue
                definer = libraries[other].defining(need)
                if definer and (other == name or need not in definer.hidden):
                    todo.append((other, need))
                    break
                if libraries[other].has_address_of(need):
                    break
    return found


def _is_in_process(symbol: bytes) -> bool:
    try:
        return bool(_process[symbol.decode()])
    except (AttributeError, UnicodeDecodeError):
        return False


class Link:
    """One call of `LLVMPY_LLJIT_Link`, prepared so that its sections' addresses are learnt."""

    def __init__(
        self,
        libraries: dict[bytes, Library],
        name: bytes,
        target: TargetOptions | None,
        elements: Any,
        element_count: int,
        imports: Any,
        import_count: int,
        exports: Any,
        export_count: int,
        error: Any,
    ) -> None:
        """Of the libraries of an engine that generates code for `target`, and the call's arguments.

        All but the first three are as llvmlite hands them to LLVM: arrays and their lengths.
        """
        imported = {imports[index].name for index in range(import_count)}
        library, parts = _prepare(name, given_elements(elements, element_count), imported, target)
        self.unheard = library.unheard
        """Why parts of it are linked without being heard of."""
        self._exports, self._error = exports, error
        libraries.setdefault(name, library)
        wanted = [exports[index].name for index in range(export_count)] + library.initialisers
        brought = materialised(libraries, ((name, symbol) for symbol in wanted))
        self._brought = [element for owner, element in brought if owner is library]
        self.drawn = [pair for pair in brought if pair[0] is not library]
        """What the call will bring into memory of libraries linked before."""

        c_elements = (_LinkElement * len(parts))(*((k, value, len(value)) for k, value in parts))
        starts = [symbol for element in self._brought for symbol in element.starts.values()]
        self._all = (_SymbolAddress * (export_count + len(starts)))()
        ctypes.memmove(self._all, exports, ctypes.sizeof(exports))
        for index, symbol in enumerate(starts, export_count):
            self._all[index].name = symbol
        self.arguments = (
            c_elements, len(c_elements), imports, import_count, self._all, len(self._all), error
        )  # fmt: skip

    def finish(self, linked: bool) -> Iterator[tuple[ObjectFile, dict[int, int]]]:
        """After the call: each object that is now in memory, and its sections' addresses."""
        if not linked:
            forget_symbols_in(self._error)
            return
        ctypes.memmove(self._exports, self._all, ctypes.sizeof(self._exports))
        found = iter(self._all[len(self._exports) :])
        for element in self._brought:
            element.in_memory = True
            yield element.file, {index: next(found).address for index in element.starts}


def section_addresses(engine: Any, library: Library, element: Element) -> dict[int, int]:
    """{section index: load address} of an element that a later look-up has put in memory.

    A library of our own asks for them: the tracker of a direct look-up would, closed, clear the
    library it looked into.
    """
    table = new_symbol().decode()
    names = [symbol.decode() for symbol in element.starts.values()]
    text = "".join(f"@{name} = external global i8\n" for name in names)
    values = ", ".join(f"ptr @{name}" for name in names)
    text += f"@{table} = constant [{len(names)} x ptr] [{values}]\n"
    builder = llvm.JITLibraryBuilder().add_ir(text).add_jit_library(library.name.decode())
    with builder.export_symbol(table).link(engine, table) as probe:
        found = (ctypes.c_uint64 * len(names)).from_address(probe[table])
        return dict(zip(element.starts, found, strict=True))


def given_elements(array: Any, count: int) -> list[tuple[int, bytes]]:
    """Kind and value of what a link is given, in an array of LinkElement."""
    found = []
    for index in range(count):
        element = array[index]
        # The value may hold zero bytes, at which a c_char_p would end.
        value = ctypes.c_void_p.from_buffer(element, _LinkElement.value.offset).value
        found.append((element.element_kind, ctypes.string_at(value or 0, element.value_len)))
    return found


def defined_symbols(kind: int, value: bytes) -> set[bytes]:
    """The symbols an element defines for others to see."""
    if kind == OBJECT:
        element, _ = _with_symbols(value, None)
        return element.strong | element.weak
    if kind == LIBRARY:
        return set()
    with llvm.parse_assembly(value.decode(), llvm.create_context()) as module:
        return {
            thing.name.encode()
            for things in (module.functions, module.global_variables)
            for thing in things
            if not thing.is_declaration and thing.linkage.name not in ("internal", "private")
        }


def _prepare(
    name: bytes, given: list[tuple[int, bytes]], imported: set[bytes], target: TargetOptions | None
) -> tuple[Library, list[tuple[int, bytes]]]:
    """The library, and what to hand LLVM in place of what was given."""
    library = Library(name, imported=imported)
    parts: list[tuple[int, bytes]] = []
    defined = set(imported)
    for kind, value in given:
        part = kind, value
        constructors = None
        if kind == LIBRARY:
            if value:
                library.searched.append(value)
            else:
                library.sees_process = True
            parts.append(part)
            continue
        try:
            if kind == OBJECT:
                elf: bytes | None = value
            else:
                elf, constructors = _compile(value, target)
            if elf is not None:
                element, linked = _with_symbols(elf, constructors)
                if defined & element.strong:
                    return Library(name), given  # so that LLVM's error speaks of what was given
                defined |= element.strong
                library.elements.append(element)
                part = OBJECT, linked
        except JITListenerError as error:
            library.unheard.append(str(error))
        parts.append(part)
        if constructors:
            parts.append((IR, constructors.module))
            library.initialisers += constructors.called
    return library, parts


def _compile(text: bytes, target: TargetOptions | None) -> tuple[bytes | None, Constructors | None]:
    """The object of an IR module, or None if it is LLVM that must be heard on it."""
    if target is None:
        raise JITListenerError(UNKNOWN_TARGET)
    if b"\0" in text:
        return None, None
    try:
        with llvm.parse_assembly(text.decode(), llvm.create_context()) as module:
            if module.data_layout not in ("", target.data_layout):
                return None, None
            if target.emulates_tls and b"thread_local" in text:
                raise JITListenerError(
                    "a module with thread-local variables, for an engine made without a target"
                    " machine: create it with one"
                )
            constructors = None
            if b"@llvm.global_" in text:
                body, constructors = split_constructors(module)
                with llvm.parse_assembly(body, llvm.create_context()) as rest:
                    return target.machine.emit_object(rest), constructors
            return target.machine.emit_object(module), None
    except RuntimeError:  # llvmlite's, for IR that does not parse
        return None, None


def _with_symbols(elf: bytes, constructors: Constructors | None) -> tuple[Element, bytes]:
    """An element, and its object with symbols of ours."""
    file = ObjectFile(elf)
    starts = {index: new_symbol() for index in file.allocated}
    element = Element(file, starts, set(), set(), set(), set())
    added = [(name, index, 0) for index, name in starts.items()]
    for symbol in file.symbols:
        binding = symbol.info >> 4
        if constructors and symbol.section:
            alias = constructors.aliases.get(file.symbol_name(symbol))
            if alias:
                added.append((alias, symbol.section, symbol.value))
                element.strong.add(alias)
        if binding != STB_LOCAL and symbol.name:
            name = file.symbol_name(symbol).encode("utf-8", "surrogateescape")
            if symbol.section == SHN_UNDEF:
                element.undefined.add(name)
                continue
            if binding in (STB_WEAK, STB_GNU_UNIQUE) or symbol.section == SHN_COMMON:
                element.weak.add(name)
            else:
                element.strong.add(name)
            if symbol.other & 3 not in (STV_DEFAULT, STV_PROTECTED):
                element.hidden.add(name)
    return element, add_symbols(file, added)


def forget_symbols_in(error: Any) -> None:
    """Take our symbols out of the message in llvmlite's OutputString: it only gets shorter."""
    message = error._ptr
    if message:
        text = forget_symbols(message.value)
        ctypes.memmove(message, text + b"\0", len(text) + 1)
