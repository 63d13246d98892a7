"""What another process has registered with debuggers, read from outside while it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from targets import PRELUDE, go_on, line, llvm_descriptor, native_image, target, without_addresses

import gdbjit
from gdbjit import elf
from gdbjit.process import Memory

# A script's end: the process becomes another program, and says so from there.
BECOME_ANOTHER = """
os.execlp("sh", "sh", "-c", "echo another program; read forever")
"""


def test_another_process_with_llvmlite() -> None:
    script = """
import llvmlite.binding as llvm
llvm.initialize_native_target(); llvm.initialize_native_asmprinter()
machine = llvm.Target.from_default_triple().create_target_machine()
emitted = machine.emit_object(llvm.parse_assembly("define i32 @elsewhere() { ret i32 7 }"))
nothing = llvm.parse_assembly("")
engine = llvm.create_mcjit_compiler(nothing, machine)
engine.remove_module(nothing)
engine.add_object_file(llvm.ObjectFileRef.from_data(emitted))
engine.finalize_object()
say(emitted.hex()); wait()
engine.close()
say("closed"); wait()
"""
    with target(script) as process:
        emitted = bytes.fromhex(line(process))
        descriptor = llvm_descriptor(process.pid)
        assert descriptor.pid == process.pid
        (entry,) = descriptor.entries()
        assert without_addresses(entry.symfile) == emitted
        go_on(process)
        assert line(process) == "closed"
        assert descriptor.entries() == []
        with pytest.raises(gdbjit.GDBJITError, match="unregistered|cannot read"):
            _ = entry.symfile


def test_load_order_of_another_process(tmp_path: Path) -> None:
    script = f"""
for name in "zma":
    path = "{tmp_path}/" + name + ".so"
    with open(path, "wb") as file:
        file.write(image)
    ctypes.CDLL(path)
