"""perf sees what is loaded, its source lines and how to unwind it: a listener over `perfmap`."""

from __future__ import annotations

import os
from bisect import bisect_left

from perfmap import FrameRules, JITCode, JITDumpWriter

from .events import Function, JITEventListener, Line, LoadedObject
from .framerules import read_rules
from .objectfile import HEADER, SECTION, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS

__all__ = ["JITDump"]


class JITDump(JITEventListener):
    """Writes the functions of loaded objects to a jitdump, for `perf inject -j`.

    The file is `jit-PID.dump` in `directory`, or in a new directory of this run in `.debug/jit` of
    $JITDUMPDIR or of home. A forked child writes its own beside its parent's.

    The source lines have to be written before the function, so they are read at every load of an
    object that has them: 1 ms for a small one, most of what this listener costs.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._writer = JITDumpWriter(directory)

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        code, rules, has_lines = _contents(obj.image())
        lines = obj.lines() if has_lines else ()
        self._writer.add_all(_functions(obj.functions, code, lines, rules))

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        self._writer.forget_all(function.address for function in obj.functions)


def _contents(image: bytes) -> tuple[list[tuple[int, bytes]], dict[int, FrameRules], bool]:
    """The code of an image by address, the rules of its frames, and whether it tells lines."""
    header = HEADER.unpack_from(image)
    table, count, names_index = header[11], header[17], header[18]
    sections = list(SECTION.iter_unpack(image[table : table + count * SECTION.size]))
    names = sections[names_index][4]
    code: list[tuple[int, bytes]] = []
    rules: dict[int, FrameRules] = {}
    has_lines = False
    for name, kind, flags, address, offset, size, _, _, _, _ in sections:
        if flags & SHF_ALLOC and kind != SHT_NOBITS:
            if flags & SHF_EXECINSTR:
                code.append((address, image[offset : offset + size]))
            elif image.startswith(b".eh_frame\0", names + name):
                rules |= read_rules(image[offset : offset + size], address)
        elif image.startswith(b".debug_line\0", names + name):
            has_lines = True
    return code, rules, has_lines


def _functions(
    functions: tuple[Function, ...],
    code: list[tuple[int, bytes]],
    lines: tuple[Line, ...],
    rules: dict[int, FrameRules],
) -> list[JITCode]:
    starts = [line.address for line in lines]
    found = []
    for function in functions:
        address, end = function.address, function.address + function.size
        start, content = max(section for section in code if section[0] <= address)
        found.append(
            JITCode(
                address,
                content[address - start : end - start],
                function.demangled,
                lines[bisect_left(starts, address) : bisect_left(starts, end)],
                rules.get(address),
            )
        )
    return found
