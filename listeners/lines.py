"""Source lines of a linked image, read from its DWARF with pyelftools: for when a person asks."""

from __future__ import annotations

import io
import posixpath
from typing import TYPE_CHECKING, Any

from elftools.elf.elffile import ELFFile

from .errors import JITListenerError
from .events import Line

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["file_names", "read_lines"]


def read_lines(image: bytes) -> tuple[Line, ...]:
    """The rows of all line tables of a linked ELF image, by address.

    Raises JITListenerError if its debug information is malformed.
    """
    try:
        elf = ELFFile(io.BytesIO(image))
        if not elf.has_dwarf_info():
            return ()
        dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False)
        lines = [
            line
            for unit in dwarf.iter_CUs()
            if (program := dwarf.line_program_for_CU(unit)) is not None
            for line in _rows(program, file_names(unit, program))
        ]
    except Exception as error:  # over malformed input pyelftools may raise anything
        raise JITListenerError(
            f"debug information: malformed line table ({type(error).__name__}: {error})"
        ) from error
    lines.sort(key=lambda line: line.address)
    return tuple(lines)


def file_names(unit: Any, program: Any) -> list[str]:
    """The paths of the files of a compilation unit's line table, by their number there."""
    attribute = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    directory = attribute.value.decode("utf-8", "replace") if attribute else ""
    # DWARF 5 counts files and directories from 0 (the compilation's own), DWARF 4 from 1.
    counts_from_0 = program.header.version >= 5
    directories = [name.decode("utf-8", "replace") for name in program.header.include_directory]
    if not counts_from_0:
        directories.insert(0, directory)
    program.get_entries()  # which may name files, too: DW_LNE_define_file, as perf writes them
    names = [
        posixpath.join(
            directory, directories[entry.dir_index], entry.name.decode("utf-8", "replace")
        )
        for entry in program.header.file_entry
    ]
    return names if counts_from_0 else ["", *names]


def _rows(program: Any, names: list[str]) -> Iterator[Line]:
    for entry in program.get_entries():
        state = entry.state
        if state is not None:
            line = 0 if state.end_sequence else state.line
            yield Line(state.address, names[state.file], line)
