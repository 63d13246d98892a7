"""`jitlisten run`: any Python program, unchanged, is attached to; and that is all one notices."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path

import llvmlite
import pytest
from tools import JITLISTEN, gdb, heed

import jitlisten
from perfmap import read_jitdump
from perfmap.jitdump import CodeLoad

ROOT = Path(jitlisten.__file__).parents[1]
RUN = [*JITLISTEN, "run"]

# What perf names in this process while a function is loaded.
JITTED = """
import os
from pathlib import Path
import llvmlite.binding as llvm

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

def named(function):
    module = llvm.parse_assembly(f"define i32 @{function}() {{ ret i32 42 }}")
    machine = llvm.Target.from_default_triple().create_target_machine()
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    path.unlink(missing_ok=True)  # of an earlier process of this number
    with llvm.create_mcjit_compiler(module, machine) as engine:
        engine.get_function_address(function)
        lines = path.read_text().split("\\n") if path.exists() else []
    return [line.split(" ", 2)[2] for line in lines if line]
"""
SAY_NAMES = "import jitted; print(*jitted.named('answer'))"


def environment(**variables: str) -> dict[str, str]:
    """The environment of the tests without what this is about."""
    ours = {"PYTHONPATH", "JITLISTEN", "JITLISTEN_TRACE"}
    return {name: value for name, value in os.environ.items() if name not in ours} | variables


def execute(
    *command: str | Path, cwd: Path | None = None, input: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        input=input,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a program `app.py` and its module."""
    (tmp_path / "jitted.py").write_text(JITTED)
    (tmp_path / "app.py").write_text(f"#!{sys.executable}\n{SAY_NAMES}\n")
    (tmp_path / "app.py").chmod(0o755)
    return tmp_path


def make_environment(path: Path, *packages: str) -> Path:
    """A virtual environment with some of the packages that are here; gives its Python."""
    venv.create(path, symlinks=True)
    (site_packages,) = path.glob("lib/python*/site-packages")
    places = {"llvmlite": Path(llvmlite.__file__).parents[1]}
    for package in packages:
        (site_packages / package).symlink_to(places.get(package, ROOT) / package)
    if "jitlisten" in packages:
        shutil.copy(ROOT / "jitlisten" / "jitlisten.pth", site_packages)
    return path / "bin" / "python"


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has llvmlite but not jit-listeners."""
    return make_environment(tmp_path_factory.mktemp("foreign"), "llvmlite")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has jit-listeners in its site-packages."""
    packages = ("llvmlite", "listeners", "gdbjit", "perfmap", "jitlisten")
    return make_environment(tmp_path_factory.mktemp("installed"), *packages)


# The program is attached to


@pytest.mark.parametrize(
    "arguments", [["app.py"], ["-m", "app"], ["-c", SAY_NAMES], ["-B", "-X", "dev", "app.py"]]
)
def test_python_is_attached_however_it_is_started(home: Path, arguments: list[str]) -> None:
    outcome = execute(*RUN, "--", sys.executable, *arguments, cwd=home)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "answer\n", "")


def test_a_script_with_its_own_interpreter_line_is_attached(home: Path) -> None:
    outcome = execute(*RUN, "./app.py", cwd=home)
    assert (outcome.stdout, outcome.stderr) == ("answer\n", "")


def test_only_the_listeners_that_are_asked_for_are_attached(home: Path) -> None:
    assert execute(*RUN, "--perf-map", "./app.py", cwd=home).stdout == "answer\n"
    assert execute(*RUN, "--gdb", "./app.py", cwd=home).stdout == "\n"
    show = ["sh", "-c", "echo $JITLISTEN"]
    assert execute(*RUN, *show).stdout in ("gdb,perf-map\n", "gdb-all,perf-map\n")
    assert execute(*RUN, "--gdb-all", "--perf-map", *show).stdout == "gdb-all,perf-map\n"


