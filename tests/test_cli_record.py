"""`jitlisten record`: one command from an unchanged program to a profile."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from denied import deny
from perftools import Recording, container
from tools import JITLISTEN, PROGRAMS, heed, run, tool

pytestmark = pytest.mark.tools

RECORD = [*JITLISTEN, "record"]
COLLATZ = f"""
import os, sys
sys.path[:0] = [{str(PROGRAMS)!r}]
from jit import Long, Program, initialize, source_ir
initialize()
program = Program("mcjit")
longest = Long(program.load(source_ir(), "steps", "longest")[1])

def work(limit):
    return longest(limit)

print(os.getpid(), work(300_000))
"""
# Flags that memory for call frames is reserved with: x86-64 and AArch64 have the same ones.
NORESERVE_FIXED_NOREPLACE_ANONYMOUS_PRIVATE = 0x104022


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory; programs that are Pythons have their number in its file `pids`."""
    yield tmp_path
    pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
    for pattern in ("perf-*.map", "jit-*.dump", "jitted-*.so"):
        for path in Path("/tmp").glob(pattern):
            if re.split(r"[-.]", path.name)[1] in pids:
                path.unlink()


@pytest.fixture
def app(home: Path) -> Path:
    """A program that works in JIT'd code, and says its number."""
    (home / "app.py").write_text(COLLATZ)
    return home / "app.py"


def record(
    home: Path,
    *arguments: str,
    status: int = 0,
    before: Callable[[], Any] | None = None,
    **variables: str,
) -> tuple[str, str]:
    """What the program and the command say, on stdout and stderr."""
    outcome = subprocess.run(
        [*RECORD, *arguments],
        cwd=home,
        env={**os.environ, "JITDUMPDIR": str(home), **variables},
        preexec_fn=before,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome.returncode == status, outcome.stderr
    with (home / "pids").open("a") as pids:
        pids.write(outcome.stdout)
    return outcome.stdout, outcome.stderr


def check_chains(recording: Recording) -> None:
    """The call chains of samples in `steps` reach the program's start."""
    inside = recording.chains("steps")
    whole = [chain for chain in inside if chain[1] == "longest" and chain[-1] == "_start"]
    assert len(whole) > 0.98 * len(inside) > 20
    if sys.version_info >= (3, 13):
        assert any(function.startswith("py::work:") for function in whole[0]), whole[0]


def place_of(symbol: str, recording: Recording) -> str:
    """The file that perf has the symbol from."""
    return next((place for _, name, place in recording.rows("sym,dso") if name == symbol), "")


def events(data: Path) -> str:
    return run(tool("perf"), "evlist", "-v", "-i", str(data))


# A profile


def test_the_code_has_names_callers_and_an_image(app: Path) -> None:
    said, told = record(app.parent, sys.executable, str(app))
    assert said.split()[1] == "442"
    assert told == "jitlisten record: the profile is perf.data: jitlisten report\n"
    recording = Recording(app.with_name("perf.data"))
    check_chains(recording)
    assert re.fullmatch(r"steps-\d+-\w+\.so", place_of("steps", recording))


def test_a_file_that_is_another_one_now_gives_no_names(app: Path) -> None:
    record(app.parent, sys.executable, str(app))
    recording = Recording(app.with_name("perf.data"))
    place = place_of("steps", recording)
    [image] = app.parent.rglob(place)
    data = image.read_bytes()
    build_id = data.index(b"GNU\0") + 4
    image.write_bytes(data[:build_id] + bytes(20) + data[build_id + 20 :])
    assert place_of("steps", recording) == ""


def test_where_images_cannot_be_mapped_whole_it_is_a_jitdump_injected(app: Path) -> None:
    denied = deny("mmap", NORESERVE_FIXED_NOREPLACE_ANONYMOUS_PRIVATE, argument=3)
    program = ("-o", "here", "--", sys.executable, str(app))
    said, told = record(app.parent, *program, before=denied, HOME=str(app.parent))
    assert said.split()[1] == "442"
    assert "no images: call chains by dwarf end at code: no room for frames" in told
    assert told.endswith(
        "JIT'd code is recorded by jitdump\n"
        "jitlisten record: the profile is here: jitlisten report here\n"
    )
    recording = Recording(app.with_name("here"))
    check_chains(recording)
    assert re.fullmatch(r"jitted-\d+-\d+\.so", place_of("steps", recording))
    assert {path.name for path in app.parent.iterdir()} == {"app.py", "here", "pids", ".debug"}
    assert not list(app.parent.rglob("elf")), "copies that perf inject makes"


def test_without_a_directory_for_either_it_is_the_map_file(app: Path) -> None:
    said, told = record(app.parent, sys.executable, str(app), JITDUMPDIR="/proc")
    assert said.split()[1] == "442"
    assert "no images: " in told
    assert "no jitdump: " in told
    assert "set JITDUMPDIR to a writable directory" in told
    assert "JIT'd code is recorded by perf-map" in told
    assert place_of("steps", Recording(app.with_name("perf.data"))).startswith("[JIT] tid")


@pytest.mark.parametrize("name", ["my data", "-x", "$HOME"])
def test_the_command_that_it_tells_shows_the_profile(name: str, tmp_path: Path) -> None:
    program = sys.executable, "-c", "sum(range(3_000_000))"
    _, told = record(tmp_path, "-o", name, "--", *program)
    _, _, command = told.rstrip().partition(f"the profile is {name}: jitlisten ")
    shown = run("sh", "-c", f'"$@" {command}', "sh", *JITLISTEN, cwd=tmp_path)
    assert shown.startswith("python: ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], r"cpu-clock.*sample_freq \}: 999.*sample_stack_user: 16384|cycles.*: 999"),
        (["-gF", "123"], r"\}: 123,.*sample_type: [A-Z|]*CALLCHAIN(?!.*sample_stack_user)"),
        (["-e", "task-clock:u", "-c10000"], r"task-clock:u: .*\}: 10000,.*exclude_kernel: 1"),
        (["--call-graph=dwarf,4096", "--event=cpu-clock"], r"cpu-clock: .*sample_stack_user: 4096"),
        (["--call-graph", "fp", "-e", "cpu-clock"], r"CALLCHAIN(?!.*sample_stack_user)"),
        (["-a", "-k", "boottime"], r"clockid: 7"),
    ],
)
def test_options_of_perf_go_before_what_is_chosen(
    options: list[str], expected: str, tmp_path: Path
) -> None:
    record(tmp_path, *options, "-o", "given", "--", "true")
    found = events(tmp_path / "given")
    assert re.search(expected, found), found
    assert "dummy" in found or len(found.splitlines()) == 1


