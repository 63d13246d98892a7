"""Files mapped over code: what is in memory before and after, who shares a file, and what happens
where it cannot be done."""

import ctypes
import io
import json
import logging
import mmap
import os
import re
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from jit import LINKERS, Long, Program, source_ir
from objects import OBJECTS, emitted, placed
from perftools import clean, container
from tools import PROGRAMS, gdb, run, tool

import listeners
from listeners.codefile import build_code_file, room_for_frames
from listeners.objectfile import ObjectFile
from perfmap import read_map

PAGE = mmap.PAGESIZE


def mapped(directory: Path) -> dict[int, tuple[int, str, str]]:
    """Of the files in a directory what is mapped: end, access and path, by start."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _, _, _, *path = line.split(maxsplit=5)
        if path and path[0].startswith(f"{directory}/"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            found[start] = end, access, path[0]
    return found


def images_of(engine: object, directory: Path) -> listeners.CodeImages:
    images = listeners.CodeImages(directory)
    listeners.attach(engine, images)
    return images


def parsed(path: str) -> ELFFile:
    return ELFFile(io.BytesIO(Path(path).read_bytes()))


def names(path: str) -> set[str]:
    return {symbol.name for symbol in parsed(path).get_section_by_name(".symtab").iter_symbols()}


def named_in_map() -> list[str]:
    path = f"/tmp/perf-{os.getpid()}.map"
    return [entry.name for entry in read_map(path)] if os.path.exists(path) else []


class Object:
    """Code of our own, loaded by hand at a page: returns `value`."""

    def __init__(self, value: int, at: int) -> None:
        text = f"define i32 @value_{value}() {{ ret i32 {value} }}"
        heard: list[listeners.LoadedObject] = []

        class Hear(listeners.JITEventListener):
            def notify_object_loaded(self, obj: listeners.LoadedObject) -> None:
                heard.append(obj)

        program = Program("mcjit")
        with listeners.attach(program.engine, Hear()):
            program.load(text, f"value_{value}")
            section = next(part for part in heard[0].sections if part.flags & 4)
            code = ctypes.string_at(section.address, section.size)
        ctypes.memmove(at, code, len(code))
        self.obj = listeners.LoadedObject(
            lambda: ObjectFile(heard[0].elf), ctypes.string_at, {section.index: at}
        )
        self.call = ctypes.CFUNCTYPE(ctypes.c_int)(at)


class Pages:
    """Anonymous memory that an engine might have made."""

    def __init__(self, count: int = 1, flags: int = mmap.MAP_PRIVATE) -> None:
        self.memory = mmap.mmap(-1, count * PAGE, flags | mmap.MAP_ANONYMOUS, 7)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.size = count * PAGE

    def protect(self, access: int) -> None:
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(self.start), self.size, access) == 0


# What is mapped


def test_code_is_mapped_from_a_file_as_it_was(program, tmp_path):
    steps, longest = program.load(source_ir(), "steps", "longest")
    page = steps & -PAGE
    before = ctypes.string_at(page, PAGE)
    images = images_of(program.engine, tmp_path)
    files = mapped(tmp_path)
    end, access, path = files[page]
    assert (end, access) == (page + PAGE, "r-xp")
    assert ctypes.string_at(page, PAGE) == before
    assert Long(longest)(1000) == 178
    assert images.problems == ()
    assert oct(os.stat(path).st_mode) == "0o100600"
    assert {"steps", "longest"} <= names(path)
    text = parsed(path).get_section_by_name(".text")
    assert (text["sh_addr"], text.data()) == (page, before)
    ((frames, _),) = ((start, file) for start, file in files.items() if start != page)
    header = parsed(path).get_section_by_name(".eh_frame")
    assert header["sh_addr"] == frames > page
    assert ctypes.string_at(frames, header["sh_size"]) == header.data()


def test_a_relative_directory_is_meant_from_where_the_program_was_then(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = listeners.CodeImages(".")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    program = Program("mcjit")
    with listeners.attach(program.engine, images):
        program.load(source_ir(), "steps")
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_freeing_leaves_nothing_mapped_and_the_file_there(program, tmp_path):
    images_of(program.engine, tmp_path)
    program.load(source_ir(), "steps")
    assert len(mapped(tmp_path)) == 2
    program.unload()
    assert mapped(tmp_path) == {}
    assert len(list(tmp_path.iterdir())) == 1


def test_objects_made_executable_together_share_a_file(tmp_path):
    import llvmlite.binding as llvm

    program = Program("mcjit")
    images_of(program.engine, tmp_path)
    for name in ("one", "two", "three"):
        text = f"define i64 @{name}() noinline uwtable {{ ret i64 1 }}"
        program.engine.add_module(llvm.parse_assembly(text))
    program.engine.finalize_object()
    address = program.engine.get_function_address("one")
    assert program.engine.get_function_address("two") & -PAGE == address & -PAGE
    path = mapped(tmp_path)[address & -PAGE][2]
    assert {"one", "two", "three"} <= names(path)
    frames = run(tool("llvm-readelf"), "--unwind", path)
    assert len(set(re.findall(r"initial_location: (0x[0-9a-f]+)", frames))) == 3
    program.unload()
    assert mapped(tmp_path) == {}


def test_debug_information_of_objects_that_share_a_file_is_joined(tmp_path):
    objects, start = [], 0x7F0000000000
    for number in range(3):
        file = ObjectFile(emitted("x86-small-pic-dwarf5"))
        code = next(i for i, header in enumerate(file.sections) if header.flags & 4)
        addresses = {i: a + start + (number << 20) for i, a in placed(file).items()}
        addresses[code] = start + number * 0x400
        objects.append((file, addresses))
    frames = start + 0x100000000 // 4
    built = build_code_file(objects, start, bytes(PAGE), frames)
    assert built.frames_size <= room_for_frames(objects)
    path = tmp_path / "image"
    path.write_bytes(built.data)
    said = run(tool("llvm-dwarfdump"), "--debug-info", "--debug-line", str(path))
    assert "error" not in said
    for number in range(3):
        assert f"DW_AT_low_pc\t(0x{start + number * 0x400:016x})" in said
    assert len(re.findall("DW_TAG_compile_unit", said)) == 3
    assert "DW_AT_name\t()" not in said
    verified = run(tool("llvm-dwarfdump"), "--verify", str(path), status=None).splitlines()
    # Before LLVM 18 it does not know this form, which LLVM 20 writes.
    known = "DW_IDX_parent uses an unexpected form DW_FORM_flag_present"
    assert "Verifying unit: 3 / 3" in "".join(verified)
    assert not [line for line in verified if line.startswith("error") and known not in line]
    frames_said = run(tool("llvm-readelf"), "--unwind", str(path))
    for number in range(3):
        assert f"initial_location: {start + number * 0x400:#x}\n" in frames_said


@pytest.mark.parametrize("name", OBJECTS)
def test_every_kind_of_object_has_a_file_that_readers_take(name, tmp_path):
    file = ObjectFile(emitted(name))
    addresses = placed(file)
    code = next(i for i in addresses if file.sections[i].flags & 4)
    start = addresses[code] & -PAGE
    frames = max(addresses.values()) + (1 << 20) & -PAGE
    size = -(-file.sections[code].size // PAGE) * PAGE + PAGE
    path = tmp_path / "image"
    path.write_bytes(build_code_file([(file, addresses)], start, bytes(size), frames).data)
    said = run(tool("llvm-readelf"), "-hlSsn", str(path))
    assert "warning" not in said
    assert "Build ID" in said
    assert "fact" in names(str(path))


def test_an_object_without_symbols_has_a_file(tmp_path):
    whole, bare = tmp_path / "whole.o", tmp_path / "bare.o"
    whole.write_bytes(emitted("x86-default-dwarf4"))
    run(tool("objcopy"), "--strip-all", "--remove-section=.eh_frame", str(whole), str(bare))
    file = ObjectFile(bare.read_bytes())
    assert not file.symbols
    addresses = placed(file)
    start = addresses[next(i for i in addresses if file.sections[i].flags & 4)] & -PAGE
    path = tmp_path / "image"
    path.write_bytes(build_code_file([(file, addresses)], start, bytes(PAGE), None).data)
    assert "warning" not in run(tool("llvm-readelf"), "-hlSsn", str(path))


def test_equal_files_have_one_build_id_and_others_another():
    file = ObjectFile(emitted("x86-default-dwarf4"))
    addresses = placed(file)
    code = addresses[next(i for i in addresses if file.sections[i].flags & 4)] & -PAGE
    frames = code + (1 << 24)

    def identity(pages: bytes) -> bytes:
        image = ELFFile(io.BytesIO(build_code_file([(file, addresses)], code, pages, frames).data))
        return image.get_section_by_name(".note.gnu.build-id").data()[-20:]

    assert identity(bytes(PAGE)) == identity(bytes(PAGE))
    assert identity(bytes(PAGE)) != identity(b"\x90" * PAGE)


def test_a_later_object_on_a_page_is_covered_with_the_first(tmp_path):
    pages = Pages()
    first = Object(1, pages.start)
    pages.protect(5)
    images = listeners.CodeImages(tmp_path)
    images.notify_object_loaded(first.obj)
    pages.protect(7)  # a private copy: the file stays as it is
    second = Object(2, pages.start + 64)
    pages.protect(5)
    images.notify_object_loaded(second.obj)
    assert (first.call(), second.call()) == (1, 2)
    _, _, path = mapped(tmp_path)[pages.start]
    assert {"value_1", "value_2"} <= names(path)
    images.notify_freeing_object(first.obj)
    assert second.call() == 2
    images.notify_freeing_object(second.obj)
    pages.protect(7)
    third = Object(3, pages.start)
    pages.protect(5)
    images.notify_object_loaded(third.obj)
    assert third.call() == 3
    assert names(mapped(tmp_path)[pages.start][2]) >= {"value_3"}
    assert images.problems == ()


# What cannot be done


@pytest.mark.parametrize(
    ("access", "flags", "problem"),
    [(7, mmap.MAP_PRIVATE, "writable"), (5, mmap.MAP_SHARED, "shared")],
)
def test_pages_that_others_may_write_are_left_and_named_in_the_map(
    access, flags, problem, tmp_path, caplog
):
    pages = Pages(flags=flags)
    value = Object(100 + access, pages.start)
    pages.protect(access)
    images = listeners.CodeImages(tmp_path)
    images.notify_object_loaded(value.obj)
    images.notify_object_loaded(value.obj)  # the reason is known by now
    assert mapped(tmp_path) == {}
    assert value.call() == 100 + access
    assert f"value_{100 + access}" in named_in_map()
    (only,) = images.problems
    assert problem in only
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    images.notify_freeing_object(value.obj)


def fall_back(directory: str, prepare: str = "", before: tuple[str, ...] = ()) -> str:
    """The problems of a program for which images cannot be mapped: it works and has a map."""
    script = f"""
