"""`jitlisten report` over recordings of the real perf, whose own reports are the judge."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from jit import EXAMPLES
from perftools import record as recorded
from recordings import SHARE, lines, report, table
from reported import NAMES
from tools import PROGRAMS, run, tool

pytestmark = pytest.mark.tools


def command(data: Path | str, *options: str, status: int = 0, **variables: str) -> str:
    """What the command prints in a process of its own, on both outputs."""
    arguments = sys.executable, "-m", "jitlisten", "report", *options, str(data)
    return run(*arguments, status=status, env={**os.environ, **variables})


def judge(data: Path, *fields: str, symbol: str = "") -> Counter[tuple[str, ...]]:
    """The samples of each row of perf's report; of one function only."""
    text = run(
        *(tool("perf"), "report", "-i", str(data), "--stdio", "--no-children", "--no-inline"),
        *("-g", "none", "-t", "|", "-F", ",".join(("sample", *fields))),
        *(("-S", symbol) if symbol else ()),
    )
    found: Counter[tuple[str, ...]] = Counter()
    for line in text.splitlines():
        if re.match(r" *\d+ *\|", line):
            samples, *rest = (part.strip() for part in line.split("|"))
            found[tuple(re.sub(r"^\[.\] ", "", part) for part in rest)] += int(samples)
    return found


@pytest.mark.parametrize(
    ("way", "linker"),
    [
        *(("images", "mcjit"), ("images", "jitlink"), ("jitdump", "rtdyld")),
        *(("perf-map", "mcjit"), ("images", "numba")),
    ],
)
def test_functions_have_as_many_samples_as_perf_counts(record, way, linker):
    data = record(way, "collatz", linker)
    names = [name for name in table(data) if "steps" in name]
    expected = [
        n for (_, name), n in judge(data, "dso", "sym").items() if re.search(r"\bsteps", name)
    ]
    assert [table(data)[name] for name in names] == expected
    assert expected[0] > 100
    if linker == "numba":
        assert names == ["__main__.steps(int64)"]


@pytest.mark.parametrize(("way", "linker"), [("images", "mcjit"), ("jitdump", "rtdyld")])
def test_lines_have_as_many_samples_as_perf_counts_and_their_source_text(record, way, linker):
    data = record(way, "collatz", linker)
    expected = {}
    for (place,), samples in judge(data, "srcline", symbol="steps").items():
        file, _, line = place.partition(":")
        assert file == "collatz.tiny"
        expected[int(line)] = samples
    source = (EXAMPLES / "collatz.tiny").read_text().splitlines()
    found = lines(data)
    assert len(found) == 5
    for (line, text), samples in found.items():
        assert text == source[line - 1]
        assert samples == expected[line]
    assert sorted(found.values(), reverse=True) == sorted(expected.values(), reverse=True)[:5]


@pytest.mark.parametrize("way", ["images", "perf-map"])
def test_shares_by_kind_of_code(record, way):
    data = record(way, "collatz", "mcjit")
    shares = dict(re.findall(rf"^  (\w+) {SHARE}", report(data), re.MULTILINE))
    rows = judge(data, "dso", "sym")
    total = sum(rows.values())
    jit = sum(n for (_, name), n in rows.items() if name in ("steps", "longest"))
    kernel = sum(n for (dso, _), n in rows.items() if dso == "[kernel.kallsyms]")
    assert float(shares["JIT"]) == pytest.approx(100 * jit / total, abs=0.5)
    python = sum(n for (dso, _), n in rows.items() if re.match(r"(lib)?python3", dso))
    # perf script tells no address of the few samples whose chain is empty
    assert float(shares["Python"]) == pytest.approx(100 * python / total, abs=0.5)
    assert float(shares["kernel"]) == pytest.approx(100 * kernel / total, abs=0.5)
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.3)


