"""`jitlisten list`: what is in a process that knows nothing of us, even one at work, or corrupt."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from outside import command, functions, listed, running
from targets import line, target
from test_descriptors_of_programs import program_of_i386
from tools import JITLISTEN, PROGRAMS, gdb, run, tool

import jitlisten

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def numba() -> Iterator[int]:
    """The number of a Numba program that was started without us."""
    with running("numba") as process:
        yield process.pid


def test_list_shows_what_numba_has_compiled(numba: int) -> None:
    objects = listed(numba)
    assert {each["engine"] for each in objects} == {"libllvmlite.so"}
    steps = "__main__.steps(int64)"
    assert {steps, f"{steps} [cpython wrapper]"} <= functions(objects).keys()
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


# The table


def in_terminal(width: int, *arguments: str) -> list[str]:
    """The lines that the command prints in a terminal of so many columns."""
    terminal, inside = os.openpty()
    tty.setraw(inside)
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen([*JITLISTEN, *arguments], stdout=inside, env=environment) as process:
        os.close(inside)
        said = b""
        with suppress(OSError):  # EIO at its end
            while piece := os.read(terminal, 1 << 16):
                said += piece
    os.close(terminal)
    assert process.returncode == 0
    return re.sub(r"\x1b\[\d*m", "", said.decode()).splitlines()


def test_a_long_name_is_folded_in_a_terminal_and_whole_elsewhere(numba: int) -> None:
    name = "__main__.steps(int64) [cpython wrapper]"
    lines = in_terminal(80, "list", str(numba))
    assert max(map(len, lines)) == 80
    column = lines[0].index("function")
    assert name in "".join(line[column:] for line in lines)
    elsewhere, _ = command("list", numba, env={**os.environ, "COLUMNS": "20"})
    assert f" {name}\n" in elsewhere
    assert " \n" not in elsewhere


def test_the_table_of_a_terminal_that_is_too_narrow_has_everything(numba: int) -> None:
    text = "".join(in_terminal(30, "list", str(numba)))
    for name, function in functions(listed(numba)).items():
        assert f"{function['address']:#x}" in text
        assert name[:16] in text


def test_llvmlite_is_not_needed(numba: int) -> None:
    script = (
        "import sys, jitlisten; status = jitlisten.main(['list', sys.argv[1]]);"
        " sys.exit(status or 'llvmlite' in sys.modules)"
    )
    assert "steps" in run(sys.executable, "-c", script, str(numba))


# Programs at work


def watch(pid: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*JITLISTEN, "list", str(pid), "--json", "--watch", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def shown(watching: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert watching.stdout
    objects: list[dict[str, Any]] = json.loads(watching.stdout.readline())["objects"]
    return objects


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_watch_waits_for_the_first_code() -> None:
    with target("say('ready'); wait(); gdbjit.register(image); wait()") as process:
        assert line(process) == "ready"
        with watch(process.pid) as watching:
            assert shown(watching) == []
            go_on(process)
            while not (objects := shown(watching)):
                pass
            watching.kill()
    assert objects[0]["age"] is not None


def test_watch_tells_the_age_of_what_comes() -> None:
    script = """
first = gdbjit.register(image)
say("ready"); wait()
second = gdbjit.register(image)
say("more"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        with watch(process.pid) as watching:
            before = shown(watching)
            go_on(process)
            assert line(process) == "more"
            while True:
                ages = [found["age"] for found in shown(watching)]
                if len(ages) == 2 and ages[1]:
                    break
            process.kill()
            process.wait()
            assert watching.stdout
            assert watching.stderr
            for last in watching.stdout:
                assert len(json.loads(last)["objects"]) == 2
            assert watching.stderr.read() == ""
            assert watching.wait() == 0
    assert [found["age"] for found in before] == [None]
    assert ages[0] is None
    assert 0 < ages[1] < 30


def test_watch_of_a_process_nobody_has_waited_for_ends_with_it() -> None:
    with target("gdbjit.register(image); say('ready'); wait()") as process:
        assert line(process) == "ready"
        with watch(process.pid) as watching:
            assert len(shown(watching)) == 1
            process.kill()  # a zombie from here on
            _, said = watching.communicate(timeout=60)
        assert (watching.returncode, said) == (0, "")


def test_watch_of_a_process_that_has_ended_already_is_an_error() -> None:
    with target("") as process:
        process.wait()
    with watch(process.pid) as watching:
        out, said = watching.communicate(timeout=60)
    assert (watching.returncode, out) == (1, "")
    assert re.fullmatch(rf"jitlisten list: process {process.pid}: .*\n", said)


def test_watch_says_what_keeps_it_from_going_on() -> None:
    script = """
gdbjit.register(image); say("ready"); wait()
descriptor = CodeDescriptor.from_address(gdbjit.own_descriptor().address)
descriptor.first = 1 << 40
say("corrupt"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        with watch(process.pid) as watching:
            assert len(shown(watching)) == 1
            go_on(process)
            assert line(process) == "corrupt"
            _, said = watching.communicate(timeout=60)
        assert watching.returncode == 1
        assert re.fullmatch(r"jitlisten list: .* cannot read 32 bytes at 0x10000000000: .*\n", said)


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


# Lists that are not as they should be


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
def test_a_corrupt_list_ends_and_is_explained(edit: str, problem: str) -> None:
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
        done = subprocess.run(
            [*JITLISTEN, "list", str(process.pid)], capture_output=True, text=True, check=False
        )
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
            status = jitlisten.main(["list", str(process.pid)])
            said = capsys.readouterr()
            assert (status, said.err.count("\n")) in ((0, 0), (1, 1))
            assert said.out or said.err
            outcomes.add(status)
        assert outcomes == {0, 1}
