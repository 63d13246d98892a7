"""`jitlisten report` over recordings of the real perf, whose own reports are the judge."""

from __future__ import annotations

import html
import io
import json
import os
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
from jit import EXAMPLES
from reported import NAMES
from tools import PROGRAMS, run, tool

import jitlisten

pytestmark = pytest.mark.tools

Record = Callable[..., Path]
SHARE = r" *([\d.]+) %"


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Recordings of reported.py, each made once: `record("images", "collatz", "mcjit")`."""
    made: dict[tuple[str, ...], Path] = {}
    pids: list[str] = []

    def record(way: str, *scene: str, graph: str = "fp", python: tuple[str, ...] = ()) -> Path:
        key = (way, *scene, graph, *python)
        if key not in made:
            directory = tmp_path_factory.mktemp("recording")
            data = made[key] = directory / "perf.data"
            said = run(
                *(sys.executable, "-m", "jitlisten", "run", f"--{way}", "--"),
                *(tool("perf"), "record", "-q", "-N", "-k", "mono", "-e", "cpu-clock"),
                *("-F", "999", *(("--call-graph", graph) if graph else ()), "-o", str(data), "--"),
                *(sys.executable, *python, str(PROGRAMS / "reported.py"), *scene),
                env={**os.environ, "JITDUMPDIR": str(directory)},
                cwd=directory,
            )
            pids.extend(re.findall(r"\d+", said))
            if way == "jitdump":
                made[key] = directory / "perf.jit.data"
                run(tool("perf"), "inject", "-j", "-i", str(data), "-o", str(made[key]))
        return made[key]

    yield record
    for pid in pids:
        for pattern in (f"perf-{pid}.map", f"jit-{pid}.dump", f"jitted-{pid}-*.so"):
            for path in Path("/tmp").glob(pattern):
                path.unlink()


def command(data: Path | str, *options: str, status: int = 0, **variables: str) -> str:
    """What the command prints, on both outputs."""
    arguments = sys.executable, "-m", "jitlisten", "report", *options, str(data)
    return run(*arguments, status=status, env={**os.environ, **variables})


@cache
def report(data: Path, *options: str) -> str:
    """The same without a process of its own, once for all tests: reports take their time."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setenv("COLUMNS", "400")
        assert jitlisten.main(["report", *options, str(data)]) == 0, said.getvalue()
    return said.getvalue()


def table(data: Path) -> dict[str, int]:
    """The JIT functions, and the samples that each has."""
    rows = re.findall(rf"^{SHARE}{SHARE} +([\d,]+)   (\S.*?)(?:  .*)?$", report(data), re.MULTILINE)
    return {name: int(samples.replace(",", "")) for *_, samples, name in rows}


def lines(data: Path) -> dict[tuple[int, str], int]:
    """The source lines under the functions, and the samples that each has."""
    rows = re.findall(rf"^{SHARE}{SHARE} +([\d,]+)  +(\d+)  (.*?) *$", report(data), re.MULTILINE)
    return {(int(line), text): int(samples) for *_, samples, line, text in rows}


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
    ((total, line),) = re.findall(rf"^ +{SHARE} +\d+  (.*steps.*)$", text, re.MULTILINE)
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
    functions = {name for _, name in judge(data, "dso", "sym")}
    assert {"steps", "longest"} >= table(data).keys()
    collapsed = report(data, "--format", "collapsed")
    assert ("py::" in "".join(functions)) == ("py::" in collapsed)
    assert not re.search(r"py::[^;]*_\[j\]", collapsed)


# Viewers' formats


def weights(data: Path) -> tuple[int, int]:
    """Of all samples, and of those in `steps`: ns."""
    text = run(tool("perf"), "script", "-i", str(data), "-F", "period,ip,sym", "-G")
    rows = re.findall(r"^ *(\d+) +[0-9a-f]+ (.*)$", text, re.MULTILINE)
    return sum(int(n) for n, _ in rows), sum(int(n) for n, name in rows if "steps" in name)