def test_a_jitdump_is_written_in_a_directory_of_the_run(home: Path) -> None:
    assert execute(*RUN, "--jitdump", "./app.py", cwd=home, JITDUMPDIR=str(home)).stdout == "\n"
    (path,) = home.glob(".debug/jit/jit-listeners-*/jit-*.dump")
    names = [one.name for one in read_jitdump(path).records if isinstance(one, CodeLoad)]
    assert names == ["answer"]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_children_by_multiprocessing_name_their_code_in_their_own_map(
    home: Path, method: str
) -> None:
    (home / "app.py").write_text(
        "import jitted, multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:\n"
        "        print(*pool.apply(jitted.named, ['child']))\n"
        "    print(*jitted.named('parent'))\n"
    )
    outcome = execute(*RUN, sys.executable, "app.py", method, cwd=home)
    assert (outcome.stdout, outcome.stderr) == ("child\nparent\n", "")


def test_children_by_subprocess_are_attached(home: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, 'app.py'])"
    outcome = execute(*RUN, sys.executable, "-c", program, cwd=home)
    assert (outcome.stdout, outcome.stderr) == ("answer\n", "")


def test_a_python_without_jit_listeners_is_attached(home: Path, foreign: Path) -> None:
    outcome = execute(*RUN, foreign, "app.py", cwd=home)
    assert (outcome.stdout, outcome.stderr) == ("answer\n", "")


def test_a_python_without_jit_listeners_sees_nothing_else_of_ours(
    home: Path, foreign: Path
) -> None:
    program = (
        "import jitted, sys, importlib.util as util\n"
        "print(*jitted.named('answer'))\n"
        "print(sys.path, util.find_spec('rich'), util.find_spec('pytest'))"
    )
    bare = execute(foreign, "-c", program, cwd=home)
    run = execute(*RUN, foreign, "-c", program, cwd=home)
    assert run.stdout == "answer" + bare.stdout
    assert bare.stdout[0] == "\n"
    assert "None None" in run.stdout


def test_the_variable_alone_attaches_where_jit_listeners_is_installed(
    home: Path, installed: Path
) -> None:
    for arguments in (["app.py"], ["-E", "app.py"], ["-I", "app.py"]):
        program = [installed, *arguments]
        if "-I" in arguments:  # without the script's directory on sys.path
            start = f"import sys; sys.path.append({str(home)!r}); {SAY_NAMES}"
            program = [installed, "-I", "-c", start]
        outcome = execute(*program, cwd=home, JITLISTEN=" perf-map,gdb ")
        assert (outcome.stdout, outcome.stderr) == ("answer\n", ""), arguments
    assert execute(installed, "app.py", cwd=home).stdout == "\n"


def test_where_jit_listeners_is_installed_run_attaches_once(home: Path, installed: Path) -> None:
    outcome = execute(*RUN, installed, "app.py", cwd=home)
    assert (outcome.stdout, outcome.stderr) == ("answer\n", "")


def test_run_inside_run_attaches_once(home: Path) -> None:
    outcome = execute(*RUN, *RUN, sys.executable, "app.py", cwd=home)
    assert (outcome.stdout, outcome.stderr) == ("answer\n", "")


