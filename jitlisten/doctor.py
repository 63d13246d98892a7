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

import ctypes
import json
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from . import gdbtool, perfchecks
from .checks import PYTHON, TIMEOUT, Check, State, probe_engine, run, setting, version_of
from .command import carry_out

if TYPE_CHECKING:
    import gdbjit

__all__ = ["main", "works"]

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

# linux/ptrace.h, linux/wait.h
PTRACE_SEIZE, WAIT_ALL = 0x4206, 0x40000000

PTRACE_REMEDY = (
    "sysctl kernel.yama.ptrace_scope=0, or be root; in a container: --cap-add=SYS_PTRACE"
    " --security-opt seccomp=unconfined"
)


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
    yield (perf := perfchecks.perf())
    yield perfchecks.perf_event_paranoid()
    if perf.state == "missing":
        yield Check("perf_record", "missing", "there is no perf")
        yield Check("counters", "missing", "there is no perf")
    else:
        yield perfchecks.perf_record()
        yield perfchecks.counters()
    yield llvmlite
    yield _descriptor(llvmlite, descriptor)
    yield _numba()
    yield perfchecks.map_file()
    yield perfchecks.images()
    yield perfchecks.jitdump()


# Debuggers


def _gdb(descriptor: gdbjit.Descriptor | None) -> Check:
    version = version_of("gdb", gdbtool.VERSION)
    if isinstance(version, Check):
        return version
    if gdbtool.sees_exported_only(version[0]) and descriptor and not descriptor.exported:
        return Check(
            "gdb",
            "warning",
            f"{version[1]}{version[2]}: does not see the descriptor of libllvmlite, which is local",
            "jitlisten run --gdb, which minds it, GDBRegistration(all=True), or gdb 16",
        )
    return Check("gdb", "ok", f"{version[1]}{version[2]}")


def _lldb() -> Check:
    version = version_of("lldb", r"^lldb version (\S+)")
    return version if isinstance(version, Check) else Check("lldb", "ok", version[1])


def _ptrace() -> Check:
    scope = setting("/proc/sys/kernel/yama/ptrace_scope")
    settings = f"ptrace_scope {scope}" if scope else "no Yama"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    starts = run(*PYTHON, TRACED)
    stranger = int(run(*PYTHON, STRANGER).stdout)
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


# What is debugged and sampled


def _llvmlite() -> tuple[Check, gdbjit.Descriptor | None]:
    """Whether its engines are heard, and its descriptor if debuggers see it."""
    name, remedy = "llvmlite", "pip install --force-reinstall llvmlite jit-listeners"
    try:
        from llvmlite.binding import ffi

        import gdbjit
        import listeners

        version = metadata.version("llvmlite")
        with listeners.attach(None) as attachment, probe_engine() as engine:
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


# The report


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