def test_collapsed_stacks(record):
    data = record("images", "collatz", "mcjit")
    rows = [line.rpartition(" ") for line in report(data, "--format", "collapsed").splitlines()]
    total, steps = weights(data)
    assert sum(int(weight) for *_, weight in rows) == total
    assert sum(int(w) for stack, _, w in rows if stack.endswith("longest_[j];steps_[j]")) == (
        pytest.approx(steps, rel=0.02)
    )
    assert all(stack.startswith("python;") or stack == "python" for stack, *_ in rows)
    assert any(stack.endswith("_[k]") for stack, *_ in rows)


def test_speedscope(record, tmp_path):
    data = record("images", "processes")
    written = tmp_path / "speedscope.json"
    assert report(data, "--format", "speedscope", "-o", str(written)) == ""
    file = json.loads(written.read_text())
    # https://www.speedscope.app/file-format-schema.json
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = file["shared"]["frames"]
    assert all(isinstance(frame["name"], str) for frame in frames)
    assert file["activeProfileIndex"] in range(len(file["profiles"]))
    assert len(file["profiles"]) == 2
    own: Counter[str] = Counter()
    for profile in file["profiles"]:
        assert profile.keys() == {
            *("type", "name", "unit", "startValue", "endValue", "samples", "weights")
        }
        assert (profile["type"], profile["unit"]) == ("sampled", "nanoseconds")
        assert len(profile["samples"]) == len(profile["weights"])
        assert profile["endValue"] - profile["startValue"] == sum(profile["weights"])
        for stack, weight in zip(profile["samples"], profile["weights"], strict=True):
            assert stack
            own[frames[stack[-1]]["name"]] += weight
    counted = table(data)
    assert own["both"] / counted["both"] == pytest.approx(own["child"] / counted["child"])
    assert sum(own.values()) == weights(data)[0]


def test_firefox(record):
    data = record("images", "collatz", "mcjit")
    profile = json.loads(report(data, "--format", "firefox"))
    # src/types/profile.ts of github.com/firefox-devtools/profiler
    meta, shared = profile["meta"], profile["shared"]
    assert {
        "interval",
        "startTime",
        "processType",
        "product",
        "stackwalk",
        "version",
    } <= meta.keys()
    assert meta["preprocessedProfileVersion"] == 60
    assert [c["name"] for c in meta["categories"]] == ["JIT", "Python", "native", "kernel"]
    assert "grey" in [category["color"] for category in meta["categories"]]
    columns = {
        "stackTable": "frame prefix",
        "frameTable": "address inlineDepth category subcategory func nativeSymbol innerWindowID"
        " line column",
        "funcTable": "name isJS relevantForJS resource source lineNumber columnNumber",
        "resourceTable": "lib name host type",
        "nativeSymbols": "libIndex address name functionSize",
        "sources": "id filename",
    }
    assert shared.keys() == {*columns, "stringArray"}
    for name, expected in columns.items():
        assert shared[name].keys() == {"length", *expected.split()}
        assert all(
            len(shared[name][column]) == shared[name]["length"] for column in expected.split()
        )
    strings, stacks, frames = shared["stringArray"], shared["stackTable"], shared["frameTable"]
    for stack, prefix in enumerate(stacks["prefix"]):
        assert prefix is None or 0 <= prefix < stack
    functions = shared["funcTable"]
    by_line: Counter[int] = Counter()
    total = 0
    for thread in profile["threads"]:
        assert isinstance(thread["pid"], str)
        samples = thread["samples"]
        assert samples["weightType"] == "tracing-ms"
        assert samples["time"] == sorted(samples["time"])
        for stack, weight in zip(samples["stack"], samples["weight"], strict=True):
            frame = stacks["frame"][stack]
            function = frames["func"][frame]
            total += weight
            if strings[functions["name"][function]] == "steps":
                file = strings[shared["sources"]["filename"][functions["source"][function]]]
                assert file == str(EXAMPLES / "collatz.tiny")
                assert frames["category"][frame] == 0
                by_line[frames["line"][frame]] += weight
    period = weights(data)[0] / len(profile["threads"][0]["samples"]["stack"])
    for (line, _), samples in lines(data).items():
        assert by_line[line] == pytest.approx(samples * period / 1e6, rel=0.01)
    assert total == pytest.approx(weights(data)[0] / 1e6)


