"""`jitlisten record` when signals come: to it, to its program, from a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from perftools import Recording
from recorded import RECORD, events, record
from tools import heed, tool

pytestmark = pytest.mark.tools


def started(
    directory: Path,
    *arguments: str,
    heeded: int = signal.SIGTERM,
    within: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """The command under way, which heeds that signal; `within` is what starts it."""
    return subprocess.Popen(
        [*within, *RECORD, *arguments],
        cwd=directory,
        env={**os.environ, "JITDUMPDIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(heed, heeded),
    )


def test_after_ctrl_c_the_program_ends_in_its_own_way_and_is_recorded_to_the_end(
    app: Path,
) -> None:
    with app.open("a") as file:
        file.write(
            "import time\n"
            "try:\n"
            "    print('ready', flush=True)\n"
            "    time.sleep(60)\n"
            "except KeyboardInterrupt:\n"
            "    def afterwards(): return longest(300_000)\n"
            "    print('interrupted', afterwards(), flush=True)\n"
            "    raise\n"
        )
    with in_terminal(app.parent, sys.executable, str(app)) as (process, terminal):
        said = _read_until(terminal, "ready")
        os.write(terminal, b"\x03")
        said += _read_until(terminal, "jitlisten report")
        assert process.wait(30) == -signal.SIGINT, said
    os.close(terminal)
    (app.parent / "pids").write_text(said)
    assert said.count("interrupted 442") == 1
    assert "the profile is perf.data" in said
    inside = Recording(app.with_name("perf.data")).chains("steps")
    afterwards = [chain for chain in inside if len(chain) > 10]
    assert len(afterwards) > 40


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("echo ready; exec sleep 60", -signal.SIGHUP),
        ("trap 'exit 0' HUP; echo ready; sleep 60 & wait", 0),
    ],
)
def test_when_its_terminal_has_gone_the_program_is_told_and_leaves_a_profile(
    command: str, status: int, tmp_path: Path
) -> None:
    with in_terminal(tmp_path, "--", "sh", "-c", command) as (process, terminal):
        _read_until(terminal, "ready")
        os.close(terminal)
        assert process.wait(30) == status
    assert events(tmp_path / "perf.data")


@contextmanager
def in_terminal(directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command, the leader of a session in a terminal, and what is at the terminal's other end.

    The signals of a terminal end it.
    """
    terminal, end = pty.openpty()

    def before() -> None:
        heed(signal.SIGINT)
        heed(signal.SIGHUP)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [*RECORD, *arguments],
        cwd=directory,
        env={**os.environ, "JITDUMPDIR": str(directory)},
        **dict.fromkeys(("stdin", "stdout", "stderr"), end),
        start_new_session=True,
        preexec_fn=before,
    ) as process:
        os.close(end)
        yield process, terminal


def _read_until(terminal: int, what: str) -> str:
    said = ""
    while what not in said:
        said += os.read(terminal, 1000).decode()
    return said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_leaves_a_profile(number: int, home: Path) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with started(home, sys.executable, "-c", program, heeded=number) as process:
        assert process.stdout
        assert process.stderr
        (home / "pids").write_text(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(30) == -number
        assert "the profile is perf.data" in process.stderr.read()
    assert events(home / "perf.data")


def test_a_signal_that_may_not_be_sent_to_the_program_ends_nothing(tmp_path: Path) -> None:
    other_user = tool("setpriv"), "--reuid=65534", "--clear-groups"
    waiting = ("--", *other_user, "sh", "-c", "echo ready; read forever")
    no_right = (tool("setpriv"), "--bounding-set=-kill", "--inh-caps=-kill")
    with started(tmp_path, *waiting, within=no_right) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        while not re.search(r"ShdPnd:\t0+\n", Path(f"/proc/{process.pid}/status").read_text()):
            time.sleep(0.01)
        _, told = process.communicate("\n", timeout=60)
    assert "the profile is perf.data" in told
    assert process.returncode == 0
    assert events(tmp_path / "perf.data")


def test_a_signal_while_perf_finishes_the_profile_does_not_spoil_it(tmp_path: Path) -> None:
    waiting = ("--", "sh", "-c", "echo $$; read forever")
    with started(tmp_path, *waiting, heeded=signal.SIGINT) as process:
        assert process.stdin
        assert process.stdout
        program = process.stdout.readline().strip()
        [perf] = _perfs_in(tmp_path)
        os.kill(perf, signal.SIGSTOP)
        process.stdin.write("\n")
        process.stdin.flush()
        while Path("/proc", program).exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        os.kill(perf, signal.SIGCONT)
        _, told = process.communicate(timeout=60)
    assert told == "jitlisten record: the profile is perf.data: jitlisten report\n"
    assert process.returncode == 0
    assert events(tmp_path / "perf.data")


def test_no_process_is_left_when_the_program_has_ended(tmp_path: Path) -> None:
    record(tmp_path, "--", "sh", "-c", "sleep 0.3 & exit 0")
    time.sleep(0.1)
    assert not _perfs_in(tmp_path)


@pytest.mark.parametrize("options", [[], ["-a", "--"]])
def test_killed_it_leaves_the_profile_so_far_and_the_program_alone(
    options: list[str], app: Path
) -> None:
    with app.open("a") as file:
        file.write("print('ready', flush=True)\nwhile True: work(10_000)\n")
    with started(app.parent, *options, sys.executable, str(app)) as process:
        assert process.stdout
        said = process.stdout.readline()
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.wait()
        (app.parent / "pids").write_text(said)
        pid = int(said.split()[0])
        try:
            _wait_for_perf_of(app.parent)
            os.kill(pid, 0)
        finally:
            os.kill(pid, signal.SIGKILL)
    assert Recording(app.with_name("perf.data")).shares()["steps"] > 1


def _wait_for_perf_of(directory: Path) -> None:
    end = time.monotonic() + 30
    while _perfs_in(directory):
        assert time.monotonic() < end
        time.sleep(0.05)


def _perfs_in(directory: Path) -> list[int]:
    """The numbers of those that record in a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            is_perf = b"perf\0record" in path.read_bytes()
            if is_perf and path.with_name("cwd").readlink() == directory:
                found.append(int(path.parent.name))
    return found
