"""What `perf script` says, taken apart; and what the files say of the places it names."""

from __future__ import annotations

import re
import shutil
import sys

import pytest
from tools import run, tool

from jitlisten.report.codefiles import CodeFile
from jitlisten.report.locations import Kind, Locator
from jitlisten.report.profile import Profile, collect
from jitlisten.report.samples import Call, Sample, parse_samples
from jitlisten.report.table import show_table
from listeners import JITListenerError

HEADER = "python 12/13 1.000000002:    1001001 cpu-clock:u: \n"
SOURCE = """
static inline __attribute__((always_inline)) int leaf(int a) {
    int sum = 0;
    for (int i = 0; i < a; i++)
        sum += i % 3 ? i * a : sum ^ a;
    return sum;
}
static inline __attribute__((always_inline)) int middle(int a) {
    int sum = leaf(a) + 1;
    return sum > 5 ? sum + leaf(a + 2) : sum;
}
int outer(int a) {
    int sum = middle(a);
    for (int i = 0; i < 3; i++)
        sum += a * i;
    return sum + middle(a + 1) * 2;
}
"""


def parsed(text: str):
    return list(parse_samples(text.splitlines(keepends=True)))


def calls(text: str) -> list[tuple[int, str, int, str]]:
    (sample,) = parsed(HEADER + text + "\n")
    return [(call.address, call.name, call.offset, call.dso) for call in sample.calls]


def test_a_sample_with_its_chain():
    (sample,) = parsed(HEADER + "\t 10 inner+0x2 (/a b.so)\n\t 7f outer(int)+0x30 ([vdso])\n\n")
    assert sample[:6] == ("cpu-clock:u", "python", 12, 13, 1_000_000_002, 1001001)
    assert [call.name for call in sample.calls] == ["inner", "outer(int)"]
    assert [call.dso for call in sample.calls] == ["/a b.so", "[vdso]"]


def test_samples_without_chains_are_a_line_each():
    line = HEADER.rstrip() + "  7f inner+0x2 (/a.so)\n"
    other = HEADER.replace("python 12", "   a b 99").rstrip() + " 0 [unknown] ([unknown])\n"
    samples = parsed(line + other + line)
    assert [sample.comm for sample in samples] == ["python", "a b", "python"]
    assert [sample.calls[0].name for sample in samples] == ["inner", "", "inner"]
    assert samples[0].calls[0] is samples[2].calls[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("\t 7f f (int)+0x1 (/x y.so (deleted))\n", (0x7F, "f (int)", 1, "/x y.so (deleted)")),
        ("\t 7f two\nlines+0x1 (/x.so)\n", (0x7F, "two?lines", 1, "/x.so")),
        ("\t 7f a\n\nb+0x1 (/x.so)\n", (0x7F, "a??b", 1, "/x.so")),
        ("\t 7f f+0x1 (/y)+0x2 (/x.so)\n", (0x7F, "f+0x1 (/y)", 2, "/x.so")),
        ("\t 7f \x1b[31mred+0x1 (/x.so)\n", (0x7F, "?[31mred", 1, "/x.so")),
        ("\t 7f [unknown] (/x.so)\n", (0x7F, "", 0, "/x.so")),
    ],
)
def test_names_of_every_kind(line, expected):
    assert calls(line) == [expected]
    assert calls("\t 1 before+0x0 (/x.so)\n" + line)[1:] == [expected]


@pytest.mark.parametrize("comm", ["\ta", "a\tb", "a\n\tb", "\n", "\t7f f+0x1 (/x)"])
def test_samples_of_threads_whose_names_are_hard_to_read(comm):
    named = HEADER.replace("python", comm) + "\t 7f f+0x1 (/x.so)\n\n"
    other = HEADER + "\t 10 g+0x2 (/x.so)\n\n"
    samples = parsed(other + named + other)
    assert [[call.name for call in sample.calls] for sample in samples] == [["g"], ["f"], ["g"]]
    assert samples[1].comm == comm.rpartition("\n")[2].replace("\t", "?")


def test_samples_without_a_time_have_none():
    (sample,) = parsed("a b 12/13    1001001 cpu-clock: \n\t 10 inner+0x2 (/x.so)\n\n")
    assert sample[:6] == ("cpu-clock", "a b", 12, 13, 0, 1001001)
    assert [call.name for call in sample.calls] == ["inner"]


