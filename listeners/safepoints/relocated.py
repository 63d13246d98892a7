"""An object's tables as they read at its load addresses.

Relocated from the object's own bytes, so that a table reads the same for every engine, for another
process and for code that is gone.
"""

from __future__ import annotations

from functools import cached_property

from ..errors import JITListenerError
from ..events import LoadedObject
from ..image import Linker
from ..objectfile import SHN_LORESERVE, ObjectFile

__all__ = ["RelocatedObject"]


class RelocatedObject:
    """The sections of a loaded object, relocated when they are asked for.

    Raises JITListenerError, then too, if the object is malformed.
    """

    def __init__(self, obj: LoadedObject) -> None:
        self.object = obj
        self.file = ObjectFile(obj.elf)
        self.machine = self.file.machine
        """The ELF machine the code is for."""
        self._linker = Linker(self.file, {s.index: s.address for s in obj.sections})

    def sections(self, name: str) -> list[tuple[int, int, bytes]]:
        """Index, address and bytes of the loaded sections of a name."""
        return [
            (section.index, section.address, self.contents(section.index, section.address))
            for section in self.object.sections
            if section.name == name
        ]

    def contents(self, index: int, address: int) -> bytes:
        """The bytes of the section of an index, which is loaded at `address`."""
        return bytes(self._linker.relocated(index, address))

    def is_code(self, address: int) -> bool:
        """Whether the object has code there."""
        loaded = self._linker.loaded
        return any(0 <= address - loaded[i] < size for i, size in self._linker.code.items())

    def code(self, address: int, size: int) -> bytes:
        """Up to `size` bytes of code from an address on, as they were emitted."""
        for index, length in self._linker.code.items():
            start = address - self._linker.loaded[index]
            if 0 <= start < length:
                return self.file.contents(index)[start : start + size]
        return b""

    def targets(self, index: int) -> dict[int, int]:
        """The addresses that the relocations of a section refer to, by offset.

        What is elsewhere is left out.
        """
        values, found = self._linker.values, {}
        for offset, _, symbol, addend in self.file.relocations(index):
            value = values[symbol] if symbol < len(values) else None
            if value is not None:
                found[offset] = value + addend
        return found

    def names(self, index: int) -> dict[int, str]:
        """The symbols that the relocations of a section refer to, by offset.

        A pointer in the object's data stands for the symbol that it points to.
        """
        found = {}
        for offset, place in self._places(index).items():
            if not isinstance(place, str):
                section, at = place
                pointed = self._places(section).get(at)
                place = pointed if isinstance(pointed, str) else self._symbols.get(place, "")
            if place:
                found[offset] = place
        return found

    def _places(self, index: int) -> dict[int, str | tuple[int, int]]:
        """What relocations refer to: an undefined symbol's name, or section and offset."""
        found: dict[int, str | tuple[int, int]] = {}
        symbols = self.file.symbols
        for offset, _, number, addend in self.file.relocations(index):
            if number >= len(symbols):
                raise JITListenerError(
                    f"section {index}, relocation at offset {offset:#x}: symbol {number}"
                    f" of {len(symbols)}"
                )
            symbol = symbols[number]
            if symbol.section == 0:
                found[offset] = self.file.symbol_name(symbol)
            elif symbol.section < SHN_LORESERVE:
                found[offset] = symbol.section, symbol.value + addend
        return found

    @cached_property
    def _symbols(self) -> dict[tuple[int, int], str]:
        """The names of defined symbols, by section and offset."""
        return {
            (symbol.section, symbol.value): self.file.symbol_name(symbol)
            for symbol in self.file.symbols
            if symbol.section and symbol.name
        }