@pytest.mark.parametrize("way", ["images", "perf-map"])
def test_names_that_are_hard_to_read(record, way):
    data = record(way, "names")
    expected = {name.replace("\n", "?") for name in NAMES}
    assert expected <= table(data).keys()
    collapsed = report(data, "--format", "collapsed")
    for line in collapsed.splitlines():
        assert re.fullmatch(r"[^;].*[^;] \d+", line)
    leaves = {re.split(r"[; ]\d*$", line)[0].rpartition(";")[2] for line in collapsed.splitlines()}
    assert {f"{name.replace(';', ':')}_[j]" for name in expected} <= leaves


def test_inlined_functions_are_frames_and_their_lines_those_of_the_function(record):
    data = record("images", "inlined")
    data.with_name("program.txt").write_text("".join(f"line {n}\n" for n in range(1, 30)))
    found = lines(data)
    assert (22, "line 22") in found
    own = table(data)["outer"]
    tree = report(data, "--tree")
    assert re.search(r"outer  program.txt\n.* inner \(inlined\)  program.txt", tree)
    listing = report(data, "--annotate", "inner")
    (call,) = re.findall(rf"{SHARE} +11  line 11", listing)
    (inner,) = re.findall(rf"^{SHARE} .* inner \(inlined\)", tree, re.MULTILINE)
    assert call == inner  # the line of the call has all that was inlined there
    assert own > found[22, "line 22"]


def test_call_tree_has_the_callers_of_jit_code(record):
    tree = report(record("images", "collatz", "mcjit", graph="dwarf,16384"), "--tree")
    steps = re.search(
        rf"^{SHARE}{SHARE}.* longest  collatz.tiny\n{SHARE}{SHARE}.* steps", tree, re.M
    )
    assert steps
    longest, _, inclusive, own = map(float, steps.groups())
    assert longest == pytest.approx(inclusive, abs=2)
    assert own == pytest.approx(inclusive, abs=3)
    assert "_start" in tree


def test_annotated_source_has_the_shares_of_lines_and_their_hot_instructions(record):
    data = record("images", "collatz", "mcjit")
    text = report(data, "--annotate", "steps")
    total = sum(judge(data, "dso", "sym").values())
    source = (EXAMPLES / "collatz.tiny").read_text().splitlines()
    assert f"{3:6}  {source[2]}" in text
    for (number, line), samples in lines(data).items():
        pattern = rf"^{SHARE}{SHARE} +{number}  {re.escape(line)}\n((?:.*  [0-9a-f]+  \w+.*\n)*)"
        ((share, _, instructions),) = re.findall(pattern, text, re.MULTILINE)
        assert float(share) == pytest.approx(100 * samples / total, abs=0.1)
        if samples == max(lines(data).values()):
            shares = re.findall(SHARE + SHARE, instructions)
            assert sum(float(own) for own, _ in shares) == pytest.approx(float(share), rel=0.1)


def test_a_line_that_calls_has_the_share_of_what_it_calls(record):
    data = record("images", "collatz", "mcjit")
    text = report(data, "--annotate", "longest")
    # a sample or two may be in the line itself
    pattern = rf"^(?:{SHARE}| +){SHARE} +\d+  (.*steps.*)$"
    ((_, total, line),) = re.findall(pattern, text, re.MULTILINE)
    assert line.strip() == "count = steps(start)"
    (whole,) = re.findall(r"longest: .*, ([\d.]+) % total", text)
    assert float(total) == pytest.approx(float(whole), abs=1)


def test_machine_code_is_annotated_where_there_is_no_source(record):
    data = record("images", "processes")
    text = report(data, "--annotate", "child")
    shares = re.findall(rf"^{SHARE}{SHARE} +[0-9a-f]+  (\w+)", text, re.MULTILINE)
    assert re.search(r"[0-9a-f]+  ret", text)
    whole = sum(judge(data, "dso", "sym").values())
    assert sum(float(share) for share, *_ in shares) == pytest.approx(
        100 * table(data)["child"] / whole, abs=0.5
    )


