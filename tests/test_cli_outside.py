"""What `jitlisten list`, `map`, `dump` and `symbolize` have in common: output and refusals."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside import NOBODY, command, listed, refused, running
from perftools import container
from targets import line, target
from tools import JITLISTEN, PROGRAMS, run

import jitlisten
from gdbjit import descriptors

pytestmark = pytest.mark.tools

ANSWER = "define i64 @answer() { ret i64 42 }"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("list",), "give the number of a process"),
        (("list", "one"), "'one' is no number of a process"),
        (("list", "1_0"), "'1_0' is no number of a process"),
        (("list", "1", "--core", "core"), "give the number of a process, or --core FILE"),
        (("list", "1", "--watch", "-1"), "'-1' is no number of seconds"),
        (("list", "1", "--watch", "nan"), "'nan' is no number of seconds"),
        (("list", "1", "--watch", "one"), "'one' is no number of seconds"),
        (("map",), "PID"),
        (("map", "one"), "'one' is no number of a process"),
        (("dump",), "give the number of a process"),
        (("symbolize",), "give the number of a process"),
        (("symbolize", "0x10"), "'0x10' is no number of a process"),
        (("symbolize", "1", "steps"), "'steps' is no hexadecimal number"),
    ],
)
def test_what_was_not_meant_is_explained(
    arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        jitlisten.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"jitlisten {arguments[0]}: error: ")
    assert problem in said


def test_a_reader_that_has_seen_enough_is_no_error(tiny: int) -> None:
    quoted = shlex.join(JITLISTEN)
    assert "Traceback" not in run("sh", "-c", f"{quoted} list {tiny} --watch 0.01 --json | head -1")


def test_names_that_would_disturb_a_terminal_are_shown_harmlessly() -> None:
    with running("names") as process:
        (found,) = listed(process.pid)
        assert [each["name"] for each in found["functions"]] == ["one\ntwo", "\x1b[31mred"]
        table, _ = command("list", process.pid)
        address = found["functions"][1]["address"]
        explained, _ = command("symbolize", process.pid, hex(address))
    assert re.search(r" one\?two\n", table)
    assert re.search(rf" {address:#x} +\d+ +\?\[31mred\n", table)
    assert explained == f"{address:#x} ?[31mred+0x0\n"


def test_a_full_disk_is_said(tiny: int, tmp_path: Path) -> None:
    for name, program in {
        "list": (*JITLISTEN, "list", str(tiny)),
        "clean": container(tmp_path, *JITLISTEN, "clean"),
        "--version": (*JITLISTEN, "--version"),
    }.items():
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                program,
                stdout=full,
                stderr=subprocess.PIPE,
                env={**os.environ, "JITDUMPDIR": "/proc"},
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr == f"jitlisten {name}: cannot write: No space left on device\n"


def test_errors_stay_out_of_the_output_where_stderr_is_closed() -> None:
    assert run("sh", "-c", 'exec "$@" 2>&-', "sh", *JITLISTEN, "list", "99999999", status=1) == ""


@pytest.mark.parametrize("option", ["list {}", "list {} --json", "symbolize {} 0x10", "--help"])
def test_a_closed_stdout_is_no_error(tiny: int, option: str) -> None:
    arguments = option.format(tiny).split()
    assert run("sh", "-c", 'exec "$@" 2>&1 >&-', "sh", *JITLISTEN, *arguments) == ""


@pytest.fixture
def one_of_three_malformed() -> Iterator[int]:
    """The number of a process with three objects, of which the second is no ELF file."""
    script = f"""
import llvmlite.binding as llvm
llvm.initialize_native_target(); llvm.initialize_native_asmprinter()
def load():
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly({ANSWER!r}), machine)
    engine.finalize_object()
    return engine
