"""`jitlisten record`: from an unchanged program to a profile, with one command.

The program is our child, and perf looks on from a session of its own: so the terminal's Ctrl-C is
for the program alone, which ends as it always does, and perf records to the last instruction. perf
says through its control pipe when it is ready, and is told there when all is over; or by a signal,
should this process be killed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from listeners.errors import JITListenerError

from . import perfchecks
from .checks import first_line
from .inject import name_dumped
from .perfoptions import TARGETS, options_chosen, options_given, split
from .perftool import STARTER, messages, perf_tool
from .run import become, listening, refuse

__all__ = ["main"]

USAGE = "jitlisten record [-h] [PERF_OPTION ...] -- PROGRAM [ARGUMENT ...]"
TIMEOUT = 60  # seconds, for perf to begin

MONOTONIC = ("mono", "monotonic", "CLOCK_MONOTONIC", "1")

PYTHON_NAMES = ("PYTHONPERFSUPPORT", "PYTHON_PERF_JIT_SUPPORT")
"""Variables for Python's names: in the map file (3.12); in a dump, with call frames (3.13)."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # linux/prctl.h
FROM_KERNEL = 0x80  # SI_KERNEL of asm-generic/siginfo.h: the terminal's signals
PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    """Record the program that `arguments`, those after `jitlisten record`, ask for.

    Gives the program's exit status; if there is no recording and it succeeded, 1. A signal that
    ends the program ends this process.
    """
    options, command = split(arguments)
    parser = ArgumentParser(
        prog="jitlisten record",
        usage=USAGE,
        description="Record a program with perf: the code that llvmlite's engines load has names,"
        " lines and callers, and Python's functions (3.12 or newer) have names. The profile is"
        " perf.data, or the FILE of -o FILE. Options are those of perf record, and come before"
        " what is chosen here: event, frequency, call graph.",
        add_help=False,
    )
    if {"-h", "--help"} & set(options):
        parser.print_help()
        return 0
    given = options_given(options)
    if not command:
        problem = "no program is given, or no -- before it"
        if given.keys() & TARGETS:
            problem += "; for what runs already, `perf record -p PID …` and `jitlisten map PID`"
        parser.error(problem)
    output = Path(given.get("o") or "perf.data")
    if str(output) == "-":
        parser.error("the profile has to be a file")
    if shutil.which(command[0]) is None:
        return refuse("record", command[0], _why_not(command[0]))
    _open_standard_descriptors()
    try:
        return _record(perf_tool(), options, given, output, command)
    except JITListenerError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _die(signal.SIGINT)


def _why_not(program: str) -> int:
    """The error number with which the execution of a program would fail, which cannot be found."""
    # A name without a slash does not mean a file of that name in the current directory.
    places = [program] if "/" in program else [f"{path}/{program}" for path in os.get_exec_path()]
    return errno.EACCES if program and any(map(os.path.exists, places)) else errno.ENOENT