import sys
sys.path[:0] = {[str(PROGRAMS), str(PROGRAMS.parent), str(PROGRAMS.parents[1])]!r}
import ctypes, os, resource, listeners, perfmap
from jit import Long, Program, initialize, source_ir
initialize()
images = listeners.CodeImages({directory!r})
program = Program("jitlink")
steps, longest = program.load(source_ir(), "steps", "longest")
before = ctypes.string_at(steps, 200)
{prepare}
listeners.attach(program.engine, images)
assert ctypes.string_at(steps, 200) == before
assert Long(longest)(1000) == 178
assert {directory!r} + "/" not in open("/proc/self/maps").read()
path = f"/tmp/perf-{{os.getpid()}}.map"
assert {{entry.name for entry in perfmap.read_map(path)}} == {{"steps", "longest"}}
os.remove(path)
assert not os.path.isdir({directory!r}) or os.listdir({directory!r}) == []
print("|".join(images.problems))
"""
    return run(*before, sys.executable, "-c", script)


def test_a_directory_that_is_not_there(tmp_path):
    assert "No such file or directory; set JITDUMPDIR" in fall_back(f"{tmp_path}/missing")


def test_a_file_size_limit(tmp_path):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))"
    assert "File too large" in fall_back(str(tmp_path), limit)


@pytest.mark.parametrize(
    ("options", "problem"),
    [("size=4k", "No space left on device"), ("noexec", "Operation not permitted")],
)
def test_a_full_file_system_and_one_without_execution(options, problem, tmp_path):
    script = f'mount -t tmpfs -o {options} none {tmp_path} && exec "$@"'
    namespace = (tool("unshare"), "--mount", "sh", "-c", script, "sh")
    assert problem in fall_back(str(tmp_path), before=namespace)


def test_the_limit_of_mappings(tmp_path):
    many = """