kept = load(), gdbjit.register(b"no object", trusted=True), load()
say("ready"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        yield process.pid


@pytest.mark.parametrize(
    ("arguments", "pattern", "count"),
    [
        (["list", "{pid}"], r" answer\n", 2),
        (["symbolize", "{pid}", "{0}", "{1}"], r" answer\+0x1\n", 2),
        (["stackmap", "{pid}", "--json"], '"name": "answer"', 2),
        (["dump", "{pid}", "-o", "{directory}"], r"answer-[0-9a-f]+\.elf\n", 2),
    ],
)
def test_what_can_be_read_is_shown_and_what_cannot_is_said(
    arguments: list[str],
    pattern: str,
    count: int,
    one_of_three_malformed: int,
    tmp_path: Path,
) -> None:
    pid = one_of_three_malformed
    addresses = [
        hex(function["address"] + 1)
        for found in json.loads(command("list", "--json", pid, status=1)[0])["objects"]
        for function in found["functions"]
    ]
    words = [word.format(*addresses, pid=pid, directory=tmp_path) for word in arguments]
    out, err = command(*words, status=1)
    assert len(re.findall(pattern, out)) == count, out
    assert err.startswith(f"jitlisten {arguments[0]}: process {pid}: ")
    assert err.count("\n") == 1


def test_no_map_is_written_where_an_object_cannot_be_read(one_of_three_malformed: int) -> None:
    pid = one_of_three_malformed
    said = refused("map", pid)
    assert f"process {pid}: the object of the entry at 0x" in said
    assert not Path(f"/tmp/perf-{pid}.map").exists()


def test_what_two_lists_have_is_shown_once_as_that_of_the_first(tmp_path: Path) -> None:
    program = (sys.executable, f"{PROGRAMS}/jit.py", "mcjit", "--all", "--loop")
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert len([d for d in descriptors(process.pid) if d.entries()]) == 2
        (found,) = listed(process.pid)
        assert found["engine"] == "libllvmlite.so"
        assert len(command("dump", process.pid, "-o", tmp_path)[0].splitlines()) == 1
        assert "2 functions in" in command("map", process.pid)[0]
        process.communicate()
    Path(f"/tmp/perf-{process.pid}.map").unlink()


# What cannot be looked at


def test_a_wrong_number_and_a_process_without_a_jit_are_one_line_each() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        try:
            time.sleep(0.1)
            for name in ("list", "map", "dump", "symbolize"):
                assert "no such process" in refused(name, 1 << 22)
                assert "not a process id" in refused(name, 0)
                said = refused(name, sleeping.pid)
                assert f"process {sleeping.pid}: no JIT: " in said
        finally:
            sleeping.kill()
    assert not Path(f"/tmp/perf-{sleeping.pid}.map").exists()


def test_a_jit_that_has_nothing_loaded_is_one_line() -> None:
    with target("import llvmlite.binding; say('ready'); wait()") as process:
        assert line(process) == "ready"
        assert "libllvmlite.so has no object" in refused("list", process.pid)


def test_that_jitlink_s_code_is_not_listed_is_said_where_there_may_be_some() -> None:
    note = " has no object (LLVM does not list what JITLink links; `jitlisten run --gdb` does)\n"
    program = (sys.executable, f"{PROGRAMS}/jit.py", "jitlink", "--attach", "never", "--loop")
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        for name in ("list", "map", "dump", "symbolize", "stackmap"):
            assert refused(name, process.pid).endswith(f"libllvmlite.so{note}")
        process.communicate()
    with target("gdbjit.own_descriptor(); say('ready'); wait()") as process:
        assert line(process) == "ready"
        assert refused("list", process.pid).endswith(" has no object\n")


def test_no_right_to_look_is_explained() -> None:
    # This user may not even read the modules of the tests' Python: all is loaded before.
    script = f"""
import os
from jitlisten import main
for name in ("list", "map"):
    main([name, "0"])
if not os.geteuid():
    os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)
for name in ("list", "map"):
    print(main([name, "1"]), flush=True)
"""
    said = run(sys.executable, "-c", script).splitlines()[2:]
    assert said[1] == said[3] == "1"
    for problem in (said[0], said[2]):
        assert problem.startswith(("jitlisten list: process 1: ", "jitlisten map: process 1: "))
        assert "ptrace_scope" in problem
        assert "--cap-add=SYS_PTRACE" in problem