def _open_standard_descriptors() -> None:
    """Those that are closed, lest a pipe for perf gets the number of one, which perf loses then.

    The program does without them as before.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _record(
    perf: str, options: list[str], given: dict[str, str], output: Path, command: list[str]
) -> int:
    with _Program(command) as program:
        # The clock of a dump's times; with another one it cannot be injected.
        dumps = given.get("k", "mono") in MONOTONIC
        listener = _choose_listener(dumps)
        dumps = dumps and listener != "perf-map"  # which counts no more after perf inject
        options = [*options_chosen(given, program.pid), *options]
        with _Perf(perf, options) as recorder, _signals_blocked():
            recorder.wait_until_ready()
            program.begin(listener, PYTHON_NAMES if dumps else PYTHON_NAMES[:1])
            ended = program.wait()
            problem = recorder.stop()
    if problem is None:
        try:
            if dumps:
                name_dumped(perf, output)
            _say(f"the profile is {output}: {_report_of(output)}")
        except (JITListenerError, OSError, ValueError) as error:  # it may be empty
            problem = str(error)
    if problem is not None:
        _say(problem)
    if os.WIFSIGNALED(ended):
        _die(os.WTERMSIG(ended))
    return os.WEXITSTATUS(ended) or (problem is not None)


def _report_of(output: Path) -> str:
    """The command that shows a profile, as a shell takes it."""
    if output == Path("perf.data"):
        return "jitlisten report"
    path = f"./{output}" if str(output).startswith("-") else str(output)
    return f"jitlisten report {shlex.quote(path)}"


def _choose_listener(dumps: bool) -> str:
    """The best of the listeners for perf that work here, "" if none does; says why."""
    checks = {
        "images": perfchecks.images,
        "jitdump": perfchecks.jitdump,
        "perf-map": perfchecks.map_file,
    }
    if not dumps:
        del checks["jitdump"]
    problems = []
    for name in checks:
        found = checks[name]()
        if found.state == "ok":
            break
        problems.append(found)
    for found in problems:
        _say(f"no {found.name}: {found.detail}; {found.remedy}")
    if len(problems) == len(checks):
        _say("JIT'd code has no names")
        return ""
    if problems:
        _say(f"JIT'd code is recorded by {name}")
    return name


# The two that run


class _Program:
    """A child that waits until it is told to become the program, and goes if it never is."""

    def __init__(self, command: list[str]) -> None:
        gate, self._gate = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._gate)
            self._become(gate, command)
        os.close(gate)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._gate >= 0:  # it was never told
            os.close(self._gate)
            os.waitpid(self.pid, 0)

    def _become(self, gate: int, command: list[str]) -> NoReturn:
        status = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_NAME, STARTER.encode())
            if message := os.read(gate, 1000).decode():
                os.close(gate)
                listener, *variables = message.split(",")
                environment = {**listening([listener]), **dict.fromkeys(variables, "1")}
                status = become("record", command, environment)
        finally:
            os._exit(status)

    def begin(self, listener: str, variables: Sequence[str]) -> None:
        """Let it become the program, with a listener if it is not "", and variables set to 1."""
        os.write(self._gate, ",".join([listener, *variables]).encode())
        os.close(self._gate)
        self._gate = -1

    def wait(self) -> int:
        """Its wait status. Signals to this process are passed on to it meanwhile.

        Those that the terminal sends have reached it already; but of its hangup only the leader
        of the session is told, until that ends.
        """
        is_leader = os.getsid(0) == os.getpid()
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            info = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
            for_us_alone = is_leader and info.si_signo == signal.SIGHUP
            has_it = info.si_code == FROM_KERNEL and not for_us_alone
            if info.si_signo != signal.SIGCHLD and not has_it:
                with suppress(PermissionError):  # another user's by now, as those of sudo are
                    os.kill(self.pid, info.si_signo)


class _Perf:
    """`perf record`, in a session of its own."""

    def __init__(self, perf: str, options: list[str]) -> None:
        control, self._control = os.pipe()
        self._answers, answer = os.pipe()
        self._messages = messages()
        self._process = subprocess.Popen(
            [perf, "record", f"--control=fd:{control},{answer}", *options],
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=self._messages,
            stderr=self._messages,
            # Some versions of perf leave no profile once nobody else holds the pipe's other end.
            pass_fds=(control, self._control, answer),
            start_new_session=True,
            preexec_fn=partial(_end_with, os.getpid()),
        )
        os.close(control)
        os.close(answer)

    def __enter__(self) -> _Perf:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._messages.close()
        os.close(self._control)
        os.close(self._answers)

    def wait_until_ready(self) -> None:
        """Until it samples. Raises JITListenerError if it cannot."""
        with suppress(BrokenPipeError):
            os.write(self._control, b"ping\n")
        if not select.select([self._answers], [], [], TIMEOUT)[0]:
            raise JITListenerError("perf does not answer: it has to be version 5.15 or newer")
        if not os.read(self._answers, 100):
            self._process.wait()
            raise JITListenerError(self._problem())

    def stop(self) -> str | None:
        """End the recording; gives what has gone wrong, if anything has."""
        with suppress(BrokenPipeError):
            os.write(self._control, b"stop\n")
        return self._problem() if self._process.wait() else None

    def _problem(self) -> str:
        """What perf says is wrong."""
        self._messages.seek(0)
        message = self._messages.read()
        said = first_line(message) or f"status {self._process.returncode}, without a message"
        if "perf_event_paranoid" in message or "perf_event_open" in message:
            said += f"; {perfchecks.REMEDY}"
        return f"perf record: {said}"


def _end_with(parent: int) -> None:
    """In the process that becomes perf: finish the profile when `parent` ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Those that are passed on wait until somebody asks for them; or are dropped in the end.

    They were for the program, as the Ctrl-C of somebody who finds that it takes long to end: perf
    is to finish the profile all the same.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    try:
        yield
    finally:
        while signal.sigtimedwait(PASSED_ON, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(what: str) -> None:
    """On stderr, for stdout is the program's; it may be closed, or its terminal gone."""
    line = f"jitlisten record: {what}\n".encode(sys.stderr.encoding, "backslashreplace")
    with suppress(OSError):
        # Not through its buffer: what stays there fails again when Python ends, with status 120.
        os.write(2, line)


def _die(number: int) -> NoReturn:
    """End by a signal, as the program has; the core file is the program's."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):  # SIGKILL has no other action, and none can be set
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(1)
    raise SystemExit(128 + number)