@pytest.mark.tools
def test_gdb_stops_in_code_that_llvm_does_not_register(tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(
        "import ctypes, llvmlite.binding as llvm\n"
        "llvm.initialize_native_target(); llvm.initialize_native_asmprinter()\n"
        "machine = llvm.Target.from_default_triple().create_target_machine(jit=True)\n"
        "engine = llvm.create_lljit_compiler(machine, use_jit_link=True)\n"
        "builder = llvm.JITLibraryBuilder().add_ir('define i32 @the_answer() { ret i32 42 }')\n"
        "library = builder.export_symbol('the_answer').link(engine, 'library')\n"
        "print('it is', ctypes.CFUNCTYPE(ctypes.c_int)(library['the_answer'])())\n"
    )
    command = (*RUN[1:], "--gdb", "--", sys.executable, str(program))
    session = gdb("break the_answer", "run", "bt 1", "delete", "continue", program=command)
    assert re.search(r"Breakpoint 1, .* in the_answer \(\)", session), session
    assert "it is 42" in session


# All else is the program's own


def test_arguments_and_input_reach_the_program() -> None:
    program = "import sys; print(sys.argv[1:], sys.stdin.read())"
    arguments = ["--gdb", "--", "-x", "", "a b", "\u20ac", "*"]
    outcome = execute(*RUN, "--gdb", "--", sys.executable, "-c", program, *arguments, input="in")
    assert outcome.stdout == f"{arguments!r} in\n"


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "exit 3"],
        ["sh", "-c", "kill -TERM $$"],
        ["sh", "-c", "kill -PIPE $$; echo ignored"],
        [sys.executable, "-c", "import sys; sys.exit('a message')"],
        [sys.executable, "-W", "error", "-c", "1 / 0"],
        [sys.executable, "-c", "import os; print(os.getcwd(), sorted(os.listdir('/dev/fd')))"],
        [sys.executable, "-c", "import sys, pprint; pprint.pprint([sys.path, sys.flags])"],
        [sys.executable, "-c", "import sys; print('sitecustomize' in sys.modules)"],
    ],
)
def test_output_and_exit_status_are_those_of_the_program_alone(command: list[str]) -> None:
    bare = execute(*command)
    run = execute(*RUN, "--", *command)
    assert (run.returncode, run.stdout, run.stderr) == (bare.returncode, bare.stdout, bare.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_program(number: int) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen(
        [*RUN, sys.executable, "-c", program],
        env=environment(),
        preexec_fn=partial(heed, number),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(number)
        assert process.wait(30) == -number
        error = process.stderr.read()
    assert error.rstrip().endswith("KeyboardInterrupt") if number == signal.SIGINT else not error


def test_the_environment_is_the_programs_own_but_for_two_variables() -> None:
    # In the C locale, Python changes its own.
    given = {"PATH": os.environ["PATH"], "LANG": "C", "PYTHONPATH": "somewhere", "X": "a=b\nc"}
    bare, run = (
        subprocess.run([*prefix, "env", "-0"], env=given, capture_output=True, check=True).stdout
        for prefix in ([], RUN)
    )
    ours = f"{ROOT}/jitlisten/pythonpath"
    expected = bare.replace(b"PYTHONPATH=", f"PYTHONPATH={ours}:".encode())
    assert sorted(run.split(b"\0")) == sorted([*expected.split(b"\0"), b"JITLISTEN=gdb,perf-map"])


def test_a_program_without_llvmlite_loads_nothing_of_it(installed: Path) -> None:
    program = "import sys; print(*(set(sys.modules) & {'llvmlite', 'listeners', 'ctypes'}))"
    assert execute(*RUN, installed, "-c", program).stdout == "\n"


@pytest.mark.parametrize(
    "own", ["print('mine', __name__, __file__)", "raise RuntimeError('mine')", "import nowhere"]
)
def test_the_programs_own_sitecustomize_runs(home: Path, own: str) -> None:
    python = make_environment(home / "environment", "llvmlite")
    (site_packages,) = home.glob("environment/lib/python*/site-packages")
    (site_packages / "sitecustomize.py").write_text(own)
    # Before the standard library, where Debian's Python has a sitecustomize.
    first = f"import sys; sys.path.insert(1, {str(site_packages)!r})"
    (site_packages / "first.pth").write_text(first)
    program = f"import sys; print(sys.modules.get('sitecustomize')); {SAY_NAMES}"
    bare = execute(python, "-c", program, cwd=home)
    run = execute(*RUN, python, "-c", program, cwd=home)
    assert "mine" in bare.stdout + bare.stderr or "nowhere" in bare.stderr
    assert (run.stdout, run.stderr) == (bare.stdout[:-1] + "answer\n", bare.stderr)


@pytest.mark.parametrize("first", ["import listeners, jitted", "import jitted, listeners"])
def test_a_program_with_a_module_called_listeners_keeps_it(
    home: Path, installed: Path, first: str
) -> None:
    (home / "listeners.py").write_text("mine = 'mine'")
    (home / "app.py").write_text(f"{first}; print(listeners.mine, *jitted.named('answer'))")
    outcome = execute(*RUN, installed, "app.py", cwd=home)
    assert (outcome.stdout, outcome.stderr) == ("mine answer\n", "")


def test_a_program_that_uses_listeners_itself_has_the_same_ones(
    home: Path, installed: Path
) -> None:
    (home / "app.py").write_text(
        "import listeners, jitted\n"
        "with listeners.attach(None, listeners.PerfMap()): print(*jitted.named('answer'))"
    )
    assert execute(*RUN, installed, "app.py", cwd=home).stdout == "answer\n"


def test_an_import_of_llvmlite_that_fails_may_be_tried_again(home: Path, foreign: Path) -> None:
    (home / "app.py").write_text(
        "import sys\n"
        "sys.modules['llvmlite.binding.ffi'] = None\n"
        "try: import llvmlite.binding\n"
        "except ImportError: del sys.modules['llvmlite.binding.ffi']\n"
        "import jitted, llvmlite.binding\n"
        "print(*jitted.named('answer'), type(llvmlite.binding.__loader__).__name__)\n"
        "print(type(llvmlite.binding.__spec__.loader).__name__, len(sys.meta_path))\n"
    )
    outcome = execute(*RUN, foreign, "app.py", cwd=home)
    assert outcome.stdout == "answer SourceFileLoader\nSourceFileLoader 4\n", outcome.stderr


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere-to-be-found"], 127, "cannot run 'nowhere-to-be-found': No such file"),
        ([""], 127, "cannot run '': No such file"),
        (["--", "/nowhere/x"], 127, "cannot run '/nowhere/x': No such file"),
        (["/etc/passwd"], 126, "cannot run '/etc/passwd': Permission denied"),
        (["/"], 126, "cannot run '/': Permission denied"),
        (["--trace", "", "--", "true"], 125, "cannot write '': No such file"),
    ],
)
def test_what_cannot_be_run_or_written_is_one_line_and_a_shells_status(
    arguments: list[str], status: int, said: str
) -> None:
    outcome = execute(*RUN, *arguments)
    assert (outcome.returncode, outcome.stdout) == (status, "")
    assert outcome.stderr.startswith(f"jitlisten run: {said}")
    assert outcome.stderr.count("\n") == 1