say("ready"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        names = [Path(descriptor.library).name for descriptor in gdbjit.descriptors(process.pid)]
        assert names == ["z.so", "m.so", "a.so"]


def test_a_list_of_more_than_one_system_call_is_read_whole() -> None:
    script = """
kept = [gdbjit.register(image + b"%04d" % n) for n in range(1, 2002)]
say("ready"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        images = [image for _, image in descriptor.images()]
        assert images == [native_image() + b"%04d" % n for n in range(1, 2002)]


@pytest.mark.parametrize("pause", [0, 0.001])
def test_the_list_is_never_torn_while_the_process_loads_and_unloads(pause: float) -> None:
    script = f"""
PAUSE = {pause}
import random, time
kept = [gdbjit.register(image + bytes([n % 256])) for n in range(200)]
say(*(kept[n].entry for n in range(0, 200, 2)))
while True:
    n = random.randrange(1, 200, 2)
    kept[n].unregister()
    kept[n] = gdbjit.register(image + bytes([n % 256]))
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass
"""
    image = native_image()
    with target(script) as process:
        staying = {int(word) for word in line(process).split()}
        (descriptor,) = gdbjit.descriptors(process.pid)
        lists = exact = images = 0
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                entries = descriptor.entries()
                whole = [data for _, data in descriptor.images()]
            except gdbjit.GDBJITError as error:  # a busy machine may leave it no quiet moment
                assert "faster than it can be read" in str(error)
                continue
            lists += 1
            # Where there is no quiet moment to read a list in, some that come and go are out.
            assert 100 <= len(entries) <= 200
            exact += len(entries) >= 199
            assert {entry.size for entry in entries} == {len(image) + 1}
            assert staying <= {entry.address for entry in entries}
            for entry in entries:
                try:
                    data = entry.symfile
                except gdbjit.GDBJITError:
                    continue
                images += 1
                assert data[:-1] == image
            assert all(data[:-1] == image for data in whole)
        assert lists >= 5
        assert images >= 500
        if pause:
            assert exact > lists / 2


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        ("CodeEntry.from_address(first).next = first", "circle"),
        ("CodeEntry.from_address(first).next = 8", "0x8"),
        ("CodeDescriptor.from_address(head).first = 1 << 63", "0x8000000000000000"),
        ("CodeDescriptor.from_address(head).version = 0", "version is 0"),
    ],
)
def test_a_corrupt_list_of_another_process_is_an_error(edit: str, problem: str) -> None:
    script = f"""
registration = gdbjit.register(image)
first, head = registration.entry, registration.descriptor.address
{edit}
say("ready"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        with pytest.raises(gdbjit.GDBJITError, match=problem):
            descriptor.entries()


def test_a_process_that_ends_is_an_error() -> None:
    with target('gdbjit.register(image); say("ready"); wait()') as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        (entry,) = descriptor.entries()
        go_on(process)
        # A zombie first: its number is still taken.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(gdbjit.GDBJITError, match="has ended"):
            descriptor.entries()
        with pytest.raises(gdbjit.GDBJITError, match="has ended"):
            _ = entry.symfile
        with pytest.raises(gdbjit.GDBJITError, match=r"has ended|no such process"):
            gdbjit.descriptors(process.pid)
        process.wait()
        with pytest.raises(gdbjit.GDBJITError, match="no such process"):
            gdbjit.descriptors(process.pid)


def test_a_process_that_runs_another_program_is_an_error() -> None:
    script = 'gdbjit.register(image); say("ready"); wait()' + BECOME_ANOTHER
    with target(script) as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        go_on(process)
        assert line(process) == "another program"
        with pytest.raises(gdbjit.GDBJITError, match="another program"):
            descriptor.entries()


def test_ranges_of_another_program_of_the_same_number_are_not_read() -> None:
    script = 'say("ready"); wait()' + BECOME_ANOTHER
    with target(script) as process:
        assert line(process) == "ready"
        before = Memory(process.pid)
        go_on(process)
        assert line(process) == "another program"
        now = Memory(process.pid)
        ranges = [(now.mappings()[0].start, 4)]
        assert now.read_ranges(ranges) == [elf.MAGIC]
        (error,) = before.read_ranges(ranges)
        assert "another program" in str(error)


@pytest.mark.parametrize("pid", [0, -1, 1 << 22, 1 << 40])
def test_a_wrong_number_is_an_error(pid: int) -> None:
    with pytest.raises(gdbjit.GDBJITError, match=r"no such process|not a process id"):
        gdbjit.descriptors(pid)


def test_no_right_to_trace_is_an_error_with_the_remedy() -> None:
    script = """
if not os.geteuid():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
try:
    gdbjit.descriptors(1)
except gdbjit.GDBJITError as error:
    say(error)
"""
    with target(script) as process:
        message = line(process)
    assert "process 1" in message
    assert "CAP_SYS_PTRACE" in message
    assert "ptrace_scope" in message
    assert "same user" in message


def test_a_process_without_the_interface_has_no_descriptors() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            time.sleep(0.1)
            assert gdbjit.descriptors(process.pid) == []
        finally:
            process.kill()


def test_files_are_found_by_what_is_mapped_not_by_name(tmp_path: Path) -> None:
    script = f"""
names = {[str(tmp_path / name) for name in ("kept.so", "deleted.so", "replaced.so")]}
for name in names:
    with open(name, "wb") as file:
        file.write(image)
    ctypes.CDLL(name)
os.remove(names[1])
os.remove(names[2])
with open(names[2], "wb") as file:
    file.write(image[:-1])
fd = os.memfd_create("unnamed")
os.write(fd, image)
ctypes.CDLL(f"/proc/{{os.getpid()}}/fd/{{fd}}")
with open("{tmp_path}/mapped.so", "wb") as file:
    file.write(image)
import mmap
file = open("{tmp_path}/mapped.so", "rb")
readable = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
say("ready"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        names = [Path(descriptor.library).name for descriptor in gdbjit.descriptors(process.pid)]
        # Only root may open what is mapped where no name leads to it (proc_pid_map_files(5)).
        deleted = [] if os.geteuid() else ["deleted.so (deleted)", "replaced.so (deleted)"]
        assert names == ["kept.so", *deleted, "memfd:unnamed (deleted)"]


@pytest.mark.tools
def test_a_process_in_another_mount_namespace(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.fail("unshare is missing: apt-get install util-linux")
    script = f"""
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "none", "{tmp_path}"], check=True)
with open("{tmp_path}/only_here.so", "wb") as file:
    file.write(image)
ctypes.CDLL("{tmp_path}/only_here.so")
gdbjit.register(image)
say(os.getpid()); wait()
"""
    with subprocess.Popen(
        ["unshare", "--mount", "--map-root-user", sys.executable, "-c", PRELUDE + script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(gdbjit.__file__).parent.parent)},
    ) as process:
        pid = int(line(process))
        (descriptor,) = gdbjit.descriptors(pid)
        assert descriptor.library == f"{tmp_path}/only_here.so"
        assert not Path(descriptor.library).exists()
        assert len(descriptor.entries()) == 1
        go_on(process)
