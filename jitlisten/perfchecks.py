"""Whether perf works here, and what gives JIT'd code its names in perf's reports: it is tried."""

from __future__ import annotations

import atexit
import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from .checks import DO_NOTHING, Check, first_line, probe_engine, run, setting, version_of

__all__ = [
    "REMEDY",
    "counters",
    "images",
    "jitdump",
    "map_file",
    "may_sample_kernel",
    "perf",
    "perf_event_paranoid",
    "perf_record",
]

# capabilities(7), linux/capability.h
CAP_SYS_ADMIN, CAP_PERFMON = 21, 38
REMEDY = (
    "sysctl kernel.perf_event_paranoid=2, or be root; in a container: --cap-add=PERFMON"
    " --security-opt seccomp=unconfined"
)


def perf() -> Check:
    """Which perf there is."""
    version = version_of(
        "perf", r"^perf version (\S+)", package="linux-perf; Ubuntu: linux-tools-generic"
    )
    return version if isinstance(version, Check) else Check("perf", "ok", version[1])


def perf_event_paranoid() -> Check:
    """What the kernel lets this user sample."""
    name = "perf_event_paranoid"
    value = setting("/proc/sys/kernel/perf_event_paranoid")
    if value is None:
        return Check(name, "missing", "this kernel has no perf events")
    if _may_sample_everything():
        return Check(name, "ok", f"{value}, and this user has the right to sample everything")
    if int(value) <= 2:
        what = "user space" if int(value) == 2 else "user space and kernel"
        return Check(name, "ok", f"{value}: this user may sample {what} of own processes")
    # Kernels of Debian and Ubuntu know 3 and 4; to others they are the same as 2.
    return Check(name, "warning", f"{value}: where it is heeded, only root may sample", REMEDY)


def _may_sample_everything() -> bool:
    status = Path("/proc/self/status").read_text()
    capabilities = int(re.findall(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[0], 16)
    return bool(capabilities & (1 << CAP_PERFMON | 1 << CAP_SYS_ADMIN))


def may_sample_kernel() -> bool:
    """Whether this user's recordings have what happens in the kernel."""
    value = setting("/proc/sys/kernel/perf_event_paranoid")
    return _may_sample_everything() or (value is not None and int(value) < 2)


def perf_record() -> Check:
    """Whether perf records."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory, "perf.data")
        options = ("--quiet", "--no-buildid-cache", "--event=cpu-clock", f"--output={data}")
        outcome = run("perf", "record", *options, "--", *DO_NOTHING)
    if outcome.returncode:
        return Check("perf_record", "missing", first_line(outcome.stderr), REMEDY)
    return Check("perf_record", "ok", "records with -e cpu-clock")


def counters() -> Check:
    """Whether the processor's cycles are counted here."""
    outcome = run("perf", "stat", "-x,", "-e", "cycles:u", "--", *DO_NOTHING)
    if re.search(r"^\d+,", outcome.stderr, re.MULTILINE):
        return Check("counters", "ok", "hardware counts cycles")
    return Check(
        "counters",
        "warning",
        "no hardware counters, as in many virtual machines",
        "perf record -e cpu-clock, which samples by time",
    )


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
        from perfmap.memory import mappings

        # What cannot be done is logged, and the function is named in a map file, until the end.
        logging.getLogger("listeners").addHandler(logging.NullHandler())
        if not (map_file := Path(f"/tmp/perf-{os.getpid()}.map")).exists():
            atexit.register(_remove, map_file)
        with tempfile.TemporaryDirectory(dir=_image_parent()) as directory:
            images = listeners.CodeImages(directory)
            with probe_engine() as engine:
                listeners.attach(engine, images)
                engine.get_function_address("jitlisten_doctor")
                mapped = any(mapping.name.startswith(f"{directory}/") for mapping in mappings())
    except Exception as error:  # whatever it is, it is what does not work
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
