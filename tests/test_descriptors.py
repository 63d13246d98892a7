"""What a process has registered with debuggers, read in this process and from outside."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llvmlite.binding as llvm
import pytest

import gdbjit
from gdbjit import elf
from gdbjit.layout import CodeDescriptor, CodeEntry, layout
from gdbjit.library import build

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

# How a target begins: it answers each line of its standard input.
PRELUDE = """
import ctypes, os, sys
import gdbjit
from gdbjit.layout import CodeDescriptor, CodeEntry
from gdbjit.library import build
from gdbjit import elf
image = build(elf.native()[0].machine)
def say(*words):
    print(*words, flush=True)
def wait():
    sys.stdin.readline()
"""


@contextmanager
def target(script: str, prelude: str = PRELUDE) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `script`."""
    with subprocess.Popen(
        [sys.executable, "-c", prelude + script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(gdbjit.__file__).parent.parent)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def native_image() -> bytes:
    return build(elf.native()[0].machine)


def llvm_descriptor(pid: int | None = None) -> gdbjit.Descriptor:
    (found,) = (d for d in gdbjit.descriptors(pid) if d.library.endswith("/libllvmlite.so"))
    return found


def compiled(name: str, value: int = 42) -> bytes:
    """An object with one function."""
    module = llvm.parse_assembly(f"define i32 @{name}() {{ ret i32 {value} }}")
    machine = llvm.Target.from_default_triple().create_target_machine()
    return bytes(machine.emit_object(module))


@contextmanager
def loaded(emitted: bytes) -> Iterator[None]:
    """The object, loaded by MCJIT, which registers it."""
    machine = llvm.Target.from_default_triple().create_target_machine()
    nothing = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(nothing, machine)
    engine.remove_module(nothing)
    engine.add_object_file(llvm.ObjectFileRef.from_data(emitted))
    engine.finalize_object()
    yield
    engine.close()


def without_addresses(image: bytes) -> bytes:
    """A 64-bit image as it was before the linker wrote sh_addr."""
    header, form = elf.read_header(image)
    data = bytearray(image)
    for index in range(header.shnum):
        at = header.shoff + index * form.section.size + 16
        data[at : at + 8] = bytes(8)
    return bytes(data)


# In this process


def test_local_symbols_of_llvmlite_are_found() -> None:
    descriptor = llvm_descriptor()
    assert not descriptor.exported
    assert descriptor.pid is None
    words = CodeDescriptor.from_address(descriptor.address)
    assert words.version == 1


def test_an_entry_holds_what_llvm_emitted() -> None:
    emitted = compiled("in_this_process")
    descriptor = llvm_descriptor()
    before = descriptor.entries()
    with loaded(emitted):
        *earlier, entry = descriptor.entries()
        assert earlier == before
        assert entry.size == len(emitted)
        assert without_addresses(entry.symfile) == emitted
        assert entry.symfile == ctypes.string_at(entry.symfile_address, entry.size)
    assert descriptor.entries() == before


def test_entries_are_listed_oldest_first() -> None:
    descriptor = gdbjit.own_descriptor()
    image = native_image()
    registrations = [gdbjit.register(image, descriptor) for _ in range(3)]
    listed = [entry.address for entry in descriptor.entries()]
    assert listed[-3:] == [registration.entry for registration in registrations]
    for registration in registrations:
        registration.unregister()


def test_this_process_by_its_number_is_this_process() -> None:
    assert gdbjit.descriptors(os.getpid()) == gdbjit.descriptors()


def test_descriptors_come_in_load_order(tmp_path: Path) -> None:
    paths = []
    for name in ("z", "a"):
        path = tmp_path / f"{name}.so"
        path.write_bytes(native_image())
        ctypes.CDLL(str(path))
        paths.append(str(path))
    found = gdbjit.descriptors()
    order = [descriptor.library for descriptor in found if descriptor.library in paths]
    assert order == paths
    assert all(descriptor.exported for descriptor in found if descriptor.library in paths)


def test_the_cached_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "changing.so"
    path.write_bytes(native_image())
    ctypes.CDLL(str(path))
    assert str(path) in {descriptor.library for descriptor in gdbjit.descriptors()}
    path.rename(tmp_path / "moved.so")
    path.write_bytes(native_image().replace(b"__jit_debug", b"__was_debug"))
    assert str(path) not in {descriptor.library for descriptor in gdbjit.descriptors()}


def test_an_image_of_an_unregistered_entry_is_an_error() -> None:
    descriptor = gdbjit.own_descriptor()
    with gdbjit.register(native_image(), descriptor) as registration:
        (entry,) = (e for e in descriptor.entries() if e.address == registration.entry)
    with pytest.raises(gdbjit.GDBJITError, match="unregistered"):
        _ = entry.symfile


def test_this_process_is_read_after_a_change_of_user() -> None:
    script = """
import tempfile
if not os.geteuid():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE: what a change of user does
os.environ["HOME"] = "/nonexistent"
with tempfile.TemporaryDirectory() as os.environ["TMPDIR"]:
    with gdbjit.register(image) as registration:
        (entry,) = registration.descriptor.entries()
        right = entry.symfile == image and gdbjit.descriptors() == [registration.descriptor]
say(right)
"""
    with target(script) as process:
        assert line(process) == "True"


# Corrupt lists, in this process: an error, not a crash


@contextmanager
def crafted(fields: list[tuple[int, int]]) -> Iterator[tuple[gdbjit.Descriptor, int]]:
    """A list of entries (index of the next or -1, size) in a descriptor of its own."""
    descriptor = gdbjit.own_descriptor()
    words = CodeDescriptor.from_address(descriptor.address)
    before = words.first
    entries = (CodeEntry * len(fields))()
    image = ctypes.create_string_buffer(native_image())
    base = ctypes.addressof(entries)
    for entry, (following, size) in zip(entries, fields, strict=True):
        entry.next = base + following * ctypes.sizeof(CodeEntry) if following >= 0 else 0
        entry.symfile, entry.size = ctypes.addressof(image), size
    words.first = base
    yield descriptor, base
    words.first = before


def test_a_circle_is_an_error() -> None:
    with (
        crafted([(1, 64), (2, 64), (1, 64)]) as (descriptor, _),
        pytest.raises(gdbjit.GDBJITError, match="circle"),
    ):
        descriptor.entries()


@pytest.mark.parametrize("wild", [0x10, 0x7FFF_FFFF_F000, 1 << 63, (1 << 64) - 8])
def test_a_wild_pointer_is_an_error(wild: int) -> None:
    with crafted([(-1, 64)]) as (descriptor, base):
        CodeEntry.from_address(base).next = wild
        with pytest.raises(gdbjit.GDBJITError, match=f"{wild:#x}"):
            descriptor.entries()


@pytest.mark.parametrize("size", [1 << 36, 1 << 40, 1 << 62, (1 << 64) - 1])
def test_a_huge_image_is_an_error(size: int) -> None:
    with crafted([(-1, size)]) as (descriptor, _):
        (entry,) = descriptor.entries()
        assert entry.size == size
        with pytest.raises(gdbjit.GDBJITError, match="not mapped"):
            _ = entry.symfile


def test_reserved_memory_is_not_read_as_an_image() -> None:
    size = 1 << 36
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    none, private_anonymous_noreserve = 0, 0x4022
    reserved = libc.mmap(None, size, none, private_anonymous_noreserve, -1, 0)
    with crafted([(-1, size)]) as (descriptor, base):
        CodeEntry.from_address(base).symfile = reserved
        (entry,) = descriptor.entries()
        with pytest.raises(gdbjit.GDBJITError, match="not mapped"):
            _ = entry.symfile
    libc.munmap(ctypes.c_void_p(reserved), ctypes.c_size_t(size))


def test_another_version_is_an_error() -> None:
    with crafted([(-1, 64)]) as (descriptor, _):
        words = CodeDescriptor.from_address(descriptor.address)
        words.version = 2
        try:
            with pytest.raises(gdbjit.GDBJITError, match="version is 2"):
                descriptor.entries()
            with pytest.raises(gdbjit.GDBJITError, match="version 2"):
                gdbjit.register(native_image(), descriptor)
        finally:
            words.version = 1


# Another process


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


def test_a_thousand_objects_are_read_in_forty_milliseconds() -> None:
    script = """
kept = [gdbjit.register(image) for _ in range(1001)]
say("ready"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            images = [entry.symfile for entry in descriptor.entries()]
            seconds.append(time.perf_counter() - start)
        assert images == [native_image()] * 1001
        assert min(seconds) < 0.040


@pytest.mark.parametrize("pause", [0, 0.001])
def test_the_list_is_never_torn_while_the_process_loads_and_unloads(pause: float) -> None:
    script = f"""
PAUSE = {pause}
import random, time
kept = [gdbjit.register(image + bytes([n % 256])) for n in range(200)]
say("ready")
while True:
    n = random.randrange(200)
    kept[n].unregister()
    kept[n] = gdbjit.register(image + bytes([n % 256]))
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass
"""
    image = native_image()
    with target(script) as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        lists = images = 0
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                entries = descriptor.entries()
            except gdbjit.GDBJITError as error:
                assert "changes faster" in str(error)
                continue
            lists += 1
            assert len(entries) in (199, 200)
            assert {entry.size for entry in entries} == {len(image) + 1}
            for entry in entries:
                try:
                    data = entry.symfile
                except gdbjit.GDBJITError:
                    continue
                images += 1
                assert data[:-1] == image
        assert not pause or lists >= 5
        assert not pause or images >= 500


def test_a_changing_list_of_this_process_is_read_whole() -> None:
    image = native_image()
    descriptor = gdbjit.own_descriptor()
    before = len(descriptor.entries())
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            gdbjit.register(image, descriptor).unregister()

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            assert len(descriptor.entries()) in range(before, before + 4)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(descriptor.entries()) == before


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
    script = 'gdbjit.register(image); say("ready"); wait(); os.execlp("sleep", "sleep", "60")'
    with target(script) as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        go_on(process)
        while not os.readlink(f"/proc/{process.pid}/exe").endswith(("sleep", "coreutils")):
            time.sleep(0.01)
        with pytest.raises(gdbjit.GDBJITError, match="another program"):
            descriptor.entries()


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


# Programs of other shapes


def test_layouts_by_machine() -> None:
    entries = {
        name: layout(elf_class, 1, machine).entry.pack(1, 2, 3, 4)
        for name, elf_class, machine in (
            ("x86-64", elf.CLASS64, elf.EM_X86_64),
            ("i386", elf.CLASS32, elf.EM_386),
            ("arm", elf.CLASS32, 40),
        )
    }
    sizes = {name: len(data) for name, data in entries.items()}
    assert sizes == {"x86-64": 32, "i386": 20, "arm": 24}
    offsets = {name: data.index(b"\4") for name, data in entries.items()}
    assert offsets == {"x86-64": 24, "i386": 12, "arm": 16}
    assert layout(elf.CLASS64, 1, elf.EM_X86_64).descriptor.size == ctypes.sizeof(CodeDescriptor)
    assert layout(elf.CLASS32, 1, elf.EM_386).descriptor.size == 16
    assert (CodeEntry.size.offset, CodeDescriptor.first.offset) == (24, 16)


def program_of_i386(path: Path) -> bytes:
    """A static 32-bit program that waits, with two entries in its list. Returns their image."""
    form = elf.elf_format(elf.CLASS32, 1)
    structures = layout(elf.CLASS32, 1, elf.EM_386)
    base = 0x08048000
    image = b"\x7fELF of the list"
    strings = b"\0__jit_debug_descriptor\0__jit_debug_register_code\0"
    code_at = form.header.size + form.segment.size
    code = b"\xb8\x1d\0\0\0\xcd\x80\xeb\xf7"  # mov $29 (pause), %eax; int $0x80; jmp back
    descriptor_at = 0x100
    first_at, second_at, image_at, symbols_at, strings_at, sections_at = (
        0x120, 0x140, 0x160, 0x180, 0x200, 0x280,
    )  # fmt: skip
    content = {
        0: form.header.pack(
            elf.MAGIC + b"\1\1\1", elf.ET_EXEC, elf.EM_386, 1, base + code_at, form.header.size,
            sections_at, 0, form.header.size, form.segment.size, 1, form.section.size, 4, 2,
        ),
        form.header.size: form.segment.pack(1, 0, base, base, 0x400, 0x400, 7, 4096),
        code_at: code,
        descriptor_at: structures.descriptor.pack(1, 1, base + first_at, base + first_at),
        first_at: structures.entry.pack(base + second_at, 0, base + image_at, len(image)),
        second_at: structures.entry.pack(0, base + first_at, base + image_at, 4),
        image_at: image,
        symbols_at: form.symbol.pack(0, 0, 0, 0, 0, 0)
        + form.symbol.pack(1, base + descriptor_at, 16, 1, 0, 3)
        + form.symbol.pack(24, base + code_at, len(code), 2, 0, 3),
        strings_at: strings,
        sections_at: bytes(form.section.size)
        + form.section.pack(0, elf.SHT_SYMTAB, 0, 0, symbols_at, 48, 2, 3, 4, 16)
        + form.section.pack(0, elf.SHT_STRTAB, 0, 0, strings_at, len(strings), 0, 0, 1, 0)
        + form.section.pack(0, 1, 7, base + code_at, code_at, 0x100, 0, 0, 1, 0),
    }  # fmt: skip
    data = bytearray(0x400)
    for at, part in content.items():
        data[at : at + len(part)] = part
    path.write_bytes(data)
    path.chmod(0o755)
    return image


def test_a_static_program_of_32_bits(tmp_path: Path) -> None:
    image = program_of_i386(tmp_path / "static32")
    with subprocess.Popen([tmp_path / "static32"]) as process:
        try:
            time.sleep(0.1)
            (descriptor,) = gdbjit.descriptors(process.pid)
            assert descriptor.address == 0x08048100
            assert not descriptor.exported
            second, first = descriptor.entries()
            assert first.symfile == image
            assert second.symfile == image[:4]
        finally:
            process.kill()


def test_a_program_that_exports_the_interface(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.fail("gcc is missing: apt-get install gcc libc6-dev")
    source = tmp_path / "main.c"
    source.write_text(
        "#include <stdint.h>\n#include <unistd.h>\n"
        "struct { uint32_t version, action; void *relevant, *first; }"
        " __jit_debug_descriptor = {1};\n"
        "void __jit_debug_register_code(void) {}\n"
        'int main(void) { write(1, "ready\\n", 6); return pause(); }\n'
    )
    for flags, exported in (
        (["-rdynamic", "-pie"], True),
        (["-no-pie"], False),
        (["-static"], False),
        (["-static-pie"], False),
    ):
        program = tmp_path / "main"
        subprocess.run(["gcc", *flags, "-o", program, source], check=True)
        with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert line(process) == "ready"
                (descriptor,) = gdbjit.descriptors(process.pid)
                assert descriptor.exported == exported
                assert descriptor.library == str(program)
                assert descriptor.entries() == []
                symbols = subprocess.run(
                    ["nm", program], check=True, capture_output=True, text=True
                ).stdout
                (value,) = re.findall(r"(\w+) \w __jit_debug_descriptor", symbols)
                assert (descriptor.address - int(value, 16)) % mmap.PAGESIZE == 0
            finally:
                process.kill()