limit = int(open("/proc/sys/vm/max_map_count").read())
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
base = libc.mmap(None, limit * 4096, 0, 0x4022, -1, 0)
for number in range(0, limit * 13 // 16, 2):
    libc.mmap(base + number * 4096, 4096, 1, 0x32, -1, 0)
"""
    assert "vm.max_map_count" in fall_back(str(tmp_path), many)


def test_without_room_for_frames_there_is_a_file_without_them(tmp_path):
    full = f"""
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
page = steps & -4096
lines = [line.split()[0].split("-") for line in open("/proc/self/maps")]
ranges = [(int(a, 16), int(b, 16)) for a, b in lines]
for (_, end), (start, _) in zip(ranges, ranges[1:]):
    if page <= end < page + (1 << 31) and start > end:
        libc.mmap(end, min(start, page + (1 << 31)) - end, 0, 0x104022, -1, 0)
listeners.attach(program.engine, images)
assert Long(longest)(1000) == 178
assert "call chains by dwarf" in images.problems[0]
(name,) = os.listdir({str(tmp_path)!r})
assert name in open("/proc/self/maps").read()
"""
    script = f"""
import sys
sys.path[:0] = {[str(PROGRAMS), str(PROGRAMS.parent), str(PROGRAMS.parents[1])]!r}
import ctypes, os, listeners
from jit import Long, Program, initialize, source_ir
initialize()
images = listeners.CodeImages({str(tmp_path)!r})
program = Program("jitlink")
steps, longest = program.load(source_ir(), "steps", "longest")
{full}
"""
    run(sys.executable, "-c", script)


def test_doctor_tells_whether_images_can_be_mapped(tmp_path):
    script = f'mount -t tmpfs -o noexec none {tmp_path} && exec "$@"'
    doctor = (sys.executable, "-m", "jitlisten", "doctor", "--json")
    environment = {**os.environ, "JITDUMPDIR": tmp_path.name}
    namespace = (tool("unshare"), "--mount", "sh", "-c", script, "sh")
    for command, state in (doctor, "ok"), ((*namespace, *doctor), "warning"):
        said = run(*command, status=None, env=environment, cwd=tmp_path.parent)
        (found,) = (check for check in json.loads(said)["checks"] if check["name"] == "images")
        assert found["state"] == state
        assert ("Operation not permitted" in found["detail"]) == (state == "warning")


# With others


@pytest.mark.tools
@pytest.mark.parametrize("linker", LINKERS)
def test_gdb_stops_in_code_that_is_mapped_from_a_file(linker, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = {[str(PROGRAMS), str(PROGRAMS.parents[1])]!r}
from jit import Long, Program, initialize, source_ir
import listeners
initialize()
program = Program({linker!r})
images = listeners.CodeImages({str(tmp_path)!r})
listeners.attach(program.engine, listeners.GDBRegistration(), images)
steps, longest = program.load(source_ir(), "steps", "longest")
print("longest", Long(longest)(10), images.problems)
"""
    )
    said = gdb(
        *("break collatz.tiny:8 if n == 7", "run", "backtrace 2", "info locals"),
        *("delete", "continue"),
        program=(str(script),),
    )
    assert re.search(r"#0 .*steps \(n=7\) at collatz.tiny:8", said)
    assert re.search(r"#1 .*longest \(limit=10\)", said)
    assert "half = 3" in said
    assert "longest 19 ()" in said
    assert list(tmp_path.glob("steps-*.so"))


