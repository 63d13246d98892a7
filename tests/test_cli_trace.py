"""`jitlisten run --trace`: one file for all processes."""

from __future__ import annotations

import os
import sys

import pytest
from tools import run
from traces import NO_TRACES, START, lifetimes, of, read

RUN = (sys.executable, "-m", "jitlisten", "run")
PARENT = (
    START
    + """
import multiprocessing, subprocess

def work(name):
    program = Program("rtdyld")
    program.load(f"define i64 @{name}() {{ ret i64 1 }}", name)
    kept.append(program)

kept = []
if __name__ == "__main__":
    work("parent")
    child = "import parent; parent.work('child')"
    subprocess.run([sys.executable, "-c", child], cwd="/", check=True)
    for method in "spawn", "fork":
        process = multiprocessing.get_context(method).Process(target=work, args=(method,))
        process.start()
        process.join()
"""
)


def test_run_writes_all_processes_to_one_file(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
    path = tmp_path / "a trace, of all.json"
    for options in ([], ["--gdb", "--perf-map"]):  # the second one replaces the first
        command = (*RUN, *options, "--trace", path.name, sys.executable, "parent.py")
        assert run(*command, cwd=tmp_path, env=environment) == ""
    events = read(path)
    pairs = lifetimes(events)
    assert all(end for _, end in pairs)
    names = {begin["name"]: begin["pid"] for begin, _ in pairs}
    assert sorted(names) == ["child", "fork", "parent", "spawn"]
    assert len(set(names.values())) == 4
    told = {event["name"] for event in of(events, "listener")}
    assert told == {"GDBRegistration", "PerfMap", "Trace"}


@pytest.mark.parametrize("text", NO_TRACES)
def test_run_refuses_a_file_that_is_no_trace(path, text):
    path.write_text(text)
    said = run(*RUN, f"--trace={path}", "true", status=125)
    assert said == f"jitlisten run: cannot write '{path}': it is there, and is not a trace\n"
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", "[\n", '[\n{"ph": "M"},\n{}]', '[\n{"ph": "M", "na'])
def test_run_empties_a_trace_however_it_ends(path, text):
    path.write_text(text)
    run(*RUN, f"--trace={path}", "true")
    assert path.read_text() == ""


def test_a_module_called_listeners_is_not_taken_for_ours(tmp_path):
    (tmp_path / "listeners.py").touch()
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    assert run(*RUN, "--trace", "trace.json", "true", cwd=tmp_path, env=environment) == ""


def test_run_refuses_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    said = run(*RUN, "--trace", str(tmp_path / "file" / "none"), "true", status=125)
    assert said == f"jitlisten run: cannot write '{tmp_path}/file/none': Not a directory\n"


def test_the_variables_alone_trace():
    said = run(sys.executable, "-c", "import llvmlite.binding", env={"JITLISTEN": "trace"})
    assert said == (
        "jitlisten: nothing is attached: JITLISTEN names trace: set JITLISTEN_TRACE to the path"
        " of its file\n"
    )
