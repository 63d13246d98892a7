"""The writer of a jitdump: its file, its records and their order; and its listener."""

import gc
import os
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from jit import Program, source_ir
from mapfiles import open_in
from tools import run, tool

import listeners
from perfmap import FrameRules, JITCode, JITDumpWriter, PerfMapError, read_jitdump
from perfmap.callframes import encode
from perfmap.jitdump import (
    CodeClose,
    CodeLoad,
    DebugInfo,
    UnwindingInfo,
)

ROOT = Path(__file__).parents[1]
RULES = FrameRules(1, -8, 16, bytes([0x0C, 7, 8, 0x90, 1]), b"\x44\x0e\x10")
PAGE = 1 << 40  # an address where nothing is


# The writer's file


@pytest.fixture(autouse=True)
def _no_descriptor_is_left_to_the_next_test():
    yield
    gc.collect()


def loads(path: Path | None) -> list[CodeLoad]:
    assert path is not None
    return [record for record in read_jitdump(path).records if isinstance(record, CodeLoad)]


def test_the_file_is_made_at_the_first_add_in_a_directory_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("JITDUMPDIR", str(tmp_path))
    writer = JITDumpWriter()
    assert writer.path is None
    writer.add(JITCode(PAGE, b"\xc3", "f"))
    assert writer.path is not None
    assert writer.path.parent.parent == tmp_path / ".debug" / "jit"
    assert writer.path.name == f"jit-{os.getpid()}.dump"
    assert writer.path.parent.stat().st_mode & 0o777 == 0o700
    assert writer.path.stat().st_mode & 0o777 == 0o600
    mappings = Path("/proc/self/maps").read_text().splitlines()
    (mark,) = (line for line in mappings if str(writer.path) in line)
    assert " r-xp " in mark
    writer.close()
    assert isinstance(read_jitdump(writer.path).records[-1], CodeClose)
    with pytest.raises(PerfMapError, match="closed"):
        writer.add(JITCode(PAGE, b"\xc3", "f"))


def test_a_file_or_link_in_its_place_is_refused_and_a_dead_process_s_is_replaced(tmp_path):
    place = tmp_path / f"jit-{os.getpid()}.dump"
    for make in (lambda: place.symlink_to("/dev/null"), lambda: place.write_bytes(b"mine")):
        make()
        with pytest.raises(PerfMapError, match="is there already"):
            JITDumpWriter(tmp_path).add(JITCode(PAGE, b"\xc3", "f"))
        place.unlink()
    place.write_bytes(b"old")
    os.utime(place, (0, 0))
    JITDumpWriter(tmp_path).add(JITCode(PAGE, b"\xc3", "f"))
    assert len(loads(place)) == 1