def test_a_trace_in_a_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    (tmp_path / "gone").mkdir()
    gone = str(tmp_path / "gone")
    outcome = execute("sh", "-c", script, "sh", gone, *RUN, "--trace", "t.json", "true")
    assert outcome.returncode == 125
    assert outcome.stderr == "jitlisten run: cannot write 't.json': No such file or directory\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--gdb"],
        ["--"],
        ["--perf", "true"],
        ["--gdb", "--gdb-all", "true"],
        ["--trace"],
        ["--trace", "file"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    outcome = execute(*RUN, *arguments)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("usage: jitlisten run")


def test_an_unknown_name_in_the_variable_is_one_line_and_attaches_nothing(
    home: Path, installed: Path
) -> None:
    outcome = execute(installed, "app.py", cwd=home, JITLISTEN="perf-map,perfmap")
    assert (outcome.returncode, outcome.stdout) == (0, "\n")
    assert outcome.stderr == (
        "jitlisten: nothing is attached: JITLISTEN names perfmap;"
        " there are gdb, gdb-all, perf-map, images, jitdump, trace\n"
    )


def test_a_failure_to_attach_is_one_line_and_the_program_goes_on(home: Path) -> None:
    (home / "perfmap.py").write_text("mine = 'mine'")
    outcome = execute(*RUN, "./app.py", cwd=home)
    assert (outcome.returncode, outcome.stdout) == (0, "\n")
    assert outcome.stderr.startswith("jitlisten: nothing is attached: ImportError: ")
    assert outcome.stderr.count("\n") == 1


def test_what_a_half_removed_installation_leaves_is_silent(tmp_path: Path, foreign: Path) -> None:
    shutil.copy(ROOT / "jitlisten" / "jitlisten.pth", tmp_path)
    program = f"import site; site.addsitedir({str(tmp_path)!r}); print('runs')"
    outcome = execute(foreign, "-c", program, JITLISTEN="gdb")
    assert (outcome.stdout, outcome.stderr) == ("runs\n", "")


# The command


def test_run_loads_neither_llvmlite_nor_rich() -> None:
    outcome = execute(JITLISTEN[0], "-X", "importtime", *JITLISTEN[1:], "run", "true")
    loaded = {line.rpartition("|")[2].strip() for line in outcome.stderr.splitlines()}
    assert "jitlisten.startup" in loaded  # by jitlisten.run
    assert not loaded & {"llvmlite", "listeners", "rich", "gdbjit", "perfmap", "ctypes"}


def test_the_command_alone_shows_its_subcommands() -> None:
    for command in JITLISTEN, [sys.executable, "-m", "jitlisten"]:
        outcome = execute(*command, cwd=ROOT)
        assert outcome.returncode == 0
        assert outcome.stdout.startswith("usage: jitlisten")
        assert "run" in outcome.stdout
        assert "doctor" in outcome.stdout
