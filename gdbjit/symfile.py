"""What may be registered: an image that a debugger can read without being led out of its bytes."""

from __future__ import annotations

from . import elf
from .errors import GDBJITError

_TYPES = (elf.ET_REL, elf.ET_EXEC, elf.ET_DYN)
_WITHOUT_BYTES = (elf.SHT_NULL, elf.SHT_NOBITS)
_SYMBOLS = (elf.SHT_SYMTAB, elf.SHT_DYNSYM)


def check(symfile: bytes, register_code: int) -> None:
    """Raise GDBJITError unless `symfile` is plausible: of this machine, with its tables inside.

    The contents of sections are not looked at. No section may claim the address `register_code`,
    where the debugger has its breakpoint: gdb 13 aborts when it cannot tell whose that is.
    """
    header, form = elf.read_header(symfile)
    program, _ = elf.native()
    if header.ident[4:6] != program.ident[4:6] or header.machine != program.machine:
        raise GDBJITError(
            f"image is for class {header.ident[4]}, byte order {header.ident[5]}, machine "
            f"{header.machine}; this process has class {program.ident[4]}, byte order "
            f"{program.ident[5]}, machine {program.machine}: compile for this machine"
        )
    if header.type not in _TYPES:
        raise GDBJITError(f"e_type is {header.type}: not an object, a program or a library")
    if header.phnum:
        if header.phentsize != form.segment.size:
            raise GDBJITError(
                f"e_phentsize is {header.phentsize}, where {form.segment.size} is right"
            )
        _inside(symfile, "program header table", header.phoff, header.phnum * form.segment.size)
    if header.shentsize != form.section.size:
        raise GDBJITError(f"e_shentsize is {header.shentsize}, where {form.section.size} is right")
    if not header.shoff:
        raise GDBJITError("e_shoff is 0: debuggers find symbols by section headers, add them")
    count, names = header.shnum, header.shstrndx
    if not count or names == elf.SHN_XINDEX:
        # Numbers that do not fit the header are in section 0.
        _inside(symfile, "section header table", header.shoff, form.section.size)
        first = elf.Section(*form.section.unpack_from(symfile, header.shoff))
        count = count or first.size
        names = first.link if names == elf.SHN_XINDEX else names
    if header.shoff + count * form.section.size > len(symfile):
        _inside(symfile, "section header table", header.shoff, count * form.section.size)
    if not 0 < names < count:
        raise GDBJITError(f"e_shstrndx is {names}: there are {count} sections")
    _check_sections(symfile, form, header.shoff, count, names, register_code)


def _check_sections(
    symfile: bytes, form: elf.Format, table: int, count: int, names: int, register_code: int
) -> None:
    end = len(symfile)
    _, kind, _, _, offset, names_size, *_ = form.section.unpack_from(
        symfile, table + names * form.section.size
    )
    names_end = offset + names_size
    if names_end > end:
        _inside(symfile, f"section {names}", offset, names_size)
    if kind != elf.SHT_STRTAB or symfile[names_end - 1 : names_end] != b"\0":
        raise GDBJITError(f"section {names}: not a string table, but section names are there")
    headers = memoryview(symfile)[table : table + count * form.section.size]
    for index, fields in enumerate(form.section.iter_unpack(headers)):
        name, kind, flags, address, offset, size, link, info, _align, entry_size = fields
        if name >= names_size:
            raise GDBJITError(f"section {index}: sh_name is {name} of {names_size} bytes")
        if offset + size > end and kind not in _WITHOUT_BYTES:
            _inside(symfile, f"section {index}", offset, size)
        if link >= count:
            raise GDBJITError(f"section {index}: sh_link is {link} of {count} sections")
        if address <= register_code < address + size and flags & elf.SHF_ALLOC:
            raise GDBJITError(
                f"section {index}: {size} bytes at {address:#x} cover "
                f"__jit_debug_register_code at {register_code:#x}: set sh_addr to the load address"
            )
        if kind in form.entry_sizes:
            if entry_size != form.entry_sizes[kind] or size % entry_size:
                raise GDBJITError(
                    f"section {index}: sh_entsize is {entry_size} and sh_size {size}, where "
                    f"entries have {form.entry_sizes[kind]} bytes"
                )
            # Of symbols the first one that is not local, of relocations the section they change.
            limit = size // entry_size if kind in _SYMBOLS else count - 1
            if info > limit:
                raise GDBJITError(f"section {index}: sh_info is {info}, more than {limit}")


def _inside(symfile: bytes, what: str, offset: int, size: int) -> None:
    if offset + size > len(symfile):
        raise GDBJITError(
            f"{what}: {size} bytes at {offset:#x} are not in an image of {len(symfile)} bytes: "
            "give the whole image"
        )
