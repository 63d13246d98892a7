"""`jitlisten list`, `map`, `dump` and `symbolize`, of programs that know nothing of us."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from targets import line, target
from test_descriptors_of_programs import program_of_i386
from tools import JITLISTEN, PROGRAMS, gdb, perf_symbols, run, tool

import gdbjit
import jitlisten
from perfmap import read_map

pytestmark = pytest.mark.tools

NOBODY = 65534


def command(
    *arguments: object, status: int = 0, text: str | None = None, **options: Any
) -> tuple[str, str]:
    """What the command prints on stdout and stderr."""
    done = subprocess.run(
        [*JITLISTEN, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def listed(*arguments: object) -> list[dict[str, Any]]:
    """The objects that `list` finds."""
    objects: list[dict[str, Any]] = json.loads(command("list", "--json", *arguments)[0])["objects"]
    return objects


def functions(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["demangled"]: each for found in objects for each in found["functions"]}


def refused(*arguments: object, **options: Any) -> str:
    """The one line in which the command says what is wrong."""
    out, err = command(*arguments, status=1, **options)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith(f"jitlisten {arguments[0]}: ")
    return err


@contextmanager
def running(*program: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """One of the programs of `unaware.py`, once it has compiled all."""
    with subprocess.Popen(
        [sys.executable, f"{PROGRAMS}/unaware.py", *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            assert line(process) == "ready"
            yield process
        finally:
            process.kill()
            Path(f"/tmp/perf-{process.pid}.map").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def numba() -> Iterator[int]:
    """The number of a Numba program that was started without us."""
    with running("numba") as process:
        yield process.pid


@pytest.fixture(scope="module")
def tiny() -> Iterator[int]:
    with running("mcjit") as process:
        yield process.pid


# What is there


def test_list_shows_what_numba_has_compiled(numba: int) -> None:
    objects = listed(numba)
    assert {each["engine"] for each in objects} == {"libllvmlite.so"}
    names = list(functions(objects))
    assert any(name.endswith("numba_longest.<locals>.steps(int64)") for name in names)
    assert any(name.endswith(".steps(int64) [cpython wrapper]") for name in names)
    table, _ = command("list", numba)
    for name, function in functions(objects).items():
        assert re.search(rf"{function['address']:#x} +{function['size']} +{re.escape(name)}", table)


def test_list_shows_functions_and_sections_at_their_addresses(tiny: int) -> None:
    (found,) = listed(tiny)
    steps, longest = found["functions"]
    assert (steps["name"], longest["name"]) == ("steps", "longest")
    (code,) = (section for section in found["sections"] if section["flags"] & 4)
    assert code["address"] <= steps["address"] < longest["address"]
    assert longest["address"] + longest["size"] <= code["address"] + code["size"]
    assert f"{steps['address']:#x} <steps>" in gdb("print &'steps'", pid=tiny)
    maps = Path(f"/proc/{tiny}/maps").read_text()
    ranges = re.findall(r"^(\w+)-(\w+) r-xp", maps, re.MULTILINE)
    assert any(int(start, 16) <= code["address"] < int(end, 16) for start, end in ranges)


def test_list_shows_what_listeners_have_registered(tmp_path: Path) -> None:
    """Linked images, in a descriptor of our own, of what JITLink has told nobody."""
    program = (sys.executable, f"{PROGRAMS}/jit.py", "jitlink", "--all", "--loop")
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = process.stdout.readline().split()[1]
        objects = listed(process.pid)
        assert {name: hex(f["address"]) for name, f in functions(objects).items()}[
            "steps"
        ] == address
        (path,) = command("dump", process.pid, "-o", tmp_path)[0].split()
        place, _ = command("symbolize", process.pid, address)
        assert re.fullmatch(rf"{address} steps\+0x0 at .*collatz.tiny:3\n", place)
        process.communicate()
    Path(f"/tmp/perf-{process.pid}.map").unlink()
    assert "<steps>:" in run(tool("objdump"), "-d", path)


def test_watch_tells_the_age_of_what_comes() -> None:
    script = """