LOADS = f"""
import os, subprocess, sys
sys.path[:0] = {[str(PROGRAMS)]!r}
from jit import Program, initialize, source_ir
initialize()
program = Program("mcjit")
program.load(source_ir(), "steps")
"""


@pytest.mark.tools
def test_the_files_are_in_a_directory_of_the_run_until_they_are_cleaned(tmp_path):
    environment = {**os.environ, "JITDUMPDIR": str(tmp_path)}
    command = (sys.executable, "-m", "jitlisten")
    source = f"{LOADS}\nsubprocess.run({[*command, 'clean']!r}, check=True)"
    program = (*command, "run", "--images", sys.executable, "-c", source)
    said = run(*container(tmp_path, *program), env=environment)
    assert f"0 removed from {tmp_path}" in said
    (directory,) = tmp_path.glob(".debug/jit/jit-listeners-*")
    assert oct(directory.stat().st_mode) == "0o40700"
    assert len(list(directory.iterdir())) == 1
    assert f"1 removed from {tmp_path}" in clean(tmp_path)
    assert not directory.exists()
    assert f"0 removed from {tmp_path}" in clean(tmp_path)


@pytest.mark.tools
def test_a_daemon_that_has_closed_all_files_keeps_the_directory(tmp_path):
    environment = {**os.environ, "JITDUMPDIR": str(tmp_path)}
    command = (sys.executable, "-m", "jitlisten")
    source = f"""{LOADS}
parent = os.getpid()
if os.fork():
    os._exit(0)
os.closerange(3, 1000)
while os.getppid() == parent:
    pass
subprocess.run({[*command, "clean"]!r}, check=True)
"""
    program = (*command, "run", "--images", sys.executable, "-c", source)
    to_its_end = ("sh", "-c", '"$@" | cat', "sh")
    said = run(*container(tmp_path, *to_its_end, *program), env=environment)
    assert f"0 removed from {tmp_path}" in said
    assert f"1 removed from {tmp_path}" in clean(tmp_path)


@pytest.mark.tools
@pytest.mark.parametrize("linker", LINKERS)
def test_four_threads_run_code_that_is_mapped_over_while_others_load_and_unload(linker, tmp_path):
    environment = {**os.environ, "JITDUMPDIR": str(tmp_path)}
    said = run(sys.executable, f"{PROGRAMS}/stress.py", linker, env=environment)
    calls, mapped = map(int, re.findall(r"\d+", said))
    assert calls == 100_000
    assert mapped > 50
