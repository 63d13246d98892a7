"""`jitlisten doctor`: what works on this machine, why something does not, and the remedy.

What can be tried is tried: a recording by perf, a trace of another process, an object heard from
an engine, a line in a map file. Versions and settings are what explains the outcome.

With `--json`, one object on stdout:

    {"works": true,         # gdb or lldb stops in JIT'd code, and perf names it
     "checks": [{"name":    # gdb, lldb, ptrace, perf, perf_event_paranoid, perf_record,
                            # counters, llvmlite, descriptor, numba, tmp,
                            # images, jitdump
                 "state":   # "ok", "warning": works in part, "missing": does not
                 "detail":  # what was found
                 "remedy":  # what to do about it, empty if there is nothing to do
                }, …]}
"""

from __future__ import annotations

import atexit
import ctypes
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .outside import carry_out

if TYPE_CHECKING:
    import llvmlite.binding as llvm

    import gdbjit

__all__ = [
    "PERF_REMEDY",
    "Check",
    "counters",
    "first_line",
    "images",
    "jitdump",
    "main",
    "map_file",
    "may_sample_kernel",
    "works",
]

TIMEOUT = 30  # seconds, for any one program
PYTHON = (sys.executable, "-I", "-S", "-c")
DO_NOTHING = (*PYTHON, "")
# What a debugger starts says PTRACE_TRACEME, which is request 0.
TRACED = "import ctypes, os; os._exit(ctypes.CDLL(None).ptrace(0, 0, None, None) != 0)"
# What a debugger is to find running is none of its descendants, to which Yama allows more.
STRANGER = f"""
import os, time
if pid := os.fork():
    print(pid)
else:
    os.close(1), os.close(2), time.sleep({TIMEOUT})
"""

# capabilities(7), linux/capability.h
CAP_SYS_ADMIN, CAP_PERFMON = 21, 38
# linux/ptrace.h, linux/wait.h
PTRACE_SEIZE, WAIT_ALL = 0x4206, 0x40000000

