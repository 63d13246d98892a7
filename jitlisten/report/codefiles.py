"""What the files of JIT code know: functions, source lines, inlined functions, instructions.

Those files are code images and what `perf inject -j` writes. Each is read when there is a sample in
it, and only then, for the debug information of a large one takes its time.
"""

from __future__ import annotations

import bisect
import glob
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from struct import pack
from typing import Any, NamedTuple

from elftools.elf.elffile import ELFFile

from listeners.demangle import demangle
from listeners.errors import JITListenerError
from listeners.events import Line
from listeners.lines import file_names, read_lines
from listeners.objectfile import ET_EXEC
from perfmap.names import printable

__all__ = ["CodeFile", "Function", "Instruction", "Place", "is_code_file", "kept"]

# NAME-PID-UNIQUE.so of CodeImages, jitted-PID-NUMBER.so of perf inject
IMAGE = re.compile(r".*-\d+-[a-z0-9_]{8}\.so")
INJECTED = re.compile(r"jitted-\d+-\d+\.so")
INLINED_SUBROUTINE = b"\x1d"  # DW_TAG_inlined_subroutine, as .debug_abbrev has it


class Function(NamedTuple):
    name: str
    address: int
    size: int


class Place(NamedTuple):
    """A source line that an instruction belongs to, in the function or one inlined there."""

    inlined: str
    """The inlined function's name; empty for the function itself."""
    file: str
    """Empty if it is not known."""
    line: int
    """0 if it is not known."""


class Instruction(NamedTuple):
    address: int
    text: str


class CodeFile:
    """An ELF file of JIT code.

    What it has of functions is read at once. A malformed one is a JITListenerError, there and when
    its debug information is asked for.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be read, JITListenerError if it is malformed."""
        self.path = path
        self._data = path.read_bytes()
        self._source_files: dict[int, str] = {}  # by the address of the function
        try:
            self._elf = ELFFile(io.BytesIO(self._data))
            self._segments = [
                (segment["p_offset"], segment["p_vaddr"], segment["p_filesz"])
                for segment in self._elf.iter_segments("PT_LOAD")
            ]
            table = self._elf.get_section_by_name(".symtab")
            symbols = table.iter_symbols() if table else ()
            self.functions = sorted(
                (
                    Function(
                        printable(demangle(symbol.name)), symbol["st_value"], symbol["st_size"]
                    )
                    for symbol in symbols
                    if symbol["st_info"]["type"] == "STT_FUNC"
                ),
                key=lambda function: function.address,
            )
        except Exception as error:  # over malformed input pyelftools may raise anything
            raise JITListenerError(
                f"{path}: malformed ELF file ({type(error).__name__}: {error})"
            ) from error

    def find(self, address: int, offset: int) -> tuple[Function, int] | None:
        """The function, and the address in this file, of what perf says is at `address`.

        That is an address of the file, or an offset, by the version of perf. It is `offset` bytes
        behind the start of the function.
        """
        for function in self.functions:
            if function.address + offset in (address, *self._addresses(address)):
                return function, function.address + offset
        if len(self.functions) == 1:  # mapped somewhere else
            return self.functions[0], self.functions[0].address + offset
        return None

    def _addresses(self, offset: int) -> list[int]:
        return [
            address + offset - start
            for start, address, size in self._segments
            if start <= offset < start + size
        ]

    def source_file(self, function: Function) -> str:
        """The file that the function is written in; empty if that is not known."""
        if function.address not in self._source_files:
            first = bisect.bisect_left(self._line_addresses, function.address)
            last = bisect.bisect_left(self._line_addresses, function.address + function.size)
            known = (line for line in self.lines[first:last] if line.line)
            line = next(known, None)
            self._source_files[function.address] = self.places(line.address)[0].file if line else ""
        return self._source_files[function.address]

    def places(self, address: int) -> tuple[Place, ...]:
        """What `address` belongs to: the function's line, and those of functions inlined there.

        The outermost comes first; its line is that of the call, if others follow.
        """
        line = self.line(address)
        if line is None:
            return (Place("", "", 0),)
        names, calls = [""], []
        for inlined in self._inlined:
            if any(low <= address < high for low, high in inlined.ranges):
                names.append(inlined.name)
                calls.append((inlined.call_file, inlined.call_line))
        lines = [*calls, (line.file, line.line)]
        return tuple(Place(name, *place) for name, place in zip(names, lines, strict=True))

    def line(self, address: int) -> Line | None:
        """The row of the line table for `address`; None if there is none."""
        index = bisect.bisect_right(self._line_addresses, address) - 1
        line = self.lines[index] if index >= 0 else None
        return line if line and line.line else None

    @cached_property
    def lines(self) -> list[Line]:
        """Of all rows for an address the one that counts, by address."""
        lines: dict[int, Line] = {}
        for line in read_lines(self._data):
            # where a sequence ends, another one may begin
            if line.line or not lines.get(line.address):
                lines[line.address] = line
        return list(lines.values())

    @cached_property
    def _line_addresses(self) -> list[int]:
        return [line.address for line in self.lines]

    @cached_property
    def _inlined(self) -> list[_Inlined]:
        """Inlined functions, outer ones before those inside."""
        if not self._elf.has_dwarf_info():
            return []
        try:
            # Entries take long to read, in thousands of files; their kinds tell if there are any.
            kinds = self._elf.get_section_by_name(".debug_abbrev")
            if kinds and INLINED_SUBROUTINE not in kinds.data():
                return []
            dwarf = self._elf.get_dwarf_info(relocate_dwarf_sections=False)
            return [found for unit in dwarf.iter_CUs() for found in _inlined_functions(dwarf, unit)]
        except Exception as error:  # as above
            raise JITListenerError(
                f"{self.path}: malformed debug information ({type(error).__name__}: {error})"
            ) from error

    def instructions(self, function: Function) -> list[Instruction]:
        """The function's machine code, by address; empty where there is no objdump that knows it.

        Raises JITListenerError if objdump fails.
        """
        objdump = shutil.which("objdump")
        if objdump is None:
            return []
        command = (
            *(objdump, "-d", "--no-show-raw-insn", "-M", "intel"),
            f"--start-address={function.address:#x}",
            f"--stop-address={function.address + function.size:#x}",
            str(self.path),
        )
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        rows = re.findall(r"^ *([0-9a-f]+):\s+(.*?)\s*$", done.stdout, re.MULTILINE)
        return [Instruction(int(address, 16), _short_target(text)) for address, text in rows]


