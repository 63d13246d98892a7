"""perf outside of a container, as another user, and where /tmp cannot be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from perftools import PATH, Recording, clean, container, record
from tools import PROGRAMS, run, tool

pytestmark = pytest.mark.tools

WAYS = ("images", "jitdump", "map")
PROFILED = (sys.executable, f"{PROGRAMS}/profiled.py")


def hot_function(recording: Recording) -> str:
    return recording.rows("sym")[0][1]


def test_images_name_code_of_a_container_after_it_has_ended(tmp_path: Path) -> None:
    program = (*PROFILED, "images", "mcjit", "hot")
    recording = record(tmp_path, *container(tmp_path, *program), options=("-g",))
    assert recording.numbers["pid"] == "1"
    assert hot_function(recording) == "hot"
    assert recording.chains("hot")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_names_code_of_a_container_while_it_runs(way: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        container(tmp_path, *PROFILED, way, "mcjit", "loop"),
        env={**os.environ, "JITDUMPDIR": str(tmp_path), "PYTHONPATH": PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        said = [process.stdout.readline() for _ in range(2)]
        assert said[0] == "pid 1\n"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        recording = record(tmp_path, "sleep", "0.3", options=("-p", child), inject=way == "jitdump")
        assert hot_function(recording) == "hot"
        process.communicate()
        assert process.returncode == 0


@pytest.mark.parametrize("way", ["images", "jitdump"])
def test_clean_keeps_what_a_program_of_another_container_uses(way: str, tmp_path: Path) -> None:
    environment = {**os.environ, "JITDUMPDIR": str(tmp_path), "PYTHONPATH": PATH}
    with subprocess.Popen(
        (tool("unshare"), "--pid", "--mount-proc", "--fork", *PROFILED, way, "mcjit", "loop"),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "pid 1\n"
        process.stdout.readline()
        assert f"0 removed from {tmp_path}" in clean(tmp_path)
        process.communicate()
    assert f"1 removed from {tmp_path}" in clean(tmp_path)


def test_clean_removes_from_tmp_what_ended_processes_of_this_user_have_left(
    tmp_path: Path,
) -> None:
    script = """
import os, subprocess, sys
from pathlib import Path
os.chdir("/tmp")
mine = os.getpid()
ended = int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))
gone = [f"jit-{ended}.dump", f"jitted-{ended}-0.so", f"jitted-{ended}-12.so"]
kept = [f"jit-{mine}.dump", f"jitted-{mine}-0.so", f"jit-{ended}.txt", f"steps-{ended}-0.so"]
theirs = [f"jit-{ended + 1}.dump", f"jitted-{ended + 1}-0.so"]
for name in gone + kept + theirs:
    Path(name).write_bytes(b"x")
for name in theirs:
    os.chown(name, 65534, 65534)
Path(f"jit-{ended + 2}.dump").symlink_to(kept[0])
Path(f"jitted-{ended}-1.so").mkdir()
print(*sorted(set(os.listdir()) - set(gone)), flush=True)
subprocess.run([sys.executable, "-m", "jitlisten", "clean"], check=True)
print(*sorted(os.listdir()))
"""
    environment = {**os.environ, "JITDUMPDIR": str(tmp_path), "PYTHONPATH": PATH}
    said = run(*container(tmp_path, sys.executable, "-c", script), env=environment)
    expected, _, removed, left = said.splitlines()
    assert left == expected
    assert removed == "3 removed from /tmp: 0.0 MB"


@pytest.mark.parametrize("way", WAYS)
def test_root_s_perf_names_code_of_another_user(way: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    # The capability is for a Python that only root may read.
    user = ("--reuid=65534", "--regid=65534", "--clear-groups")
    rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    directory = f"JITDUMPDIR={tmp_path}/theirs"
    recording = record(
        tmp_path,
        *(tool("setpriv"), *user, *rights, "env", directory, *PROFILED, way, "mcjit", "hot"),
        inject=way == "jitdump",
    )
    written = [*(tmp_path / "theirs").rglob("*.so"), *(tmp_path / "theirs").rglob("*.dump")]
    if way == "map":
        written = [Path(f"/tmp/perf-{recording.numbers['pid']}.map")]
    assert {path.stat().st_uid for path in written if "jitted" not in path.name} == {65534}
    assert {path.stat().st_mode & 0o777 for path in written if "jitted" not in path.name} == {0o600}
    assert hot_function(recording) == "hot"


def test_a_recording_made_inside_a_container_has_it_all(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "jitlisten", "record", "-o", f"{tmp_path}/data", "--")
    program = (sys.executable, f"{PROGRAMS}/jit.py", "mcjit", "--limit", "200000")
    run(
        *container(tmp_path, *command, *program),
        env={**os.environ, "JITDUMPDIR": str(tmp_path), "PYTHONPATH": PATH},
    )
    assert "steps" in Recording(tmp_path / "data").shares()


def test_a_user_without_a_home_is_told_where_the_files_cannot_be() -> None:
    """As in containers that run under a number without a name."""
    user = ("--reuid=54321", "--regid=54321", "--clear-groups")
    # The capability is for a Python that only root may read.
    rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    command = (tool("setpriv"), *user, *rights, sys.executable, "-m", "jitlisten")
    names = ("HOME", "JITDUMPDIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PYTHONPATH"] = PATH
    said = run(*command, "clean", status=1, env=environment)
    assert said == (
        "jitlisten clean: no place for what perf reads: this user has no home;"
        " set JITDUMPDIR to a directory that can be written\n"
    )
    checks = json.loads(run(*command, "doctor", "--json", status=None, env=environment))["checks"]
    found = {check["name"]: check for check in checks}
    for name in ("images", "jitdump"):
        assert found[name]["state"] == "warning"
        assert "no home; set JITDUMPDIR" in found[name]["detail"]


@pytest.mark.parametrize("directory", ["", "/proc"], ids=["images", "nothing"])
def test_with_a_read_only_tmp_the_program_runs_and_record_says_what_is_lost(
    directory: str, tmp_path: Path
) -> None:
    read_only = """
        set -e
        mount --bind /tmp /tmp
        cd /tmp
        case $0 in /tmp/*) mount --bind "./${0#/tmp/}" "$0" ;; esac
        mount -o remount,bind,ro /tmp
        exec "$@"
    """
    command = (sys.executable, "-m", "jitlisten", "record", "-o", f"{tmp_path}/data", "--")
    program = (sys.executable, f"{PROGRAMS}/jit.py", "mcjit", "--limit", "200000", "--attach")
    said = run(
        *(tool("unshare"), "--mount", "sh", "-c", read_only, str(tmp_path)),
        *(*command, *program, "never"),
        env={**os.environ, "JITDUMPDIR": directory or str(tmp_path), "PYTHONPATH": PATH},
    )
    assert "longest 382" in said
    assert "Traceback" not in said
    lost = "JIT'd code has no names" in said
    assert lost == bool(directory)
    assert ("Read-only file system" in said) == lost
    assert ("steps" in Recording(tmp_path / "data").shares()) != lost