def test_several_processes(record):
    data = record("images", "processes")
    tree = report(data, "--tree")
    roots = re.findall(rf"^{SHARE}{SHARE}  [├└] (python|other name) \((\d+)\)", tree, re.M)
    assert {name for *_, name, _ in roots} == {"python", "other name"}
    assert len({pid for *_, pid in roots}) == 2
    collapsed = report(data, "--format", "collapsed")
    assert re.search(r"^other name \(\d+\);.*child_\[j\] ", collapsed, re.M)
    assert not re.search(r"^python \(\d+\);.*child_\[j\] ", collapsed, re.M)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="-X perf_jit came with Python 3.13")
def test_python_and_jit_functions_in_one_chain(record):
    python = "-X", "perf_jit"
    data = record("jitdump", "collatz", "mcjit", graph="dwarf,32768", python=python)
    collapsed = report(data, "--format", "collapsed")
    assert re.search(r"py::<module>;.*py::collatz;.*;longest_\[j\];steps_\[j\] \d+", collapsed)
    assert re.search(
        r"<module>  reported.py\n(.*\n)+.* collatz  reported.py", report(data, "--tree")
    )
    shares = dict(re.findall(rf"^  (\w+) {SHARE}", report(data), re.MULTILINE))
    assert float(shares["JIT"]) > 30
    assert {"steps", "longest"} >= table(data).keys()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="-X perf came with Python 3.12")
@pytest.mark.parametrize("way", ["images", "perf-map"])
def test_functions_of_python_are_no_jit_functions(record, way):
    data = record(way, "collatz", "mcjit", python=("-X", "perf"))
    assert {"steps", "longest"} >= table(data).keys()
    collapsed = report(data, "--format", "collapsed")
    chains = run(tool("perf"), "script", "-i", str(data), "-F", "ip,sym")
    assert ("py::" in chains) == ("py::" in collapsed)
    assert not re.search(r"py::[^;]*_\[j\]", collapsed)


def test_code_without_names_comes_with_what_to_do_about_it(tmp_path):
    program = (sys.executable, f"{PROGRAMS}/reported.py", "collatz", "mcjit")
    data = recorded(tmp_path, *program, options=("-g",)).data
    hint = (
        r"jitlisten report: \d\d% are in JIT code without names: record the program with"
        r" `jitlisten record`, or do `jitlisten map PID` while it runs\n"
    )
    said = command(data)
    assert re.search(hint, said)
    assert "[unknown]" in said
    no_such_name, last = command(data, "--annotate", "steps", status=1).splitlines(keepends=True)
    assert "no sample is in a JIT function called 'steps'" in no_such_name
    assert re.fullmatch(hint, last)


@pytest.mark.parametrize("graph", [(), ("-g",)])
def test_samples_count_whatever_the_thread_is_called(graph, tmp_path):
    program = "open('/proc/self/comm', 'w').write('\\tab'); sum(range(3_000_000))"
    sampled(tmp_path / "data", *graph, "--", sys.executable, "-c", program)
    expected = sum(judge(tmp_path / "data", "comm").values())
    assert f", ?ab: {expected} samples" in report(tmp_path / "data")


@pytest.mark.parametrize("view", [(), ("--format", "firefox")])
def test_a_recording_without_times(view, tmp_path):
    options = "-g", "--no-timestamp"
    sampled(tmp_path / "data", *options, "--", sys.executable, "-c", "sum(range(3_000_000))")
    assert "python" in report(tmp_path / "data", *view)


def sampled(data: Path, *options: str) -> None:
    run(tool("perf"), "record", "-q", "-N", "-e", "cpu-clock", "-o", str(data), *options)


# Errors


def test_that_files_of_code_are_gone_is_said_and_what_has_gone_with_them(tmp_path):
    program = (sys.executable, f"{PROGRAMS}/reported.py", "collatz", "mcjit")
    listened = (sys.executable, "-m", "jitlisten", "run", "--images", "--", *program)
    data = recorded(tmp_path, *listened, options=("-g",)).data
    (image,) = tmp_path.rglob("*.so")
    assert "steps" in command(data)
    shutil.rmtree(image.parent)
    *_, said = command(data, status=1).splitlines()
    assert said == (
        "jitlisten report: names and lines of JIT code are gone with its files, which"
        f" `jitlisten clean` or somebody else has removed; record again: {image}"
    )
    assert command(data, "--annotate", "steps", status=1).endswith(said + "\n")


