"""Section-start symbols: how to learn section addresses from a linker that tells only symbols.

A global symbol at the start of each section that is loaded is added to an object before it is
linked; looking the symbols up then gives the load addresses, for any linker and any section,
private-only and empty ones too. The symbols also keep sections alive that nothing refers to,
such as `.llvm_stackmaps`, which JITLink drops otherwise.

Layouts: System V ABI, chapter 4 (ELF-64).
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable
from struct import Struct

from ..objectfile import SECTION, SYMBOL, ObjectFile

__all__ = ["add_symbols", "forget_symbols", "is_ours", "new_symbol"]

OFFSET_AND_SIZE = Struct("<QQ")  # sh_offset and sh_size, at 24 of a section header
GLOBAL_NOTYPE = 0x10  # st_info

# Nobody else's symbol may be the same: LLVM aborts the process over that.
_prefix = f"__jitlisten_{secrets.token_hex(4)}_".encode()
_numbers = itertools.count(1)
_listed = re.compile(rb"(?:, )?%b\d+" % _prefix)


def new_symbol() -> bytes:
    """A symbol name that nothing in this process has or will have."""
    return b"%b%d" % (_prefix, next(_numbers))


def is_ours(name: bytes) -> bool:
    """Whether `new_symbol` has made up the name."""
    return name.startswith(_prefix)


def forget_symbols(message: bytes) -> bytes:
    """An error message of the linker's without our symbols in its lists."""
    return _listed.sub(b"", message).replace(b"{ , ", b"{ ").replace(b"[ , ", b"[ ")


def add_symbols(file: ObjectFile, symbols: Iterable[tuple[bytes, int, int]]) -> bytes:
    """The object with more global symbols: (name, section index, offset in the section).

    The symbol and string tables move to the end of the file, longer than before; all else stays
    where it is. An object without a symbol table is returned as it is.
    """
    table = file.symbol_table
    if not table:
        return file.data
    strings = file.sections[table].link
    symbol_bytes = bytearray(file.contents(table))
    string_bytes = bytearray(file.contents(strings))
    for name, section, offset in symbols:
        symbol_bytes += SYMBOL.pack(len(string_bytes), GLOBAL_NOTYPE, 0, section, offset, 0)
        string_bytes += name + b"\0"
    data = bytearray(file.data)
    for index, content in ((table, symbol_bytes), (strings, string_bytes)):
        data += bytes(-len(data) % 8)
        OFFSET_AND_SIZE.pack_into(
            data, file.section_table + SECTION.size * index + 24, len(data), len(content)
        )
        data += content
    return bytes(data)
