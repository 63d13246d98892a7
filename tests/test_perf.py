"""What perf shows of JIT'd code: by code images, by a jitdump, by the map file.

What the map file cannot do, docs/perf.md says: lines, annotation, chains by dwarf, time.
"""

import itertools
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jit import LINKERS
from perftools import PATH, profile, record
from tools import PROGRAMS, tool

from perfmap import read_jitdump
from perfmap.jitdump import CodeLoad

pytestmark = pytest.mark.tools

WAYS = ("images", "jitdump", "map")
CALL_GRAPHS = {"-g": ("-g",), "dwarf": ("--call-graph", "dwarf,4096")}
HOT_LINE = "hot.tiny:6"


@pytest.mark.parametrize("graph", CALL_GRAPHS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", [*LINKERS, "numba"])
def test_names_lines_source_and_callers_when_the_program_has_ended(
    engine: str, way: str, graph: str, tmp_path: Path
) -> None:
    recording = profile(
        *(tmp_path, way, engine, "hot", "--frame-pointers"), options=CALL_GRAPHS[graph]
    )

    # On Python 3.13 Numba gives some of the code line 0.
    rows = recording.rows("sym" if way == "map" else "sym,srcline")
    share, symbol, *line = next(row for row in rows if not row[-1].endswith(":0"))
    assert re.search(r"\bhot\b", symbol)
    assert share > 40
    if way != "map":
        assert line == [HOT_LINE]
        text = (PROGRAMS / "hot.tiny").read_text().splitlines()[5].strip()
        assert text in recording.annotation(symbol)

    inside = recording.chains("hot")
    assert len(inside) > 100
    if graph == "dwarf" and way != "map":
        whole = [c for c in inside if re.search(r"\bouter\b", c[1]) and c[-1] == "_start"]
        assert len(whole) > 0.98 * len(inside), inside[0]
    elif graph == "-g" and engine != "numba":  # whose code keeps no frame pointers
        called = [chain for chain in inside if chain[1:2] == ["outer"]]
        assert len(called) > 0.9 * len(inside), inside[0]


def test_every_way_gives_the_same_functions_the_same_shares(tmp_path: Path) -> None:
    expected = {"eight": 8 / 15, "four": 4 / 15, "two": 2 / 15, "one": 1 / 15}
    found = []
    for way in WAYS:
        rows = profile(tmp_path, way, "jitlink", "work").rows("sample,sym")
        counts = {symbol: int(count) for _, count, symbol in rows if symbol in expected}
        assert list(counts) == list(expected)
        found.append(counts)
    for one, other in itertools.combinations(found, 2):
        total, in_other = sum(one.values()), sum(other.values())
        for name, share in expected.items():
            deviation = (share * (1 - share) * (1 / total + 1 / in_other)) ** 0.5
            assert abs(one[name] / total - other[name] / in_other) < 4 * deviation, found


@pytest.mark.parametrize("way", ["images", "jitdump"])
@pytest.mark.parametrize("linker", LINKERS)
def test_each_sample_goes_to_the_code_that_was_there_at_its_time(
    linker: str, way: str, tmp_path: Path
) -> None:
    shares = profile(tmp_path, way, linker, "reload").shares()
    by_name = {name.split("(")[0]: share for name, share in shares.items()}
    assert by_name["game::later"] / by_name["game::earlier"] == pytest.approx(2, rel=0.35)


@pytest.mark.parametrize("options", [(), ("--keep",)], ids=["freed", "kept"])
@pytest.mark.parametrize("linker", LINKERS)
def test_in_the_map_the_later_code_at_an_address_names_it_to_the_end(
    linker: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    shares = profile(tmp_path, "map", linker, "reload", *options).shares()
    assert shares["game::later(int)"] > 50
    assert "game::earlier(int)" not in shares


@pytest.mark.parametrize("way", WAYS)
def test_what_parent_and_child_load_after_a_fork_is_named_in_one_recording(
    way: str, tmp_path: Path
) -> None:
    recording = profile(tmp_path, way, "rtdyld", "fork")
    processes: dict[str, set[str]] = {}
    for _, pid, symbol in recording.rows("pid,sym"):
        processes.setdefault(symbol, set()).add(pid.split(":")[0])
    parent, child = recording.numbers["pid"], recording.numbers["child"]
    assert processes["parent_only"] == {parent}
    assert processes["child_only"] == {child}
    assert processes["inherited"] == {parent, child}


@pytest.mark.parametrize("linker", LINKERS)
def test_what_was_loaded_before_the_listener_was_attached_is_named(
    linker: str, tmp_path: Path
) -> None:
    program = (f"{PROGRAMS}/jit.py", linker, "--attach", "after", "--limit", "300000")
    recording = record(tmp_path, sys.executable, *program)
    shares = recording.shares()
    assert max(shares, key=shares.__getitem__) == "steps"


def test_a_killed_program_leaves_a_dump_that_can_be_read(tmp_path: Path) -> None:
    recording = profile(tmp_path, "jitdump", "rtdyld", "kill", status=None)
    (path,) = tmp_path.glob(".debug/jit/jit-listeners-*/jit-*.dump")
    dump = read_jitdump(path)
    assert dump.truncated == 0
    assert [one.name for one in dump.records if isinstance(one, CodeLoad)] == ["before_the_end"]
    path.write_bytes(path.read_bytes()[:-1])
    assert read_jitdump(path).truncated
    assert recording.shares()["before_the_end"] > 10


def test_perf_top_names_code_of_images_while_it_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "JITDUMPDIR": str(tmp_path), "PYTHONPATH": PATH, "TERM": "xterm"}
    program = (sys.executable, f"{PROGRAMS}/profiled.py", "images", "mcjit", "loop")
    terminal, inside = os.openpty()
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("pid")
        assert process.stdout.readline().startswith("started")
        command = (tool("perf"), "top", "--stdio", "-e", "cpu-clock", "-d", "1", "-p")
        with subprocess.Popen(
            (*command, str(process.pid)), stdin=inside, stdout=inside, env=environment
        ) as top:
            os.close(inside)
            said, deadline = b"", time.monotonic() + 60
            while not (shown := re.search(rb"hot-\S+\.so +\[\.\] hot\s", said)):
                if time.monotonic() > deadline or not select.select([terminal], [], [], 60)[0]:
                    break
                said += os.read(terminal, 1 << 16)
            top.terminate()
        process.communicate()
    os.close(terminal)
    assert shown, said.decode(errors="replace")
