"""`jitlisten doctor`: it says what works here, and what does not where something is taken away."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from denied import deny, libc
from tools import JITLISTEN, run, tool

pytestmark = pytest.mark.tools

DOCTOR = [*JITLISTEN, "doctor"]
NAMES = [
    *("gdb", "lldb", "ptrace", "perf", "perf_event_paranoid", "perf_record", "counters"),
    *("llvmlite", "descriptor", "numba", "tmp", "images", "jitdump"),
]

CAP_SYS_ADMIN, CAP_PERFMON = 21, 38  # linux/capability.h
PR_CAPBSET_DROP = 24  # linux/prctl.h
PTRACE_SEIZE = 0x4206


def doctor(
    *command: str, status: int = 0, before: Callable[[], Any] | None = None, **variables: str
) -> dict[str, dict[str, str]]:
    """The checks by name, of the doctor in JSON; `before` runs in its process."""
    outcome = subprocess.run(
        command or [*DOCTOR, "--json"],
        env=os.environ | variables,
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (outcome.returncode, outcome.stderr) == (status, ""), outcome.stdout
    result = json.loads(outcome.stdout)
    assert result["works"] == (status == 0)
    assert [check["name"] for check in result["checks"]] == NAMES
    return {check["name"]: check for check in result["checks"]}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory for PATH that has the tools and nothing else."""
    for name in ("gdb", "lldb", "perf"):
        (tmp_path / name).symlink_to(tool(name))
    return tmp_path


def test_what_is_here_works() -> None:
    checks = doctor()
    version = run(tool("gdb"), "--version").splitlines()[0].split()[-1]
    assert checks["gdb"]["detail"] == version
    assert checks["perf"]["detail"] in run(tool("perf"), "--version")
    assert {name for name in NAMES if checks[name]["state"] == "missing"} == set()
    assert all(check["remedy"] for check in checks.values() if check["state"] != "ok")


def test_the_table_can_be_read_in_a_pipe() -> None:
    table = run(*DOCTOR)
    assert re.findall(r"^ *(\w+) +(?:ok|warning) ", table, re.MULTILINE) == NAMES
    assert "\x1b" not in table
    assert "gdb or lldb stops in JIT'd code, and perf names it." in table


def test_an_output_without_our_characters_or_without_room_is_no_crash() -> None:
    assert "| gdb " in run(*DOCTOR, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    said = run("sh", "-c", 'exec "$@" >/dev/full', "sh", *DOCTOR, status=1)
    assert said == "jitlisten doctor: cannot write: No space left on device\n"


def test_one_debugger_is_enough(programs: Path) -> None:
    (programs / "gdb").unlink()
    checks = doctor(PATH=str(programs))
    assert checks["gdb"]["state"] == "missing"
    assert checks["gdb"]["remedy"] == "apt-get install gdb"
    assert checks["lldb"]["state"] == "ok"
    (programs / "lldb").unlink()
    assert doctor(PATH=str(programs), status=1)["lldb"]["state"] == "missing"


def test_without_perf_the_main_job_cannot_work(programs: Path) -> None:
    (programs / "perf").unlink()
    checks = doctor(PATH=str(programs), status=1)
    assert {checks[name]["state"] for name in ("perf", "perf_record", "counters")} == {"missing"}
    assert "apt-get install linux-perf" in checks["perf"]["remedy"]


@pytest.mark.parametrize(
    ("says", "state"),
    [
        ("GNU gdb (Ubuntu 15.0.50.20240403-0ubuntu1) 15.0.50.20240403-git", "warning"),
        ("GNU gdb (GDB) Fedora Linux 15.2-4.fc41", "warning"),
        ("GNU gdb (Debian 16.3-1) 16.3", "ok"),
        ("GNU gdb (GDB) Red Hat Enterprise Linux 8.2-15.el8", "ok"),
        ("something else", "missing"),
    ],
)
def test_gdb_15_is_told_from_others(programs: Path, says: str, state: str) -> None:
    (programs / "gdb").unlink()
    (programs / "gdb").write_text(f"#!/bin/sh\necho '{says}'\n")
    (programs / "gdb").chmod(0o755)
    check = doctor(PATH=str(programs))["gdb"]
    assert check["state"] == state
    assert ("GDBRegistration(all=True)" in check["remedy"]) == (state == "warning")


def test_without_the_right_to_trace_nothing_can_be_debugged() -> None:
    check = doctor(before=deny("ptrace"), status=1)["ptrace"]
    assert check["state"] == "missing"
    assert "--cap-add=SYS_PTRACE" in check["remedy"]


def test_without_the_right_to_attach_programs_can_be_started_under_a_debugger() -> None:
    check = doctor(before=deny("ptrace", PTRACE_SEIZE))["ptrace"]
    assert check["state"] == "warning"
    assert "not running ones: Operation not permitted" in check["detail"]


def test_a_container_that_denies_perf_events_is_noticed() -> None:
    checks = doctor(before=deny("perf_event_open"), status=1)
    assert checks["perf"]["state"] == "ok"
    assert checks["perf_record"]["state"] == "missing"
    assert "--cap-add=PERFMON" in checks["perf_record"]["remedy"]


def test_a_user_without_privileges_depends_on_the_setting() -> None:
    def drop() -> None:
        libc.prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0)
        libc.prctl(PR_CAPBSET_DROP, CAP_PERFMON, 0, 0, 0)

    value = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    outcome = subprocess.run(
        [*DOCTOR, "--json"], preexec_fn=drop, capture_output=True, text=True, check=False
    )
    checks = {check["name"]: check for check in json.loads(outcome.stdout)["checks"]}
    check = checks["perf_event_paranoid"]
    assert check["state"] == ("ok" if value <= 2 else "warning")
    assert check["detail"].startswith(f"{value}: ")
    assert ("and kernel" in check["detail"]) == (value < 2)
    if value <= 2:
        assert checks["perf_record"]["state"] == "ok"


def test_a_strangers_map_file_is_noticed_and_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    script = f'ln -s {target} /tmp/perf-$$.map && echo $$ > {tmp_path}/pid && exec "$@"'
    try:
        check = doctor("sh", "-c", script, "sh", *DOCTOR, "--json", status=1)["tmp"]
    finally:
        Path(f"/tmp/perf-{(tmp_path / 'pid').read_text().strip()}.map").unlink()
    assert check["state"] == "missing"
    assert "/tmp" in check["remedy"]
    assert target.read_text() == "precious"


def test_it_leaves_no_map_file_behind() -> None:
    path = re.search(r"/tmp/perf-\d+\.map", doctor()["tmp"]["detail"])
    assert path
    assert not Path(path[0]).exists()


def test_an_llvmlite_that_cannot_be_loaded_is_a_line_of_the_report(tmp_path: Path) -> None:
    broken = tmp_path / "llvmlite"
    broken.mkdir()
    (broken / "__init__.py").write_text(
        "raise OSError('Could not find/load shared object file\\n libllvmlite.so')"
    )
    checks = doctor(PYTHONPATH=str(tmp_path), status=1)
    assert checks["llvmlite"]["state"] == "missing"
    assert checks["llvmlite"]["detail"] == (
        "OSError: Could not find/load shared object file libllvmlite.so"
    )
    assert "pip install" in checks["llvmlite"]["remedy"]
    assert checks["descriptor"]["state"] == "missing"
    assert checks["gdb"]["state"] == "ok"