def test_a_sample_without_calls_and_one_that_breaks_off_count():
    assert [sample.calls for sample in parsed(HEADER + "\n" + HEADER)] == [(), ()]
    samples = parsed(HEADER + "\t 7f broken\n" + HEADER + "\t 1 f+0x1 (/x)\n\n")
    assert [len(sample.calls) for sample in samples] == [1, 1]
    assert samples[0].calls[0].dso == "[unknown]"


def test_text_that_is_no_sample_at_all_is_an_error():
    assert parsed("") == []
    with pytest.raises(JITListenerError, match="no sample: 'hello"):
        parsed("hello\nworld\n")


@pytest.mark.parametrize(
    ("dso", "address", "kind"),
    [
        ("/tmp/perf-12.map", 0x7F00, Kind.JIT),
        ("/root/.debug/jit/jit-listeners-2026.ab/steps-12-abcdefgh.so", 0x1000, Kind.JIT),
        ("/tmp/jitted-12-3.so", 0x80, Kind.JIT),
        ("/memfd:code (deleted)", 0, Kind.JIT),
        ("/usr/lib/libLLVM-14-abcdefgh.so", 0x80, Kind.NATIVE),
        ("/usr/lib/libc.so.6", 0x80, Kind.NATIVE),
        ("/usr/lib/libpython3.13t.so.1.0", 0x80, Kind.PYTHON),
        ("/usr/bin/python3.11", 0x80, Kind.PYTHON),
        ("/usr/lib/python3.11/x.so", 0x80, Kind.NATIVE),
        ("[vdso]", 0x80, Kind.NATIVE),
        ("[unknown]", 0x80, Kind.NATIVE),
        ("[unknown]", 0xFFFF_FFFF_8000_0000, Kind.KERNEL),
        ("[kernel.kallsyms]", 0, Kind.KERNEL),
        ("[nf_tables]", 0, Kind.KERNEL),
        ("/lib/modules/6.1/kernel/fs/ext4.ko.xz", 0, Kind.KERNEL),
        ("bpf_prog_6deef7357e7b4530", 0, Kind.KERNEL),
    ],
)
def test_kinds_of_code(dso, address, kind):
    (location,) = Locator().locate(Call(address, "name", 0, dso), True)
    assert location.frame.kind is kind
    assert location.frame.name == "name"


def test_a_chain_that_is_cut_off_does_not_begin_in_the_kernel():
    (location,) = Locator().locate(Call((1 << 64) - 1, "", 0, "[unknown]"), False)
    assert location.frame[:2] == (Kind.NATIVE, "[truncated]")


def test_python_functions():
    (location,) = Locator().locate(Call(0, "py::C.f:/a:b.py", 0, "/tmp/perf-1.map"), False)
    assert location.frame == (Kind.PYTHON, "C.f", "/a:b.py", False)
    assert not location.frame.is_interpreter


def test_a_python_function_without_a_name_is_unknown():
    profiles: dict[str, Profile] = {}
    collect(parsed(HEADER + "\t 1 py:::x+0x1 (/tmp/perf-12.map)\n\n"), Locator(), profiles)
    ((_, location),) = profiles["cpu-clock:u"].stacks
    assert location.frame == (Kind.PYTHON, "[unknown]", "x", False)


@pytest.mark.tools
@pytest.mark.parametrize("version", [4, 5])
def test_inlined_functions_and_lines_are_those_that_addr2line_tells(version, tmp_path):
    (tmp_path / "code.c").write_text(SOURCE)
    library = tmp_path / "jitted-1-1.so"
    options = "-O2", f"-gdwarf-{version}", "-gno-statement-frontiers", "-shared", "-fPIC"
    run(tool("gcc"), *options, "-o", str(library), str(tmp_path / "code.c"))
    file = CodeFile(library)
    (outer,) = (function for function in file.functions if function.name == "outer")
    depths = set()
    for address in range(outer.address, outer.address + outer.size):
        said = run(tool("addr2line"), "-i", "-f", "-e", str(library), f"{address:#x}").split("\n")
        expected = [
            (name, re.sub(r" \(.*", "", place))
            for name, place in zip(said[:-1:2], said[1::2], strict=True)
        ]
        places = file.places(address)
        found = [(place.inlined or "outer", f"{place.file}:{place.line}") for place in places]
        assert found[::-1] == expected
        depths.add(len(found))
    assert depths == {1, 2, 3}


