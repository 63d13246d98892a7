"""The functions of an object: those of llvm-nm, whatever their symbols leave out."""

import re

import pytest
from objects import OBJECTS, assembled, emitted, functions_of
from tools import run, tool

from listeners.objectfile import ObjectFile


@pytest.mark.parametrize("name", OBJECTS)
def test_functions_are_those_that_llvm_nm_lists(name, tmp_path):
    data = emitted(name)
    path = tmp_path / "object.o"
    path.write_bytes(data)
    listed = run(tool("llvm-nm"), "--print-size", "--defined-only", "--numeric-sort", str(path))
    expected = re.findall(r"^(\w+) (\w+) T (.*)$", listed, re.MULTILINE)
    functions = functions_of(ObjectFile(data))
    assert [name for name, _, _, _ in functions] == ["fact", "pick"]
    assert [(f"{at:016x}", f"{size:016x}", name) for name, _, at, size in functions] == expected


def test_a_size_of_0_reaches_the_next_function_and_no_size_reaches_beyond_the_section(tmp_path):
    file = assembled(
        """
        .text
        .globl first, second, third, last, end
        first: nop
        inner: nop; nop
        .type second, @function
        second: nop; nop
        third: nop
        .size third, 100
        .type static, @function
        static: ret
        .size static, 1
        last: nop; nop; nop
        end:
        .section .text.cold, "ax"
        .globl cold
        .type cold, @function
        cold: ret
        """,
        tmp_path,
    )
    names = {file.section_name(index): index for index in range(len(file.sections))}
    text, cold = names[".text"], names[".text.cold"]
    assert functions_of(file) == [
        ("first", text, 0, 3),  # a local label is not a function
        ("second", text, 3, 2),
        ("third", text, 5, 5),
        ("static", text, 6, 1),
        ("last", text, 7, 3),
        ("cold", cold, 0, 1),
    ]


def test_of_several_names_at_an_address_the_global_function_is_given(tmp_path):
    file = assembled(
        """
        .text
        .globl label, public, another
        .weak weak
        .type local, @function
        .type weak, @function
        .type public, @function
        .type another, @function
        label: local: weak: public: another: nop
        .size public, 1
        """,
        tmp_path,
    )
    ((name, _, _, size),) = functions_of(file)
    assert (name, size) in (("public", 1), ("another", 1))
    file = assembled(".text; .globl label; label: .type local, @function; local: nop\n", tmp_path)
    assert [name for name, _, _, _ in functions_of(file)] == ["local"]