def test_a_directory_that_cannot_be_used_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(PerfMapError, match="No such file"):
        JITDumpWriter(tmp_path / "none").add(JITCode(PAGE, b"\xc3", "f"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("JITDUMPDIR", str(tmp_path / "file"))
    with pytest.raises(PerfMapError, match="JITDUMPDIR"):
        JITDumpWriter().add(JITCode(PAGE, b"\xc3", "f"))


def test_a_relative_directory_is_meant_from_where_the_program_was_then(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JITDUMPDIR", "here")
    first, second = JITDumpWriter(), JITDumpWriter(".")
    first.add(JITCode(PAGE, b"\xc3", "f"))
    assert first.path is not None
    assert first.path.is_relative_to(tmp_path / "here" / ".debug")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir("gone")
    (tmp_path / "gone").rmdir()
    second.add(JITCode(PAGE, b"\xc3", "f"))
    assert second.path == tmp_path / first.path.name
    with pytest.raises(PerfMapError, match="absolute path"):
        JITDumpWriter().add(JITCode(PAGE, b"\xc3", "f"))


def test_a_full_disk_is_an_error_and_the_writer_goes_on(tmp_path):
    script = f"""
import resource, signal
from perfmap import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = JITDumpWriter({str(tmp_path)!r})
writer.add(JITCode({PAGE}, b"\\xc3", "first"))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    writer.add(JITCode({PAGE + 64}, bytes(2000), "too large"))
except PerfMapError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
writer.add(JITCode({PAGE + 64}, b"\\xc3\\x90", "second"))
"""
    said = run(sys.executable, "-c", script, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert "make room on its file system" in said
    (path,) = tmp_path.iterdir()
    assert [load.name for load in loads(path)] == ["first", "second"]


def test_a_dump_whose_descriptor_the_program_has_closed_is_gone_on_with(tmp_path):
    script = f"""
import os, sys
from perfmap import JITCode, JITDumpWriter
writer = JITDumpWriter({str(tmp_path)!r})
writer.add(JITCode({PAGE}, b"\\xc3", "first"))
os.closerange(3, 1000)
own = os.open("/dev/null", os.O_RDONLY), os.pipe()
writer.add(JITCode({PAGE + 64}, b"\\xc3\\x90", "second"))
os.closerange(3, 1000)
writer.close()
"""
    run(sys.executable, "-c", script, env={**os.environ, "PYTHONPATH": str(ROOT)})
    (path,) = tmp_path.iterdir()
    assert [load.name for load in loads(path)] == ["first", "second"]
    assert isinstance(read_jitdump(path).records[-1], CodeClose)


def test_a_deleted_file_is_made_again(tmp_path):
    writer = JITDumpWriter(tmp_path)
    writer.add(JITCode(PAGE, b"\xc3", "lost"))
    path = writer.path
    assert path is not None
    path.unlink()
    writer.add(JITCode(PAGE + 64, b"\xc3\x90", "found"))
    assert [load.name for load in loads(path)] == ["found"]


def test_the_descriptor_of_a_deleted_file_is_closed(tmp_path):
    with JITDumpWriter(tmp_path) as writer:
        for number in range(2):
            writer.add(JITCode(PAGE + 64 * number, b"\xc3", "f"))
            assert writer.path is not None
            writer.path.unlink()
            assert len(open_in(tmp_path)) == 1
    assert open_in(tmp_path) == []


def test_a_forked_child_writes_its_own(tmp_path):
    writer = JITDumpWriter(tmp_path)
    writer.add(JITCode(PAGE, b"\xc3", "inherited"))
    child = os.fork()
    if not child:
        try:
            writer.add(JITCode(PAGE + 64, b"\xc3\x90", "of child"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    writer.add(JITCode(PAGE + 128, b"\xc3\x90\x90", "of parent"))
    assert [load.name for load in loads(writer.path)] == ["inherited", "of parent"]
    (load,) = loads(tmp_path / f"jit-{child}.dump")
    assert (load.name, load.pid) == ("of child", child)


def test_threads_and_finalizers_write_whole_records(tmp_path):
    writer = JITDumpWriter(tmp_path)

    class Cycle:
        def __init__(self, number: int) -> None:
            self.itself, self.number = self, number

        def __del__(self) -> None:
            writer.add(JITCode(PAGE + 64 * self.number, bytes(range(9)), "finalizer"))

    def work(number: int) -> None:
        for turn in range(100):
            Cycle(10_000 + number * 100 + turn)
            writer.add(JITCode(PAGE + 64 * (number * 100 + turn), b"\xc3" * 8, "thread"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    found = loads(writer.path)
    assert len(found) == 800
    assert len({load.code_index for load in found}) == 800


# Its records


def test_records_come_in_the_order_perf_needs(tmp_path):
    before = time.monotonic_ns()
    writer = JITDumpWriter(tmp_path)
    lines = [(PAGE, "a.c", 3), (PAGE + 2, "a.c", 3), (PAGE + 4, "b.h", 1)]
    writer.add_all(
        [JITCode(PAGE + 64, b"\xc3" * 5, "g"), JITCode(PAGE, b"\x90" * 9, "f\n", lines, RULES)]
    )
    assert writer.path is not None
    dump = read_jitdump(writer.path)
    unwinding, debug, f, g = dump.records
    assert isinstance(unwinding, UnwindingInfo)
    assert debug[1:] == (
        PAGE,
        ((PAGE, 3, 0, "a.c"), (PAGE + 4, 1, 0, "b.h"), (PAGE + 9, 1, 0, "b.h")),
    )
    assert isinstance(f, CodeLoad)
    assert isinstance(g, CodeLoad)
    assert (f.address, f.name, f.code, f.pid) == (PAGE, "f?", b"\x90" * 9, os.getpid())
    assert f.tid == threading.get_native_id()
    assert before < f.time < g.time <= time.monotonic_ns() + 100


@pytest.mark.parametrize(
    ("name", "written"),
    [("", "[unnamed]"), ("f\ud800\udc80\x9b", "f???"), ("é" * 4000, "é" * 2046 + "...")],
)
def test_names_are_those_of_the_map_file(tmp_path, name, written):
    writer = JITDumpWriter(tmp_path)
    writer.add(JITCode(PAGE, b"\xc3", name))
    assert [load.name for load in loads(writer.path)] == [written]


@pytest.mark.parametrize(
    "wrong",
    [
        JITCode(PAGE + 64, b"\xc3", "f", [(PAGE + 64, "a\0.c", 1)]),
        JITCode(PAGE + 64, b"\xc3", "f", [(PAGE + 64, "\ud800.c", 1)]),
        JITCode(PAGE + 64, b"\xc3", "f", [(PAGE + 64, "a.c", 1 << 31)]),
        JITCode(PAGE + 64, b"\xc3", "f", (), RULES._replace(return_register=256)),
    ],
)
def test_a_batch_that_cannot_be_written_is_an_error_and_takes_no_place(tmp_path, wrong):
    writer = JITDumpWriter(tmp_path)
    with pytest.raises(PerfMapError):
        writer.add_all([JITCode(PAGE, b"\x90\xc3", "right"), wrong])
    writer.add(JITCode(PAGE, bytes(64), "f", (), RULES))
    dump = read_jitdump(writer.path)
    assert [type(record) for record in dump.records] == [UnwindingInfo, CodeLoad]
    assert dump.records[0].mapped_size


def test_equal_code_is_told_apart_by_an_instruction_behind_it(tmp_path):
    writer = JITDumpWriter(tmp_path)
    for number, name in enumerate(["f", "g", "h"]):
        writer.add(JITCode(PAGE + 64 * number, b"\x90\xc3", name))
    f, g, h = (load.code for load in loads(writer.path))
    assert f == b"\x90\xc3" == g[:2] == h[:2]
    assert len({f, g, h}) == 3


@pytest.mark.parametrize("distance", [0, 16, 64, 1024, None])
def test_frames_are_read_by_others(distance, tmp_path):
    """The sections as perf puts them into a file, read by readelf."""
    section = 0x1000 - 0x40 + 0x48  # the code is 0x44 bytes at 0xfc0
    rules, header = encode(RULES, 0x44, distance)
    for name, data in (("rules", rules), ("header", header)):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "a.s").write_text(
        f'.section .eh_frame,"a"\n.incbin "{tmp_path}/rules"\n'
        f'.section .eh_frame_hdr,"a"\n.incbin "{tmp_path}/header"\n'
    )
    run(tool("as"), "-o", str(tmp_path / "a.o"), str(tmp_path / "a.s"))
    start = section + len(rules)
    run(
        *(tool("objcopy"), "--change-section-address", f".eh_frame={section:#x}"),
        *("--change-section-address", f".eh_frame_hdr={start:#x}", str(tmp_path / "a.o")),
    )
    text = run(tool("readelf"), "-wF", str(tmp_path / "a.o"))
    assert "pc=0000000000000fc0..0000000000001004" in text
    table = struct.unpack_from("<4BiI", header)
    assert table[:4] == (1, 0x1B, 3, 0x3B)
    assert start + 4 + table[4] == section
    if distance is None:
        assert table[5] == 0
    else:
        code, fde = struct.unpack_from("<ii", header, 12)
        assert start + code == 0xFC0
        assert start + fde - section == distance + 24


# The listener


def test_the_listener_writes_each_function_with_lines_and_rules(linker, tmp_path):
    dump = listeners.JITDump(tmp_path)
    program = Program(linker)
    with listeners.attach(program.engine, dump) as attachment:
        addresses = program.load(source_ir(), "steps", "longest")
        (obj,) = attachment.objects
        (path,) = tmp_path.iterdir()
        records = read_jitdump(path).records
        kinds = [type(record).__name__ for record in records]
        assert kinds == ["UnwindingInfo", "DebugInfo", "CodeLoad"] * 2
        for function, load, debug in zip(obj.functions, records[2::3], records[1::3], strict=True):
            assert isinstance(load, CodeLoad)
            assert isinstance(debug, DebugInfo)
            assert (load.address, load.name) == (function.address, function.name)
            assert len(load.code) == function.size
            assert [(e.address, e.line) for e in debug.entries[:1]] == [
                (line.address, line.line)
                for line in obj.lines()
                if line.address == function.address
            ][:1]
        assert [load.address for load in records[2::3]] == sorted(addresses)


@pytest.mark.parametrize(
    ("attributes", "kinds"),
    [("uwtable", ["UnwindingInfo", "CodeLoad"]), ("nounwind", ["CodeLoad"])],
)
def test_an_object_without_debug_information(tmp_path, attributes, kinds):
    program = Program("jitlink")
    with listeners.attach(program.engine, listeners.JITDump(tmp_path)):
        program.load(f"define i64 @f() {attributes} {{ ret i64 1 }}", "f")
    (path,) = tmp_path.iterdir()
    assert [type(record).__name__ for record in read_jitdump(path).records] == kinds
