"""perf takes code with an image for an ordinary shared object: the real perf, no map, no inject."""

import os
import re
import sys
from pathlib import Path

import pytest
from jit import EXAMPLES, LINKERS
from tools import PROGRAMS, run, tool

pytestmark = pytest.mark.tools

IMAGES = f"{PROGRAMS}/images.py"
HOT = range(6, 12)  # the lines of the loop in `steps` of collatz.tiny


def record(tmp_path: Path, *program: str, options: tuple[str, ...] = ()) -> tuple[str, str]:
    """A recording of images.py, whose images are in `tmp_path`, and when the code began to run."""
    data = str(tmp_path / "perf.data")
    recorder = (
        tool("perf"),
        "record",
        "-q",
        "-e",
        "cpu-clock",
        "-F",
        "499",
        "-k",
        "mono",
        *options,
        "-o",
        data,
    )
    environment = {**os.environ, "JITDUMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    said = run(*recorder, sys.executable, IMAGES, *program, env=environment)
    return data, next(iter(re.findall(r"started ([\d.]+)", said)), "0")


def report(recording: tuple[str, str], *options: str) -> str:
    # perf takes long to find the lines of what has compiled the code: that is left out.
    data, started = recording
    return run(tool("perf"), "report", "-i", data, "--time", f"{started},", "--stdio", *options)


def rows(recording: tuple[str, str], fields: str) -> list[tuple[float, str, ...]]:
    text = report(recording, "-F", f"overhead,{fields}", "--no-children", "-g", "none", "-t", ";")
    found = [line.split(";") for line in text.splitlines() if re.match(r" *\d+\.\d+%", line)]
    return [(float(share.strip(" %")), *map(str.strip, rest)) for share, *rest in found]


def chains(recording: tuple[str, str]) -> list[list[str]]:
    """The call chains of all samples in `steps`, innermost function first."""
    data, started = recording
    fields = "--no-inline", "--time", f"{started},", "-F", "ip,sym"
    samples = run(tool("perf"), "script", "-i", data, *fields).split("\n\n")
    found = [re.findall(r"^\s+[0-9a-f]+ (.*)", sample, re.MULTILINE) for sample in samples]
    return [chain for chain in found if chain and "steps" in chain[0]]


def is_whole(chain: list[str], to_start: bool) -> bool:
    return len(chain) > 1 and "longest" in chain[1] and (not to_start or chain[-1] == "_start")


@pytest.mark.parametrize("graph", ["fp", "dwarf"])
@pytest.mark.parametrize("engine", [*LINKERS, "numba"])
def test_names_lines_source_and_callers_after_the_program_has_ended(engine, graph, tmp_path):
    limit = "2000000" if engine == "numba" else "600000"
    options = (f"--call-graph={graph},16384" if graph == "dwarf" else "-g",)
    recording = record(tmp_path, "run", engine, limit, "--frame-pointers", options=options)
    source = Path(IMAGES) if engine == "numba" else EXAMPLES / "collatz.tiny"

    share, symbol, dso = rows(recording, "sym,dso")[0]
    assert "steps" in symbol
    assert dso.endswith(".so")
    assert share > 10

    # On Python 3.13 Numba gives some of the code line 0.
    lines = [row for row in rows(recording, "sym,srcline") if not row[2].endswith(":0")]
    assert "steps" in lines[0][1]
    name, number = lines[0][2].split(":")
    assert name == source.name
    text = source.read_text().splitlines()
    assert re.search(r"count|half|while", text[int(number) - 1])

    if graph == "dwarf" or engine != "numba":  # whose code keeps no frame pointers
        whole = [chain for chain in chains(recording) if is_whole(chain, graph == "dwarf")]
        assert len(whole) > 50

    symbol = symbol.removeprefix("[.] ")
    annotated = run(tool("perf"), "annotate", "-i", recording[0], "--stdio", "-s", symbol)
    assert re.search(r"count = count \+ 1", annotated)


@pytest.mark.parametrize("linker", LINKERS)
def test_each_sample_goes_to_the_code_that_was_there_at_its_time(linker, tmp_path):
    shares = {name: share for share, name in rows(record(tmp_path, "reload", linker), "sym")}
    earlier, later = shares["[.] earlier"], shares["[.] later"]
    assert earlier > 20
    assert earlier == pytest.approx(later, rel=0.25)


@pytest.mark.parametrize("linker", ["mcjit", "jitlink"])
def test_parent_and_child_have_names_for_what_they_load_and_what_they_share(linker, tmp_path):
    found = rows(record(tmp_path, "fork", linker), "pid,sym")
    pids = {name: {pid for _, pid, symbol in found if symbol == f"[.] {name}"} for name in (
        "inherited", "parent_only", "child_only")}  # fmt: skip
    assert len(pids["inherited"]) == 2
    assert len(pids["parent_only"]) == len(pids["child_only"]) == 1
    assert pids["parent_only"] != pids["child_only"]
    assert pids["parent_only"] | pids["child_only"] == pids["inherited"]


@pytest.mark.parametrize("linker", LINKERS)
def test_four_threads_run_code_that_is_mapped_over_while_others_load_and_unload(linker, tmp_path):
    environment = {**os.environ, "JITDUMPDIR": str(tmp_path)}
    said = run(sys.executable, IMAGES, "stress", linker, env=environment)
    calls, mapped = map(int, re.findall(r"\d+", said))
    assert calls == 100_000
    assert mapped > 50