first = gdbjit.register(image)
say("ready"); wait()
second = gdbjit.register(image)
say("more"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        watching = subprocess.Popen(
            [*JITLISTEN, "list", str(process.pid), "--json", "--watch", "0.05"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with watching:
            assert watching.stdout
            assert watching.stderr
            before = json.loads(watching.stdout.readline())["objects"]
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
            assert line(process) == "more"
            while True:
                ages = [o["age"] for o in json.loads(watching.stdout.readline())["objects"]]
                if len(ages) == 2 and ages[1]:
                    break
            process.kill()
            process.wait()
            for last in watching.stdout:
                assert len(json.loads(last)["objects"]) == 2
            assert watching.wait() == 1
            assert re.fullmatch(
                rf"jitlisten list: process {process.pid}: .*\n", watching.stderr.read()
            )
    assert [found["age"] for found in before] == [None]
    assert ages[0] is None
    assert 0 < ages[1] < 30


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("list", "one"),
        ("list", "1", "--core", "core"),
        ("list", "1", "--watch", "-1"),
        ("list", "1", "--watch", "nan"),
        ("map",),
        ("dump",),
        ("symbolize",),
        ("symbolize", "0x10"),
        ("symbolize", "1", "steps"),
    ],
)
def test_what_was_not_meant_is_explained(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        jitlisten.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("jitlisten")


def test_a_reader_that_has_seen_enough_is_no_error(tiny: int) -> None:
    quoted = shlex.join(JITLISTEN)
    assert "Traceback" not in run("sh", "-c", f"{quoted} list {tiny} --watch 0.01 --json | head -1")


def test_llvmlite_is_not_needed(numba: int) -> None:
    script = (
        "import sys, jitlisten; status = jitlisten.main(['list', sys.argv[1]]);"
        " sys.exit(status or 'llvmlite' in sys.modules)"
    )
    assert "steps" in run(sys.executable, "-c", script, str(numba))


def test_names_that_would_disturb_a_terminal_are_shown_harmlessly() -> None:
    with running("names") as process:
        (found,) = listed(process.pid)
        assert [each["name"] for each in found["functions"]] == ["one\ntwo", "\x1b[31mred"]
        table, _ = command("list", process.pid)
        address = found["functions"][1]["address"]
        explained, _ = command("symbolize", process.pid, hex(address))
    assert re.search(r" one\?two ", table)
    assert re.search(rf" {address:#x} +\d+ +\?\[31mred ", table)
    assert explained == f"{address:#x} ?[31mred+0x0\n"


def test_a_log_of_any_encoding_is_explained(tiny: int) -> None:
    address = listed(tiny)[0]["functions"][0]["address"]
    done = subprocess.run(
        [*JITLISTEN, "symbolize", str(tiny)],
        input=b"\xff\xfe %x" % address,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(b"\xff\xfe %x (steps+0x0" % address)
    assert run("sh", "-c", f"{shlex.join(JITLISTEN)} symbolize {tiny} <&-") == ""


def test_a_full_disk_is_said(tiny: int) -> None:
    for arguments in (("list", tiny), ("clean",)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*JITLISTEN, *map(str, arguments)],
                stdout=full,
                stderr=subprocess.PIPE,
                env={**os.environ, "JITDUMPDIR": "/proc"},
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr == f"jitlisten {arguments[0]}: cannot write: No space left on device\n"


def test_errors_stay_out_of_the_output_where_stderr_is_closed() -> None:
    assert run("sh", "-c", 'exec "$@" 2>&-', "sh", *JITLISTEN, "list", "99999999", status=1) == ""


# Names for perf


def test_map_names_a_program_that_is_being_recorded(tmp_path: Path) -> None:
    data = tmp_path / "perf.data"
    with running("numba") as process:
        options = ("record", "-q", "-e", "cpu-clock", "-o", str(data), "-p", str(process.pid))
        run(tool("perf"), *options, "--", "sleep", "1")
        out, _ = command("map", process.pid)
        entries = read_map(f"/tmp/perf-{process.pid}.map")
        assert out == f"{len(entries)} functions in /proc/{process.pid}/root/tmp/" + (
            f"perf-{process.pid}.map\n"
        )
        shares = perf_symbols(data)
    found = {name: share for name, share in shares.items() if ".steps(" in name}
    assert sum(found.values()) > 50, shares


def test_map_is_written_where_perf_looks_in_a_container(tmp_path: Path) -> None:
    """A pid and a mount namespace of its own, with another /tmp."""
    # What is needed of the old /tmp comes to the same place in the new one.
    needed = {str(PROGRAMS.parents[1]), sys.prefix, sys.base_prefix}
    inner = "mount --rbind /tmp /mnt; mount -t tmpfs none /tmp; "
    for path in sorted(path for path in needed if path.startswith("/tmp/")):
        inner += f"mkdir -p {path}; mount --rbind /mnt{path.removeprefix('/tmp')} {path}; "
    inner += 'exec "$@"'
    program = [sys.executable, f"{PROGRAMS}/unaware.py", "mcjit"]
    new = ["--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
    with subprocess.Popen(
        [tool("unshare"), *new, "sh", "-c", inner, "sh", *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert line(process) == "ready"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            pid = int(children)
            data = tmp_path / "perf.data"
            options = ("record", "-q", "-e", "cpu-clock", "-o", str(data), "-p", str(pid))
            run(tool("perf"), *options, "--", "sleep", "0.5")
            out, _ = command("map", pid)
            assert out == f"2 functions in /proc/{pid}/root/tmp/perf-1.map\n"
            assert not Path(f"/tmp/perf-{pid}.map").exists()
            # Only root's perf may go there.
            assert os.geteuid() or perf_symbols(data)["steps"] > 50
        finally:
            process.kill()


def test_map_keeps_the_lines_of_the_process_and_replaces_what_is_wrong(tiny: int) -> None:
    steps, longest = listed(tiny)[0]["functions"]
    path = Path(f"/tmp/perf-{tiny}.map")
    kept = (
        "1000 10 py::main\n",
        "not a line\n",
        f"{longest['address']:x} {longest['size']:x} longest\n",
    )
    wrong = f"{steps['address'] + 16:x} 8 something else\n"
    path.write_text(kept[0] + wrong + kept[1] + kept[2])
    command("map", tiny)
    lines = [text for text in path.read_text().splitlines(True) if text != "\n"]
    assert sorted(lines) == sorted([*kept, f"{steps['address']:x} {steps['size']:x} steps\n"])
    written = path.read_bytes()
    command("map", tiny)
    assert path.read_bytes() == written
    path.unlink()


def test_map_empties_the_file_of_a_dead_process(tiny: int) -> None:
    path = Path(f"/tmp/perf-{tiny}.map")
    path.write_text("1000 10 of_another_program\n")
    os.utime(path, (0, 0))
    command("map", tiny)
    assert [entry.name for entry in read_map(path)] == ["steps", "longest"]
    path.unlink()


def test_map_belongs_to_the_user_of_the_process(tmp_path: Path) -> None:
    """Which for an ordinary user can only be the same one."""
    user = os.geteuid() or NOBODY
    with running("mcjit", *(() if os.geteuid() else ("--nobody",))) as process:
        path = Path(f"/tmp/perf-{process.pid}.map")
        command("map", process.pid)
        status = path.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (user, 0o600)
        path.unlink()
        precious = tmp_path / "precious"
        precious.write_text("precious")
        path.symlink_to(precious)
        assert str(path) in refused("map", process.pid)
        assert precious.read_text() == "precious"


# Files


def test_dump_writes_files_for_gdb_and_objdump(tiny: int, tmp_path: Path) -> None:
    steps = listed(tiny)[0]["functions"][0]
    out, _ = command("dump", tiny, "-o", tmp_path / "images")
    (path,) = out.split()
    assert path == f"{tmp_path}/images/steps-{steps['address']:x}.elf"
    assert re.search(rf"^0*{steps['address']:x} <steps>:", run(tool("objdump"), "-d", path), re.M)
    said = gdb(f"symbol-file {path}", f"info line *{steps['address']:#x}", program=("-c", "pass"))
    assert re.search(r'Line 3 of ".*collatz.tiny" starts at address \w+ <steps>', said)


# Addresses


def test_symbolize_tells_function_offset_and_line(tiny: int) -> None:
    steps = listed(tiny)[0]["functions"][0]
    address = steps["address"]
    out, _ = command("symbolize", tiny, f"{address + 16:#x}", f"{address:x}", "0x1000")
    first, second, third = out.splitlines()
    assert re.fullmatch(rf"{address + 16:#x} steps\+0x10 at /.*/collatz\.tiny:5", first)
    assert re.fullmatch(rf"{address:x} steps\+0x0 at /.*/collatz\.tiny:3", second)
    assert third == "0x1000 ??"


def test_symbolize_explains_a_log_and_keeps_its_text(tiny: int) -> None:
    address = listed(tiny)[0]["functions"][0]["address"]
    log = f"\tpc {address:#018x}: crash\nfirst 0x400000 [<{address:x}>] last, no end"
    out, _ = command("symbolize", tiny, text=log)
    assert re.sub(r" \(steps\+0x0 at /.*?collatz\.tiny:3\)", "", out) == log
    assert out.count("(steps+0x0 at ") == 2


def test_symbolize_knows_what_came_while_it_reads(tmp_path: Path) -> None:
    with running("churn", "1") as process:
        reading = subprocess.Popen(
            [*JITLISTEN, "symbolize", str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with reading:
            assert reading.stdin
            assert reading.stdout
            time.sleep(1.5)
            for _ in range(20):
                newest = functions(listed(process.pid)).popitem()
                time.sleep(1.1)
                reading.stdin.write(f"{newest[1]['address']:#x}\n")
                reading.stdin.flush()
                if "pass_" in reading.stdout.readline():
                    break
            else:
                pytest.fail("nothing new was found")
            reading.stdin.close()


# Core files


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core file of a program that has crashed in JIT'd code.

    The kernel writes it here, or hands it to somebody who keeps it: then gdb does.
    """
    directory = tmp_path_factory.mktemp("crashed")
    program = (f"{PROGRAMS}/unaware.py", "mcjit", "--crash")
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    status = subprocess.run(
        [sys.executable, *program],
        cwd=directory,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (limit, limit)),
        stdin=subprocess.DEVNULL,
        check=False,
    ).returncode
    assert status == -signal.SIGSEGV
    for core in directory.glob("core*"):
        return core
    core = directory / "core"
    gdb("run", f"gcore {core}", "kill", program=program)
    return core


def test_a_core_file_tells_where_jitted_code_crashed(crashed: Path) -> None:
    names = list(functions(listed("--core", crashed)))
    assert names == ["steps", "longest"]
    assert "longest" in command("list", "--core", crashed)[0]
    trace = run(
        tool("gdb"), "-q", "-nx", "-batch", "-ex", "backtrace", sys.executable, str(crashed)
    )
    assert re.search(r"#0  (0x\w+ in )?steps \(n=1\) at .*collatz.tiny:4", trace)
    assert re.search(r"#1  (0x\w+) in longest \(limit=10000\) at .*collatz.tiny:18", trace)
    (pc,) = re.findall(r"#1  (0x\w+) in longest", trace)
    out, _ = command("symbolize", "--core", crashed, pc)
    assert re.fullmatch(rf"{pc} longest\+0x\w+ at /.*/collatz\.tiny:18\n", out)
    assert "(longest+" in command("symbolize", "--core", crashed, text=trace)[0]


def test_a_core_file_gives_the_code_as_files(crashed: Path, tmp_path: Path) -> None:
    (path,) = command("dump", "--core", crashed, "-o", tmp_path)[0].split()
    assert "<steps>:" in run(tool("objdump"), "-d", path)


def test_a_core_of_gdb_with_little_in_it_is_read_too(tiny: int, tmp_path: Path) -> None:
    """What is mapped from files and unchanged is read from these."""
    core = tmp_path / "core"
    Path(f"/proc/{tiny}/coredump_filter").write_text("0x1")
    gdb("set use-coredump-filter on", f"gcore {core}", pid=tiny)
    assert listed("--core", core) == listed(tiny)


def test_what_is_no_core_file_is_said_so(tmp_path: Path, crashed: Path) -> None:
    assert "No such file" in refused("list", "--core", tmp_path / "none")
    assert "not a regular file" in refused("list", "--core", tmp_path)
    assert "not an ELF file" in refused("list", "--core", __file__)
    assert "not a core file" in refused("list", "--core", "/proc/self/exe")
    cut = tmp_path / "cut"
    shutil.copy(crashed, cut)
    for size in (10_000, 100, 10):
        os.truncate(cut, size)
        assert str(cut) in refused("list", "--core", cut)


def test_a_core_file_that_was_tampered_with_is_read_or_an_error(
    crashed: Path, tmp_path: Path
) -> None:
    """Its headers and notes are; what they lead to is checked as the memory of a process is."""
    path = tmp_path / "tampered"
    shutil.copy(crashed, path)
    random = Random(11)
    outcomes = set()
    with path.open("r+b") as file:
        start = file.read(1 << 16)
        for _ in range(100):
            changed = bytearray(start)
            for _ in range(random.randrange(1, 4)):
                at = random.randrange(random.choice((64, 4096, 20000)))
                changed[at : at + 8] = random.choice((bytes(8), b"\xff" * 8, random.randbytes(8)))
            file.seek(0)
            file.write(changed[: 1 << 16])
            file.flush()
            try:
                found = [d.images() for d in gdbjit.descriptors(core=path)]
                outcomes.add(sum(1 for images in found for _ in images))
            except gdbjit.GDBJITError:
                outcomes.add(-1)
    assert outcomes >= {-1, 1}


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


def test_a_process_of_32_bits_is_listed_with_what_cannot_be_read(tmp_path: Path) -> None:
    program_of_i386(tmp_path / "static32")
    with subprocess.Popen([tmp_path / "static32"]) as process:
        try:
            time.sleep(0.1)
            out, err = command("list", "--json", process.pid, status=1)
        finally:
            process.kill()
    objects = json.loads(out)["objects"]
    assert [found["functions"] for found in objects] == [[], []]
    assert all(found["problem"] for found in objects)
    assert err.endswith(": 2 objects cannot be read\n")


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        ("entries[0].next = entries[0].prev = addresses[0]", "circle"),
        ("entries[-1].next = addresses[5]", "circle"),
        ("entries[0].next = 8", "0x8"),
        ("entries[3].symfile = 1 << 63", "0x8000000000000000"),
        ("entries[3].size = 1 << 31", "not mapped"),
        ("entries[3].size = (1 << 64) - 1", "images with"),
        ("for entry in entries: entry.size = 1 << 26", "images with|not mapped"),
        ("CodeDescriptor.from_address(head).first = 1 << 40", "0x10000000000"),
        ("CodeDescriptor.from_address(head).version = 9", "version is 9"),
    ],
)
def test_a_corrupt_list_takes_little_time_and_is_explained(edit: str, problem: str) -> None:
    script = f"""
registrations = [gdbjit.register(image) for _ in range(200)]
head = registrations[0].descriptor.address
addresses = [registration.entry for registration in reversed(registrations)]
entries = [CodeEntry.from_address(address) for address in addresses]
{edit}
say("ready"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        start = time.monotonic()
        done = subprocess.run(
            [*JITLISTEN, "list", str(process.pid)], capture_output=True, text=True, check=False
        )
        assert time.monotonic() - start < 10
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert re.search(problem, done.stderr), done.stderr


def test_fuzzed_lists_end_in_a_list_or_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = """
import random
random.seed(7)
registrations = [gdbjit.register(image) for _ in range(20)]
head = registrations[0].descriptor.address
addresses = [registration.entry for registration in registrations]
kept = [ctypes.string_at(address, 32 + len(image)) for address in addresses]
values = [0, 1, 8, 4096, 1 << 31, 1 << 40, 1 << 47, 1 << 63, (1 << 64) - 1, head, *addresses]
say("ready")
for line in sys.stdin:
    for address, data in zip(addresses, kept):
        ctypes.memmove(address, data, len(data))
    for _ in range(random.randrange(1, 4)):
        address = random.choice(addresses)
        if random.random() < 0.5:
            offset = random.choice((0, 8, 16, 24))
            data = random.choice(values).to_bytes(8, "little")
        else:
            offset, data = 32 + random.randrange(len(image)), random.randbytes(1)
        ctypes.memmove(address + offset, data, len(data))
    say("changed")
"""
    with target(script) as process:
        assert line(process) == "ready"
        assert process.stdin
        outcomes = set()
        for _ in range(150):
            process.stdin.write("\n")
            process.stdin.flush()
            assert line(process) == "changed"
            start = time.monotonic()
            status = jitlisten.main(["list", str(process.pid)])
            assert time.monotonic() - start < 10
            said = capsys.readouterr()
            assert (status, said.err.count("\n")) in ((0, 0), (1, 1))
            assert said.out or said.err
            outcomes.add(status)
        assert outcomes == {0, 1}


# Programs at work


def test_a_thousand_objects_are_read_in_sixty_milliseconds() -> None:
    with running("churn", "1000") as process:
        os.kill(process.pid, signal.SIGSTOP)
        seconds = []
        for _ in range(10):
            start = time.thread_time()  # others may be at work, too
            found = [
                image
                for descriptor in gdbjit.descriptors(process.pid)
                for _, image in descriptor.images()
            ]
            seconds.append(time.thread_time() - start)
        assert len(found) >= 1000
        assert min(seconds) < 0.060


def test_a_long_list_is_right_while_the_program_loads_and_unloads() -> None:
    with running("churn", "2000") as process:
        for _ in range(5):
            found = functions(listed(process.pid))
            assert {f"stay_{number:07}" for number in range(2000)} <= found.keys()
            assert all(re.fullmatch(r"(stay|pass)_\d{7}", name) for name in found)
            assert len({function["address"] for function in found.values()}) == len(found)


def test_a_process_that_ends_meanwhile_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with target("kept = [gdbjit.register(image) for _ in range(3000)]; say('ready'); wait()") as it:
        assert line(it) == "ready"
        killer = threading.Timer(0.3, it.kill)
        while not jitlisten.main(["list", str(it.pid)]):
            said = capsys.readouterr()
            assert said.out.count(" .text") == 3000
            assert said.err == ""
            if killer.ident is None:
                killer.start()
        killer.join()
    said = capsys.readouterr()
    assert re.fullmatch(rf"jitlisten list: process {it.pid}: .*\n", said.err)