# The flame graph

COLOURS = {"jit": (255, 159, 64), "native": (205, 211, 218), "kernel": (201, 160, 220)}
MEASURE = """
const boxes = frames.map(([rect, text, frame]) => {
  const {x, y, width, height} = rect.getBoundingClientRect();
  return {
    name: frame.dataset.name, classes: [...frame.classList], x, y, width, height,
    text: text.textContent, textWidth: text.getBoundingClientRect().width,
    title: frame.querySelector("title").textContent, opacity: getComputedStyle(frame).opacity,
  };
});
document.getElementById("title").setAttribute("data-boxes", JSON.stringify(boxes));
"""


def browse(*options: str, directory: Path) -> str:
    return run(
        *(tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--window-size=900,560", f"--user-data-dir={directory / 'browser'}", *options),
        env={**os.environ, "HOME": str(directory)},
    )


@cache
def boxes(svg: Path, action: str = "") -> list[dict[str, Any]]:
    """The boxes that a browser shows, after an `action` in its language."""
    frames = 'const frames = [...document.querySelectorAll(".frame:not(.hidden)")]'
    frames += '.map((frame) => [frame.querySelector("rect"), frame.querySelector("text"), frame]);'
    script = f"<script><![CDATA[{{{action};{frames}{MEASURE}}}]]></script></svg>"
    measured = svg.with_name("measured.svg")
    measured.write_text(svg.read_text().replace("</svg>", script))
    dom = browse("--dump-dom", measured.as_uri(), directory=svg.parent)
    (found,) = re.findall(r'data-boxes="([^"]*)"', dom)
    return json.loads(html.unescape(found))


def named(boxes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(box for box in boxes if box["name"] == name)


def pixels(png: Path) -> numpy.ndarray:
    """Rows of pixels, each red, green, blue (PNG specification; 9.2 has the filters)."""
    data = png.read_bytes()
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    packed, offset = b"", 8
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        if data[offset + 4 : offset + 8] == b"IDAT":
            packed += data[offset + 8 : offset + 8 + length]
        offset += length + 12
    raw = zlib.decompress(packed)
    rows = [bytearray(size * (width + 1))]  # with a pixel of zeros at the left
    for start in range(0, len(raw), size * width + 1):
        row = bytearray(size) + raw[start + 1 : start + 1 + size * width]
        above = rows[-1]
        for i in range(size, len(row)) if raw[start] else ():
            left, up, corner = row[i - size], above[i], above[i - size]
            if raw[start] == 4:
                far = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
                guess = (left, up, corner)[far.index(min(far))]
            else:
                guess = (0, left, up, (left + up) // 2)[raw[start]]
            row[i] = (row[i] + guess) & 0xFF
        rows.append(row)
    image = numpy.frombuffer(b"".join(rows[1:]), numpy.uint8).reshape(height, width + 1, size)
    return image[:, 1:, :3].astype(int)


@pytest.fixture(scope="session")
def graph(record: Record, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recording, and its flame graph."""
    data = record("images", "collatz", "mcjit", graph="dwarf,16384")
    svg = tmp_path_factory.mktemp("graph") / "graph.svg"
    assert report(data, "--svg", str(svg)) == ""
    return data, svg


def test_a_browser_shows_the_hot_function_in_the_colour_of_jit_code_and_its_name(graph):
    data, svg = graph
    shown = boxes(svg)
    steps, longest, root = (named(shown, name) for name in ("steps", "longest", "python"))
    share = weights(data)[1] / weights(data)[0]
    # The kernel's time in `steps` is part of its width.
    assert steps["width"] / root["width"] == pytest.approx(share, abs=0.05)
    assert steps["y"] == longest["y"] + longest["height"]
    assert longest["x"] - 1 <= steps["x"] < longest["x"] + longest["width"]
    assert steps["text"] == "steps"
    assert re.fullmatch(r"steps\nJIT: .*collatz.tiny\n[\d.]+ %, [\d,]+ samples, .*", steps["title"])

    png = svg.with_suffix(".png")
    browse(f"--screenshot={png}", svg.as_uri(), directory=svg.parent)
    image = pixels(png)

    def part(box: dict[str, Any], start: float, end: float) -> numpy.ndarray:
        left, top = box["x"] + 2, box["y"] + 2
        rows = slice(round(top), round(top + box["height"] - 4))
        return image[rows, round(left + start) : round(left + end)].reshape(-1, 3)

    for box in (steps, longest, named(shown, "__libc_start_call_main")):
        kind = box["classes"][1]
        behind_text = part(box, box["textWidth"] + 10, box["width"] - 6)
        assert (behind_text == COLOURS[kind]).all()
        letters = (part(box, 0, box["textWidth"] + 4).sum(axis=1) < 200).sum()
        assert letters > 5 * len(box["text"])
    keys = re.findall(r'<rect class="key (\w+)" x="(\d+)" y="(\d+)"', svg.read_text())
    found = {kind: image[int(y) + 7, int(x) + 7] for kind, x, y in keys}
    assert all((found[kind] == colour).all() for kind, colour in COLOURS.items())


def test_every_text_fits_into_its_box(graph):
    shown = boxes(graph[1])
    texts = [box for box in shown if box["text"]]
    assert len(texts) > 20
    assert all(box["textWidth"] <= box["width"] for box in texts)
    assert {box["text"] == box["name"] or box["text"][-1] == "…" for box in texts} == {True}


def test_a_click_zooms_and_the_root_leads_back(graph):
    svg = graph[1]
    click = "document.querySelector('{}').dispatchEvent(new MouseEvent('click'));"
    zoom, leave = click.format("[data-name=longest]"), click.format(".frame")
    zoomed = boxes(svg, zoom)
    whole = named(zoomed, "python")["width"]
    assert named(zoomed, "longest")["width"] == pytest.approx(whole)
    assert named(zoomed, "steps")["width"] > 0.9 * whole
    assert "above" in named(zoomed, "_start")["classes"]
    assert len(zoomed) < len(boxes(svg)) / 2
    assert len(boxes(svg, zoom + leave)) == len(boxes(svg))


def test_search_leaves_what_matches(graph):
    svg = graph[1]
    search = "const box = document.getElementById('search'); box.value = 'STEPS';"
    found = boxes(svg, search + "box.dispatchEvent(new Event('input'))")
    assert {box["name"] for box in found if box["opacity"] == "1"} == {"steps"}


def test_the_file_needs_nothing_else_and_holds_any_name(record, tmp_path):
    svg = tmp_path / "graph.svg"
    report(record("images", "names"), "--svg", str(svg))
    text = svg.read_text()
    links = set(re.findall(r"\w+://[^\"'\s]*", text))
    assert links == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
    assert not re.search(r"@import|url\(|href|\bsrc=", text)
    frames = ElementTree.fromstring(text).findall(".//*[@data-name]")
    assert {name.replace("\n", "?") for name in NAMES} <= {f.get("data-name") for f in frames}


# Errors


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


def test_what_a_truncated_recording_still_has_is_shown(record, tmp_path):
    whole = record("images", "collatz", "mcjit").read_bytes()
    data = tmp_path / "perf.data"
    data.write_bytes(whole[: len(whole) // 2])
    said = command(data, status=1)
    assert "jitlisten report: " in said
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


def test_one_of_several_events(tmp_path):
    data = tmp_path / "perf.data"
    run(
        *(tool("perf"), "record", "-q", "-N", "-e", "cpu-clock", "-e", "page-faults", "-c", "1"),
        *("-o", str(data), "--", sys.executable, "-c", "sum(range(100_000))"),
        status=None,
    )
    assert "of page-faults" in report(data, "--event", "page-faults")
    assert "page-faults" in error(data, "--event", "cycles")
