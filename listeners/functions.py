"""The functions of a relocatable object: what a debugger or a profiler is to name.

For the listeners' hot path, which comes here at every load right after LLVM, when nothing of it is
in the processor's caches: so it is one piece of code that touches little.

The format: "ELF-64 Object File Format", chapters "Object Files" and "Symbol Table".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple, cast

from .demangle import demangle
from .errors import JITListenerError
from .objectfile import EXTENT, SECTION, SHF_ALLOC, SHF_EXECINSTR, SYMBOL, ObjectFile, endless

__all__ = ["Function", "read_functions"]

_PLACE = Struct("<8xQQ8xQ")  # of a section header: flags, address, size
_CODE = SHF_ALLOC | SHF_EXECINSTR

# What makes a symbol of an executable section a function, by st_info (binding << 4 | type), and
# which of those at one address gives the name: the least.
_RANKS = {
    0x12: 0,  # global STT_FUNC
    0x1A: 0,  # global STT_GNU_IFUNC
    0x22: 1,  # weak
    0x2A: 1,
    0x02: 2,  # local
    0x0A: 2,
    0x10: 3,  # a global or weak label without a type, as in assembly
    0x20: 3,
}


class Function(NamedTuple):
    """A function of a loaded object."""

    name: str
    """As in the symbol table."""
    address: int
    size: int
    """In bytes; where the symbol has none, up to the next symbol."""

    @property
    def demangled(self) -> str:
        """The name as it was written in the source."""
        return demangle(self.name)


# NamedTuple's own constructor runs Python code for each function; this does not.
_function = cast(Callable[[Any], Function], partial(tuple.__new__, Function))
_address_of = itemgetter(1)


def read_functions(file: ObjectFile, addresses: Mapping[int, int] | None) -> list[Function]:
    """The functions of the code in `file` that is loaded, by address, one an address.

    Section i is loaded at `addresses[i]`; where `addresses` is None, where its header says.

    A function is a symbol of type STT_FUNC or STT_GNU_IFUNC, or a global label without a type,
    as assembly has them. Of several at one address the first in this order gives name and
    size: global, weak, local, label. A size of 0 is taken to reach the next function or the
    section's end, and no size reaches beyond that end.

    Raises JITListenerError if a function lies outside its section, or a name is malformed.
    """
    if not file.symbol_table:
        return []
    data, table, count = file.data, file.section_table, file.section_count
    symbols, symbols_size = EXTENT.unpack_from(data, table + file.symbol_table * SECTION.size)
    names, names_size = EXTENT.unpack_from(data, table + file.strings_index * SECTION.size)
    symbols_end, names_end = symbols + symbols_size, names + names_size
    if symbols_end > len(data) or names_end > len(data):
        file.check_extent(file.symbol_table)
        file.check_extent(file.strings_index)
    found = []
    for name, info, _, section, offset, size in SYMBOL.iter_unpack(data[symbols:symbols_end]):
        if info in _RANKS and 0 < section < count:
            found.append((section, offset, -_RANKS[info], name, size))
    found.sort(reverse=True)
    functions: list[Function] = []
    room_for_names = 16 * len(data)
    current = start = code = 0  # a section, its address, and its size if it is code and loaded
    behind = 0  # the offset of what lies behind a function: the next one, or the section's end
    for section, offset, _, name, size in found:
        if section != current:
            flags, start, code = _PLACE.unpack_from(data, table + section * SECTION.size)
            if addresses is not None:
                start = addresses.get(section, 0)
            if flags & _CODE != _CODE or not start:
                code = 0
            current, behind = section, code
        elif offset == behind:
            continue
        if not code:
            continue
        room = code - offset
        if room <= 0:
            if room or size:
                raise JITListenerError(
                    f"a function at offset {offset:#x} of section {section}, "
                    f"which has {code:#x} bytes"
                )
            continue  # a label that marks the section's end
        end = data.find(b"\0", names + name, names_end)
        if end < 0:
            raise endless(names_size, name, "a function of section", section)
        text = data[names + name : end].decode("utf-8", "surrogateescape")
        # Names may share their ends, as linkers make them do; in a file made to harm, each
        # could be a long end of one string, and all of them be far larger than the file.
        room_for_names -= len(text)
        if room_for_names < 0:
            raise JITListenerError("the names of the functions overlap: they exceed the file")
        if size > room:
            size = room
        functions.append(_function((text, start + offset, size or behind - offset)))
        behind = offset
    functions.sort(key=_address_of)
    return functions
