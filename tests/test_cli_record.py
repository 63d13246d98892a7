"""`jitlisten record`: one command from an unchanged program to a profile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from denied import deny
from perftools import Recording, container
from recorded import RECORD, events, record
from tools import JITLISTEN, run, tool

pytestmark = pytest.mark.tools

# Flags that memory for call frames is reserved with: x86-64 and AArch64 have the same ones.
NORESERVE_FIXED_NOREPLACE_ANONYMOUS_PRIVATE = 0x104022


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