@pytest.mark.tools
def test_a_malformed_file_of_code_is_named_and_the_rest_goes_on(tmp_path):
    (tmp_path / "jitted-1-1.so").write_bytes(b"\x7fELF\2\1\1" + b"\xff" * 200)
    locator = Locator()
    for _ in range(2):
        (location,) = locator.locate(Call(0x80, "f", 0, str(tmp_path / "jitted-1-1.so")), True)
        assert location.frame.name == "f"
    (problem,) = locator.problems
    assert "jitted-1-1.so: malformed ELF file" in problem


@pytest.mark.tools
def test_the_copy_that_perf_keeps_is_read_where_the_file_is_gone(tmp_path, monkeypatch):
    source = tmp_path / "code.c"
    source.write_text(SOURCE)
    library = tmp_path / "jitted-1-1.so"
    run(tool("gcc"), "-g", "-shared", "-fPIC", "-o", str(library), str(source))
    (outer,) = (f for f in CodeFile(library).functions if f.name == "outer")
    home = tmp_path / "home"
    copy = home / ".debug" / str(library)[1:] / "0123456789abcdef" / "elf"
    copy.parent.mkdir(parents=True)
    shutil.move(library, copy)
    monkeypatch.setenv("HOME", str(home))
    locator = Locator()
    (location,) = locator.locate(Call(outer.address, "outer", 0, str(library)), True)
    assert (location.file, location.line) == (str(source), 12)
    assert not locator.missing

    # Of another process of that number: which one was recorded?
    shutil.copytree(copy.parent, copy.parent.with_name("fedcba9876543210"))
    locator = Locator()
    (location,) = locator.locate(Call(outer.address, "outer", 0, str(library)), True)
    assert (location.frame.name, location.line) == ("outer", 0)
    assert locator.missing == [str(library)]


def test_where_all_functions_are_cold_the_hottest_are_shown(capsys):
    def sample(number: int) -> Sample:
        call = Call(number, f"f{number:03}", 0, "/tmp/perf-1.map")
        return Sample("cpu-clock", "program", 1, 1, number, 1 + number // 299, (call,))

    profiles: dict[str, Profile] = {}
    collect(map(sample, range(300)), Locator(), profiles)
    show_table(profiles["cpu-clock"])
    said = capsys.readouterr().out
    assert said.index("f299") < said.index("f000") < said.index("f008")
    assert "f009" not in said
    assert "290 more JIT functions: 96.3 % self" in said


def test_a_user_without_a_home_has_no_copies():
    code = """
import os
from jitlisten.report.locations import Locator
from jitlisten.report.samples import Call
os.environ.pop("HOME", None)
os.setuid(54321)
locator = Locator()
(location,) = locator.locate(Call(0x80, "f", 0, "/nowhere/jitted-1-1.so"), True)
print(location.frame.name, *locator.missing)
"""
    assert run(sys.executable, "-c", code) == "f /nowhere/jitted-1-1.so\n"


@pytest.mark.tools
def test_the_line_of_a_caller_is_that_of_the_call_not_the_one_it_returns_to(tmp_path):
    source = tmp_path / "code.c"
    source.write_text("void g(void);\nvoid h(void);\nvoid f(void) {\n    g();\n    h();\n}\n")
    library = tmp_path / "jitted-1-1.so"
    run(tool("gcc"), "-g", "-O0", "-shared", "-fPIC", "-o", str(library), str(source))
    file = CodeFile(library)
    (f,) = (function for function in file.functions if function.name == "f")
    instructions = file.instructions(f)
    calls = [i for i, (_, text) in enumerate(instructions) if re.match(r"(call|bl)\b", text)]
    for index, line in zip(calls, (4, 5), strict=True):
        address = instructions[index + 1].address
        call = Call(address, "f", address - f.address, str(library))
        (caller,) = Locator().locate(call, False)
        (sampled,) = Locator().locate(call, True)
        assert (caller.line, sampled.line) == (line, line + 1)