def error(data: Path | str, *options: str, **variables: str) -> str:
    """The one line that says what is wrong."""
    said = command(data, *options, status=1, **variables)
    assert said.count("\n") == 1
    assert said.startswith("jitlisten report: ")
    return said


def test_what_cannot_be_read_is_one_line(tmp_path):
    assert "No such file" in error(tmp_path / "missing.data")
    (tmp_path / "text").write_text("hello " * 1000)
    assert "perf cannot read it" in error(tmp_path / "text")
    (tmp_path / "empty").touch()
    assert "perf cannot read it" in error(tmp_path / "empty")
    assert "Is a directory" in error(tmp_path)
    assert "apt-get install linux-perf" in error(tmp_path / "text", PATH="/nowhere")
    data = tmp_path / "perf.data"
    run(
        tool("perf"),
        "record",
        "-q",
        "-N",
        "-e",
        "cpu-clock",
        "-c",
        "100000000000",
        "-o",
        str(data),
        "true",
        status=None,
    )
    assert "no samples" in error(data)


def test_what_a_truncated_recording_still_has_is_shown(tmp_path):
    program = (sys.executable, f"{PROGRAMS}/reported.py", "collatz", "mcjit")
    listened = (sys.executable, "-m", "jitlisten", "run", "--images", "--", *program)
    data = recorded(tmp_path, *listened, options=("-g", "-c", "100000")).data
    # perf maps the file: where that ends in the middle of a page, it meets no end of memory.
    os.truncate(data, data.stat().st_size * 9 // 10 // 4096 * 4096 + 2048)
    said = command(data, status=1)
    assert " steps" in said
    assert "this is what comes before" in said
    assert "no reason" not in said


def test_a_name_that_is_not_there_is_answered_with_near_ones(record):
    data = record("images", "collatz", "mcjit")
    assert "there is 'steps'" in error(data, "--annotate", "stepps")
    assert error(data, "--annotate", "nothing like it").endswith("called 'nothing like it'\n")
    map_only = record("perf-map", "collatz", "mcjit")
    assert "only the name" in command(map_only, "--annotate", "steps", status=1)


def test_output_that_cannot_be_written(record, tmp_path):
    data = record("images", "collatz", "mcjit")
    for options in (("--format", "collapsed", "-o"), ("--svg",)):
        for path in (str(tmp_path / "missing" / "file"), ""):
            assert "cannot write" in error(data, *options, path)
    for options in ((), ("--format", "collapsed")):
        arguments = (sys.executable, "-m", "jitlisten", "report", *options, str(data))
        said = run("sh", "-c", 'exec "$@" >/dev/full', "sh", *arguments, status=1)
        assert said == "jitlisten report: cannot write: No space left on device\n"


def test_what_jitlisten_record_does_before_the_program_begins_is_left_out(tmp_path):
    data = tmp_path / "perf.data"
    often = ("-e", "cpu-clock", "-c", "50000", "-g", "-o", str(data))
    run(sys.executable, "-m", "jitlisten", "record", *often, "--", "sleep", "0.01")
    said = run(tool("perf"), "script", "-i", str(data), "-G", "-F", "comm")
    comms = Counter(line.strip() for line in said.splitlines())
    assert len(comms) == 2
    assert report(data).startswith(f"sleep: {comms['sleep']:,} samples, ")


@pytest.mark.parametrize("events", [("cpu-clock", "page-faults"), ("page-faults", "cpu-clock")])
def test_of_several_events_the_first_is_shown_or_one_that_is_asked_for(events, tmp_path):
    data = tmp_path / "perf.data"
    run(
        *(tool("perf"), "record", "-q", "-N", "-e", events[0], "-e", events[1], "-c", "1"),
        *("-o", str(data), "--", sys.executable, "-c", "sum(range(100_000))"),
        status=None,
    )
    assert f"of {events[0]}" in report(data).splitlines()[0]
    assert f"of {events[1]}" in report(data, "--event", events[1]).splitlines()[0]
    assert "page-faults" in error(data, "--event", "cycles")
