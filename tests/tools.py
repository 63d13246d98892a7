"""The real tools that tests drive, and read."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = {
    "perf": "linux-perf (Ubuntu: linux-tools-generic)",
    **dict.fromkeys(("as", "c++filt", "ld", "objcopy", "objdump", "readelf", "strip"), "binutils"),
    **dict.fromkeys(("setpriv", "unshare"), "util-linux"),
    **dict.fromkeys(("llvm-dwarfdump", "llvm-nm", "llvm-readelf", "llvm-readobj"), "llvm"),
    **dict.fromkeys(("llc-19", "llvm-readobj-19"), "llvm-19"),
}
PROGRAMS = Path(__file__).with_name("programs")
JITLISTEN = [
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(PROGRAMS.parents[1])!r});"
    " from jitlisten import main; sys.exit(main())",
]
"""The command of this checkout, wherever it is run."""
ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""Variables of a Python that takes ASCII for the encoding of everything."""


def tool(name: str) -> str:
    """The path of a tool; without it the test fails and says how to get it."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing: apt-get install {PACKAGES.get(name, name)}")
    return path


def run(*command: str, status: int | None = 0, timeout: float = 120, **options: object) -> str:
    """What a command prints, on both outputs; it must end with `status` (None: any)."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        **options,
    )
    assert status is None or done.returncode == status, done.stdout
    return done.stdout


def heed(number: int) -> None:
    """In a new process: a signal ends it.

    A shell without job control has its background jobs, tests among them, ignore SIGINT, and nohup
    has them ignore SIGHUP.
    """
    signal.signal(number, signal.SIG_DFL)


def gdb(*commands: str, program: tuple[str, ...] = (), pid: int | None = None) -> str:
    """A batch session of gdb's over `program` of this Python, or over process `pid`."""
    target = ("--args", sys.executable, *program) if pid is None else ("-p", str(pid))
    first = ("set breakpoint pending on", "set confirm off", "set debuginfod enabled off")
    options = [part for command in (*first, *commands) for part in ("-ex", command)]
    return run(tool("gdb"), "-q", "-nx", "-batch", *options, *target)


def lldb(*commands: str, program: tuple[str, ...]) -> str:
    """A batch session of lldb's over `program` of this Python."""
    options = [part for command in commands for part in ("-o", command)]
    return run(tool("lldb"), "-x", "-b", *options, "--", sys.executable, *program)


def perf_symbols(data: Path) -> dict[str, float]:
    """The functions of a recording, and the share of the samples that each has, in percent."""
    options = "--stdio", "--fields", "overhead,sym", "--no-children", "--field-separator", ";"
    options += "--no-inline", "--call-graph", "none"
    text = run(tool("perf"), "report", "-i", str(data), *options)
    rows = re.findall(r"^ *([\d.]+)% *;\[.\] (.*?) *$", text, re.MULTILINE)
    return {name: float(share) for share, name in rows}
