"""`jitlisten report --format`: what viewers of profiles read."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter

import pytest
from jit import EXAMPLES
from recordings import lines, report, table, weights
from tools import ASCII, JITLISTEN, run, tool

pytestmark = pytest.mark.tools


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
    comms = run(tool("perf"), "script", "-i", str(data), "-G", "-F", "comm").splitlines()
    ((name, _),) = Counter(map(str.strip, comms)).most_common(1)
    assert file["name"] == f"{name}: cpu-clock"
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


@pytest.mark.parametrize("view", ["--svg", "--format=collapsed", "--format=firefox"])
def test_what_is_written_to_a_file_takes_no_rich(view, record, tmp_path):
    options = (view, "-o") if view.startswith("--format") else (view,)
    script = (
        "import sys, jitlisten; status = jitlisten.main(['report', *sys.argv[1:]]);"
        " sys.exit(status or 'rich' in sys.modules)"
    )
    data = record("images", "collatz", "mcjit")
    run(sys.executable, "-c", script, *options, str(tmp_path / "file"), str(data))
    assert (tmp_path / "file").stat().st_size


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


@pytest.mark.parametrize("name", ["collapsed", "speedscope", "firefox"])
def test_what_goes_to_stdout_is_utf_8_wherever(record, name):
    data = record("images", "names")
    command = (*JITLISTEN, "report", "--format", name, str(data))
    said = run(*command, env={**os.environ, **ASCII}, encoding="utf-8")
    assert not said.isascii()
    assert said == report(data, "--format", name)