def test_long_options_may_be_abbreviated_as_for_perf(tmp_path: Path) -> None:
    abbreviated = ("--outp=given", "--ev", "task-clock:u", "--fre", "123", "--call-g", "fp")
    _, told = record(tmp_path, *abbreviated, "--", "true")
    assert told == "jitlisten record: the profile is given: jitlisten report given\n"
    found = events(tmp_path / "given")
    assert re.fullmatch(r"task-clock:u: .*\}: 123,(?!.*sample_stack_user).*\n(dummy.*\n)?", found)
    _, told = record(tmp_path, "--ou", "-", "--", "true", status=2)
    assert "the profile has to be a file" in told


def test_a_recording_of_all_processors_leaves_others_alone(tmp_path: Path) -> None:
    options = "-a", "-o", str(tmp_path / "all"), "--"
    with subprocess.Popen(
        [*RECORD, *options, "sh", "-c", "echo; read forever"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        other = "-q", "-e", "cpu-clock", "-o", str(tmp_path / "other")
        run(tool("perf"), "record", *other, "--", sys.executable, "-c", "import json")
        process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert Recording(tmp_path / "other").shares()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="dumps of Python came with Python 3.13")
def test_the_names_of_python_are_there_until_they_are_cleaned(app: Path) -> None:
    script = f"""
import subprocess, sys
from pathlib import Path
for arguments in (["record", "--", sys.executable, {str(app)!r}], ["report", "--tree"], ["clean"]):
    if arguments == ["clean"]:
        dumps, made = (len([*Path("/tmp").glob(pattern)]) for pattern in ("jit-*.dump", "jitted-*"))
        print(dumps, made > 0, flush=True)
    subprocess.run([*{RECORD[:-1]!r}, *arguments], check=True)
print(*Path("/tmp").glob("jit*-*"))
"""
    said = run(
        *container(app.parent, "sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(app.parent)),
        *(sys.executable, "-c", script),
        env={**os.environ, "JITDUMPDIR": str(app.parent)},
    )
    assert re.search(r" work  app\.py\n", said)
    assert re.search(r"\n1 True\n1 removed from .*\n\d\d+ removed from /tmp: .*\n\n$", said)


# The program runs as it would


@pytest.mark.parametrize(
    "command",
    ["exit 3", "kill -TERM $$", "kill -SEGV $$", "kill -KILL $$", "cat; echo $0 $1"],
)
def test_status_input_and_arguments_are_the_program_s(command: str, tmp_path: Path) -> None:
    bare, ours = (
        subprocess.run(
            [*prefix, "sh", "-c", command, "a b", "--"],
            cwd=tmp_path,
            input="in\n",
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        for prefix in ([], RECORD)
    )
    assert (ours.returncode, ours.stdout) == (bare.returncode, bare.stdout)
    assert (tmp_path / "perf.data").exists()


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
    with subprocess.Popen(
        [*RECORD, sys.executable, "-c", program],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(heed, number),
    ) as process:
        assert process.stdout
        assert process.stderr
        (home / "pids").write_text(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(30) == -number
        assert "the profile is perf.data" in process.stderr.read()
    assert events(home / "perf.data")


def test_a_signal_that_may_not_be_sent_to_the_program_ends_nothing(tmp_path: Path) -> None:
    other_user = tool("setpriv"), "--reuid=65534", "--clear-groups"
    with subprocess.Popen(
        [
            *(tool("setpriv"), "--bounding-set=-kill", "--inh-caps=-kill"),
            *(*RECORD, "--", *other_user, "sh", "-c", "echo ready; read forever"),
        ],
        cwd=tmp_path,
        env={**os.environ, "JITDUMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
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
    with subprocess.Popen(
        [*RECORD, "--", "sh", "-c", "echo $$; read forever"],
        cwd=tmp_path,
        env={**os.environ, "JITDUMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(heed, signal.SIGINT),
    ) as process:
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
    with subprocess.Popen(
        [*RECORD, *options, sys.executable, str(app)],
        cwd=app.parent,
        env={**os.environ, "JITDUMPDIR": str(app.parent)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
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


# What goes wrong


def test_without_perf_it_says_where_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "true").symlink_to("/bin/true")
    _, told = record(tmp_path, "true", status=1, PATH=str(tmp_path))
    assert told.startswith("jitlisten record: there is no perf: apt-get install linux-perf")


def test_without_permission_it_says_what_doctor_says(tmp_path: Path) -> None:
    _, told = record(tmp_path, "touch", "ran", status=1, before=deny("perf_event_open"))
    assert re.search(r"^jitlisten record: perf record: .+; sysctl kernel.perf_event_para", told)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-o", "/nowhere/x", "--", "true"], 1, "perf record: failed to open /nowhere/x"),
        (["-e", "nonsense", "--", "true"], 1, "perf record: event syntax error: 'nonsense'"),
        (["--bogus", "--", "true"], 1, "perf record: Error: unknown option `bogus'"),
        (["-o", "-", "--", "true"], 2, "error: the profile has to be a file"),
        (["-F", "99", "true"], 2, "error: no program is given, or no -- before it"),
        ([], 2, "error: no program is given"),
        *(
            (options, 2, "for what runs already, `perf record -p PID …` and `jitlisten map PID`")
            for options in (["-p", "1"], ["--pid=1"], ["-a"], ["-gt", "1"])
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_the_program_runs(
    arguments: list[str], status: int, said: str, tmp_path: Path
) -> None:
    output, told = record(tmp_path, *arguments, status=status)
    assert output == ""
    assert said in told
    assert not list(tmp_path.glob("perf.data*"))


@pytest.mark.parametrize(
    ("program", "status"),
    [
        *(("nowhere-to-be-found", 127), ("./nowhere", 127), ("./dangling", 127), ("", 127)),
        *(("no-command", 127), ("./no-command", 126), ("on-path", 126), ("/", 126)),
    ],
)
def test_a_program_that_cannot_be_run_is_refused_as_jitlisten_run_does_it(
    program: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("no-command", "bin/on-path"):
        (tmp_path / name).touch(0o644)
    (tmp_path / "dangling").symlink_to("nowhere")
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    _, told = record(tmp_path, "--", program, status=status, PATH=path)
    expected = run(
        *(*JITLISTEN, "run", "--", program),
        cwd=tmp_path,
        status=status,
        env={**os.environ, "PATH": path},
    )
    assert told == expected.replace("jitlisten run", "jitlisten record")
    assert told.startswith(f"jitlisten record: cannot run {program!r}: ")
    assert not (tmp_path / "perf.data").exists()


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_no_obstacle(closed: str, app: Path) -> None:
    """As cron jobs and daemons have them."""
    output = run(
        *("sh", "-c", f'exec "$@" {closed}', "sh", *RECORD, "--", sys.executable, str(app)),
        cwd=app.parent,
        env={**os.environ, "JITDUMPDIR": str(app.parent)},
    )
    (app.parent / "pids").write_text(output)
    assert re.fullmatch(r"\d+ 442\n" if closed != "<&- >&- 2>&-" else "", output)
    assert "steps" in Recording(app.parent / "perf.data").shares()


@pytest.mark.parametrize("size", ["16k", "400k"])
def test_a_full_disk_is_said_and_disturbs_the_program_in_nothing(app: Path, size: str) -> None:
    (app.parent / "small").mkdir()
    mount = f'mount -t tmpfs -o size={size} none small && exec "$@"'
    command = [*RECORD, "-o", "small/data", "--", sys.executable, str(app)]
    outcome = subprocess.run(
        [tool("unshare"), "--mount", "sh", "-c", mount, "sh", *command],
        cwd=app.parent,
        env={**os.environ, "JITDUMPDIR": str(app.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome.returncode == 1
    assert outcome.stdout.split()[1] == "442"
    assert (
        "perf record: failed to write perf data, error: No space left on device" in outcome.stderr
    )
    (app.parent / "pids").write_text(outcome.stdout)