def _short_target(text: str) -> str:
    """An instruction as objdump has it, without the name of the function that a jump stays in."""
    return re.sub(r" <.*(\+0x[0-9a-f]+)>$", r" <\1>", " ".join(text.split()))


class _Inlined(NamedTuple):
    name: str
    ranges: list[tuple[int, int]]
    """First address, and the one behind the last."""
    call_file: str
    call_line: int


def _inlined_functions(dwarf: Any, unit: Any) -> Iterator[_Inlined]:
    """What was inlined in a compilation unit (DWARF 4, 3.3.8)."""
    dies = [die for die in unit.iter_DIEs() if die.tag == "DW_TAG_inlined_subroutine"]
    if not dies:
        return
    program = dwarf.line_program_for_CU(unit)
    files = file_names(unit, program) if program else []
    base = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
    for die in dies:  # in the order of the tree
        attributes = die.attributes
        number = attributes["DW_AT_call_file"].value if "DW_AT_call_file" in attributes else -1
        line = attributes["DW_AT_call_line"].value if "DW_AT_call_line" in attributes else 0
        file = files[number] if 0 <= number < len(files) else ""
        yield _Inlined(_name(die), _ranges(dwarf, unit, die, base.value if base else 0), file, line)


def _name(die: Any) -> str:
    for attribute in ("DW_AT_abstract_origin", "DW_AT_specification"):
        if attribute in die.attributes:
            return _name(die.get_DIE_from_attribute(attribute))
    for attribute in ("DW_AT_linkage_name", "DW_AT_name"):
        if attribute in die.attributes:
            return printable(demangle(die.attributes[attribute].value.decode("utf-8", "replace")))
    return "[unknown]"


def _ranges(dwarf: Any, unit: Any, die: Any, base: int) -> list[tuple[int, int]]:
    attributes = die.attributes
    if "DW_AT_low_pc" in attributes:
        low, high = attributes["DW_AT_low_pc"].value, attributes["DW_AT_high_pc"]
        return [(low, high.value if high.form == "DW_FORM_addr" else low + high.value)]
    if "DW_AT_ranges" not in attributes:
        return []
    offset = attributes["DW_AT_ranges"].value
    found = []
    for entry in dwarf.range_lists().get_range_list_at_offset(offset, cu=unit):
        if hasattr(entry, "base_address"):
            base = entry.base_address
        else:
            start = 0 if entry.is_absolute else base
            found.append((start + entry.begin_offset, start + entry.end_offset))
    return found


def is_code_file(dso: str) -> bool:
    """Whether what perf calls `dso` is such a file, or was before it went."""
    name = dso.rpartition("/")[2].removesuffix(" (deleted)")
    if INJECTED.fullmatch(name) or (IMAGE.fullmatch(name) and "/jit-listeners-" in dso):
        return True
    # Wheels have libraries of such names, too, but not at absolute addresses.
    return IMAGE.fullmatch(name) is not None and _is_absolute(dso)


def kept(dso: str) -> Path:
    """The file that perf calls `dso`, or the copy that perf made of it when it recorded.

    Of several copies it is not known which one the recording is of: then it is none.
    """
    name = os.fsdecode(dso.encode())  # whatever the encoding of file names, perf's is read as UTF-8
    path = Path(name)
    if path.exists():
        return path
    try:
        copies = list(Path.home().glob(f".debug/{glob.escape(name.lstrip('/'))}/*/elf"))
    except RuntimeError:  # no HOME, and a user without a name
        return path
    return copies[0] if len(copies) == 1 else path


@cache
def _is_absolute(dso: str) -> bool:
    try:
        with kept(dso).open("rb") as file:
            return file.read(18)[16:] == pack("<H", ET_EXEC)
    except OSError:
        return False