PTRACE_REMEDY = (
    "sysctl kernel.yama.ptrace_scope=0, or be root; in a container: --cap-add=SYS_PTRACE"
    " --security-opt seccomp=unconfined"
)
PERF_REMEDY = (
    "sysctl kernel.perf_event_paranoid=2, or be root; in a container: --cap-add=PERFMON"
    " --security-opt seccomp=unconfined"
)

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def main(arguments: list[str]) -> int:
    """Print what works; gives the exit status: 1 where the main job cannot work, else 0."""
    parser = ArgumentParser(
        prog="jitlisten doctor",
        description="Say what works on this machine, and why not.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    options = parser.parse_args(arguments)
    return carry_out("doctor", lambda: _show(options.json))


def _show(as_json: bool) -> int:
    if sys.platform != "linux":
        print(f"jitlisten doctor: {sys.platform}: only Linux is known", file=sys.stderr)
        return 1
    checks = list(_checks())
    if as_json:
        result = {"works": works(checks), "checks": [asdict(check) for check in checks]}
        print(json.dumps(result, indent=2))
    else:
        _print_table(checks)
    return 0 if works(checks) else 1


def works(checks: Iterable[Check]) -> bool:
    """Whether a debugger stops in JIT'd code and perf names it."""
    there = {check.name for check in checks if check.state != "missing"}
    return {"ptrace", "perf_record", "llvmlite", "tmp"} <= there and not there.isdisjoint(
        {"gdb", "lldb"}
    )


def _checks() -> Iterator[Check]:
    llvmlite, descriptor = _llvmlite()
    yield _gdb(descriptor)
    yield _lldb()
    yield _ptrace()
    yield (perf := _perf())
    yield _perf_event_paranoid()
    if perf.state == "missing":
        yield Check("perf_record", "missing", "there is no perf")
        yield Check("counters", "missing", "there is no perf")
    else:
        yield _perf_record()
        yield counters()
    yield llvmlite
    yield _descriptor(llvmlite, descriptor)
    yield _numba()
    yield map_file()
    yield images()
    yield jitdump()


# Debuggers


def _gdb(descriptor: gdbjit.Descriptor | None) -> Check:
    version = _version("gdb", r"^GNU gdb .*?(\d+)(\.\d[\w.-]*)\s*$")
    if isinstance(version, Check):
        return version
    if version[1] == "15" and descriptor and not descriptor.exported:
        return Check(
            "gdb",
            "warning",
            f"{version[1]}{version[2]}: does not see the descriptor of libllvmlite, which is local",
            "jitlisten run --gdb-all, GDBRegistration(all=True), or gdb 16",
        )
    return Check("gdb", "ok", f"{version[1]}{version[2]}")


def _lldb() -> Check:
    version = _version("lldb", r"^lldb version (\S+)")
    return version if isinstance(version, Check) else Check("lldb", "ok", version[1])


def _ptrace() -> Check:
    scope = _setting("/proc/sys/kernel/yama/ptrace_scope")
    settings = f"ptrace_scope {scope}" if scope else "no Yama"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    starts = _run(*PYTHON, TRACED)
    stranger = int(_run(*PYTHON, STRANGER).stdout)
    seized = libc.ptrace(PTRACE_SEIZE, stranger, None, None) == 0
    error = os.strerror(ctypes.get_errno())
    os.kill(stranger, signal.SIGKILL)
    if seized:
        os.waitpid(stranger, WAIT_ALL)
    if starts.returncode:
        return Check("ptrace", "missing", f"not allowed at all ({settings})", PTRACE_REMEDY)
    if not seized:
        detail = f"programs that the debugger starts, not running ones: {error} ({settings})"
        return Check("ptrace", "warning", detail, PTRACE_REMEDY)
    return Check(
        "ptrace", "ok", f"programs that the debugger starts, and running ones ({settings})"
    )


# perf


def _perf() -> Check:
    version = _version(
        "perf", r"^perf version (\S+)", package="linux-perf; Ubuntu: linux-tools-generic"
    )
    return version if isinstance(version, Check) else Check("perf", "ok", version[1])


def _perf_event_paranoid() -> Check:
    name = "perf_event_paranoid"
    value = _setting("/proc/sys/kernel/perf_event_paranoid")
    if value is None:
        return Check(name, "missing", "this kernel has no perf events")
    if _may_sample_everything():
        return Check(name, "ok", f"{value}, and this user has the right to sample everything")
    if int(value) <= 2:
        what = "user space" if int(value) == 2 else "user space and kernel"
        return Check(name, "ok", f"{value}: this user may sample {what} of own processes")
    # Kernels of Debian and Ubuntu know 3 and 4; to others they are the same as 2.
    return Check(name, "warning", f"{value}: where it is heeded, only root may sample", PERF_REMEDY)


def _may_sample_everything() -> bool:
    status = Path("/proc/self/status").read_text()
    capabilities = int(re.findall(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[0], 16)
    return bool(capabilities & (1 << CAP_PERFMON | 1 << CAP_SYS_ADMIN))


def may_sample_kernel() -> bool:
    """Whether this user's recordings have what happens in the kernel."""
    value = _setting("/proc/sys/kernel/perf_event_paranoid")
    return _may_sample_everything() or (value is not None and int(value) < 2)


def _perf_record() -> Check:
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory, "perf.data")
        options = ("--quiet", "--no-buildid-cache", "--event=cpu-clock", f"--output={data}")
        outcome = _run("perf", "record", *options, "--", *DO_NOTHING)
    if outcome.returncode:
        return Check("perf_record", "missing", first_line(outcome.stderr), PERF_REMEDY)
    return Check("perf_record", "ok", "records with -e cpu-clock")


def counters() -> Check:
    """Whether the processor's cycles are counted here."""
    outcome = _run("perf", "stat", "-x,", "-e", "cycles:u", "--", *DO_NOTHING)
    if re.search(r"^\d+,", outcome.stderr, re.MULTILINE):
        return Check("counters", "ok", "hardware counts cycles")
    return Check(
        "counters",
        "warning",
        "no hardware counters, as in many virtual machines",
        "perf record -e cpu-clock, which samples by time",
    )


# What is debugged and sampled


def _llvmlite() -> tuple[Check, gdbjit.Descriptor | None]:
    """Whether its engines are heard, and its descriptor if debuggers see it."""
    name, remedy = "llvmlite", "pip install --force-reinstall llvmlite jit-listeners"
    try:
        from llvmlite.binding import ffi

        import gdbjit
        import listeners

        version = metadata.version("llvmlite")
        with listeners.attach(None) as attachment, _engine() as engine:
            address = engine.get_function_address("jitlisten_doctor")
            heard = any(obj.function_at(address) for obj in attachment.objects)
        library = Path(ffi.lib._name)
        shown = [found for found in gdbjit.descriptors() if library.samefile(found.library)]
    except Exception as error:  # whatever it is, it is what does not work
        problem = " ".join(str(error).split())
        return Check(name, "missing", f"{type(error).__name__}: {problem}", remedy), None
    if not heard:
        return Check(name, "missing", f"{version}: an engine was not heard", remedy), None
    return Check(name, "ok", f"{version}: an engine was heard"), shown[0] if shown else None


def _engine() -> llvm.ExecutionEngine:
    """An engine with one function, `jitlisten_doctor`."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly("define void @jitlisten_doctor() { ret void }")
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_mcjit_compiler(module, machine)


def _descriptor(llvmlite: Check, descriptor: gdbjit.Descriptor | None) -> Check:
    name = "descriptor"
    if llvmlite.state == "missing":
        return Check(name, "missing", "there is no llvmlite that works")
    if descriptor is None:
        hidden = "libllvmlite has no symbols: debuggers see what GDBRegistration registers"
        return Check(name, "ok", hidden)
    if descriptor.exported:
        return Check(name, "ok", "libllvmlite exports it: every debugger sees it")
    return Check(name, "ok", "libllvmlite has it as a local symbol: only gdb 15 does not see it")


def _numba() -> Check:
    try:
        return Check("numba", "ok", metadata.version("numba"))
    except metadata.PackageNotFoundError:
        return Check("numba", "ok", "not installed, nor needed")


def map_file() -> Check:
    """Whether perf's map file can be written."""
    from perfmap import MapFile, PerfMapError

    try:
        with MapFile() as file:
            file.add(0x1000, 1, "jitlisten doctor")
        file.path.unlink()
    except (PerfMapError, OSError) as error:
        remedy = "make /tmp a writable directory (mode 1777) without others' perf-PID.map files"
        return Check("tmp", "missing", str(error), remedy)
    return Check("tmp", "ok", f"{file.path} can be written")


def images() -> Check:
    """Whether a file can be mapped over code, which is tried with a function of our own."""
    name, remedy = "images", "set JITDUMPDIR to a writable directory, not mounted noexec"
    try:
        import listeners

        # What cannot be done is logged, and the function is named in a map file, until the end.
        logging.getLogger("listeners").addHandler(logging.NullHandler())
        if not (map_file := Path(f"/tmp/perf-{os.getpid()}.map")).exists():
            atexit.register(_remove, map_file)
        with tempfile.TemporaryDirectory(dir=_image_parent()) as directory:
            images = listeners.CodeImages(directory)
            with _engine() as engine:
                listeners.attach(engine, images)
                engine.get_function_address("jitlisten_doctor")
                mapped = f" {directory}/" in Path("/proc/self/maps").read_text()
    except Exception as error:  # as above
        return Check(name, "warning", " ".join(str(error).split()), remedy)
    if images.problems or not mapped:
        return Check(name, "warning", "; ".join(images.problems) or "nothing was mapped", remedy)
    return Check(name, "ok", "a file was mapped over code")


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


def jitdump() -> Check:
    """Whether a dump can be written where they are, and mapped executable."""
    from perfmap import PerfMapError
    from perfmap.dumpfile import DumpFile

    name, remedy = "jitdump", "set JITDUMPDIR to a writable directory, not mounted noexec"
    try:
        with tempfile.TemporaryDirectory(dir=_image_parent()) as directory:
            DumpFile(Path(directory, "jit-0.dump"), b"").close()
    except (PerfMapError, OSError) as error:
        return Check(name, "warning", str(error), remedy)
    return Check(name, "ok", "a dump can be written and mapped")


def _image_parent() -> Path:
    """The nearest directory there is of those that hold the images.

    Raises PerfMapError if this user has no home.
    """
    from perfmap.dumpfile import runs_directory

    path = runs_directory()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


# How it is found out, and shown


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program without input, in English. One that cannot be run has failed."""
    try:
        return subprocess.run(
            command,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {TIMEOUT} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", f"{error}")


def _version(program: str, pattern: str, package: str = "") -> re.Match[str] | Check:
    """The match of `pattern` in what a program says is its version, or why there is none."""
    outcome = _run(program, "--version")
    if match := re.search(pattern, outcome.stdout, re.MULTILINE):
        return match
    problem = first_line(outcome.stderr) or f"its version is not known: {outcome.stdout[:80]!r}"
    return Check(program, "missing", problem, f"apt-get install {package or program}")


def first_line(message: str) -> str:
    """What a program says is wrong."""
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in lines if line and line != "Error:"), "")


def _setting(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _print_table(checks: list[Check]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles: dict[State, str] = {"ok": "green", "warning": "yellow", "missing": "red"}
    table = Table("what", "state", "detail and remedy", box=box.SIMPLE_HEAD)
    for check in checks:
        detail = Text(check.detail)
        if check.remedy:
            detail.append(f"\n→ {check.remedy}", style="bold")
        table.add_row(check.name, Text(check.state, style=styles[check.state]), detail)
    console = Console()
    console.print(table)
    if works(checks):
        console.print("gdb or lldb stops in JIT'd code, and perf names it.")
    else:
        console.print("The main job, to stop in JIT'd code and to name it in perf, cannot work.")
