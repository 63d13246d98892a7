"""The jitdump format, and the writer: its files, its records, their order and place."""

import gc
import os
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jit import Program, source_ir
from mapfiles import open_in
from tools import run, tool

import listeners
from perfmap import FrameRules, JITCode, JITDumpWriter, PerfMapError, read_jitdump
from perfmap.callframes import encode
from perfmap.jitdump import (
    CodeClose,
    CodeLoad,
    CodeMove,
    DebugEntry,
    DebugInfo,
    UnknownRecord,
    UnwindingInfo,
    encode_header,
    encode_record,
)
from perfmap.places import Places

ROOT = Path(__file__).parents[1]
RULES = FrameRules(1, -8, 16, bytes([0x0C, 7, 8, 0x90, 1]), b"\x44\x0e\x10")
PAGE = 1 << 40  # an address where nothing is

u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
content = st.binary(max_size=40)
records = st.one_of(
    st.builds(CodeLoad, u64, u32, u32, u64, u64, u64, texts, content),
    st.builds(CodeMove, u64, u32, u32, u64, u64, u64, u64, u64),
    st.builds(
        DebugInfo,
        u64,
        u64,
        st.lists(
            st.builds(DebugEntry, u64, st.integers(-(1 << 31), (1 << 31) - 1), u32, texts),
            max_size=4,
        ).map(tuple),
    ),
    st.builds(CodeClose, u64),
    st.builds(UnwindingInfo, u64, content, content, u64),
    st.builds(UnknownRecord, u64, st.integers(5, (1 << 32) - 1), content),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dump") / "jit-1.dump"


@given(st.lists(records, max_size=6), st.sampled_from("<>"), u32, u64)
def test_what_is_written_is_read_in_either_byte_order(path, written, order, pid, time):
    parts = [encode_record(record, order) for record in written]
    path.write_bytes(encode_header(62, pid, time, 1, order) + b"".join(parts))
    assert read_jitdump(path) == (order, 62, pid, time, 1, tuple(written), 0)


@given(st.lists(records, min_size=1, max_size=3), st.data())
def test_a_last_record_that_is_cut_off_is_left_out_and_told(path, written, data):
    parts = [encode_record(record) for record in written]
    kept = data.draw(st.integers(1, len(parts[-1]) - 1))
    path.write_bytes(encode_header(62, 1, 2) + b"".join(parts[:-1]) + parts[-1][:kept])
    dump = read_jitdump(path)
    assert dump.records == tuple(written[:-1])
    assert dump.truncated == kept


@given(st.lists(records, max_size=3), st.data())
def test_malformed_bytes_are_an_error_or_records(path, written, data):
    whole = bytearray(encode_header(62, 1, 2) + b"".join(map(encode_record, written)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        read_jitdump(path)
    except PerfMapError as error:
        assert f"{str(path)!r}, offset 0x" in str(error)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "magic"),
        (b"\x7fELF" + bytes(60), "magic"),
        (encode_header(62, 1, 2)[:39], "cut off"),
        (encode_header(62, 1, 2).replace(b"\x01\0\0\0\x28", b"\x02\0\0\0\x28"), "version 2"),
        (encode_header(62, 1, 2) + struct.pack("<IIQ", 0, 15, 0), "offset 0x28: a record of 15"),
        (encode_header(62, 1, 2) + struct.pack("<IIQ", 0, 16, 0), "less than its fields need"),
        (encode_header(62, 1, 2) + struct.pack("<IIQQQ", 2, 32, 0, 0, 1), "less than its fields"),
        (encode_header(62, 1, 2) + struct.pack("<IIQQQQ", 4, 40, 0, 8, 0, 0), "said to be 8"),
    ],
)
def test_malformed_files(path, data, problem):
    path.write_bytes(data)
    with pytest.raises(PerfMapError, match=problem):
        read_jitdump(path)


def test_what_is_no_file_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "none", "."):
        with pytest.raises(PerfMapError, match="give a jitdump file"):
            read_jitdump(tmp_path / name)


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


# Where the rules go


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 200), st.booleans()), min_size=1),
    st.lists(st.integers(0, 60), max_size=3),
)
def test_everyone_s_rules_are_left_to_him_by_what_is_loaded_later(shapes, others):
    """As perf does it: a load takes its range from what was there."""
    places = Places()
    batches, address = [], PAGE
    for size, gap, has_rules in shapes:
        batches.append(JITCode(address, bytes(size), "f", (), RULES if has_rules else None))
        address += -(-(size + gap) // 8) * 8
    foreign = [JITCode(address + 4096 * number, b"\xc3", "other") for number in others]
    owner: dict[int, int] = {}  # by address: the function that perf finds there
    for other in sorted(foreign):
        places.take([other])
        owner[other.address] = other.address
    expected = {}
    for function, distance in zip(batches, places.take(batches), strict=True):
        start, size = function.address, len(function.code)
        end = start + size
        if distance is not None:
            rules, header = encode(RULES, size, distance)
            begin = start + ((size + 7) & ~7)
            end = begin + len(rules) + len(header)
            expected[start] = (begin + distance, end)
        owner.update(dict.fromkeys(range(start, end), start))
    for function in (*batches, *foreign):
        code = range(function.address, function.address + len(function.code))
        assert all(owner[place] == function.address for place in code)
    for start, (begin, end) in expected.items():
        assert all(owner[place] == start for place in range(begin, end))


def test_a_function_where_the_rules_of_another_were_stays_when_that_one_goes():
    places = Places()
    assert places.take([JITCode(PAGE, bytes(64), "f", (), RULES)]) == [0]
    assert places.take([JITCode(PAGE + 64, bytes(64), "g")]) == [None]
    places.free([PAGE])
    assert places.take([JITCode(PAGE, bytes(64), "h", (), RULES)]) == [None]


@pytest.mark.timeout(10)
def test_functions_that_overlap_may_be_loaded_together():
    places = Places()
    for _ in range(2):
        places.take([JITCode(PAGE, bytes(64), "f"), JITCode(PAGE, bytes(32), "f, too")])
    places.free([PAGE])
    assert places.are_free(PAGE, PAGE + 64)


def test_rules_do_not_go_where_others_are_mapped_or_too_far(tmp_path):
    places = Places()
    assert places.take([JITCode(PAGE, bytes(64), "f", (), RULES)]) == [0]
    assert places.take([JITCode(PAGE - 64, bytes(64), "g", (), RULES)]) == [None]
    places.free([PAGE])
    assert places.take([JITCode(PAGE - 128, bytes(64), "h", (), RULES)]) == [None]
    many = [JITCode(PAGE + 4096 + 512 * n, bytes(512), "m", (), RULES) for n in range(200)]
    distances = places.take(many)
    assert distances[0] is None
    assert distances[-1] == 0
    assert None not in distances[-50:]


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


def test_an_object_without_debug_information(tmp_path):
    program = Program("jitlink")
    with listeners.attach(program.engine, listeners.JITDump(tmp_path)):
        program.load("define i64 @f() { ret i64 1 }", "f")
    (path,) = tmp_path.iterdir()
    kinds = [type(record).__name__ for record in read_jitdump(path).records]
    assert kinds in (["CodeLoad"], ["UnwindingInfo", "CodeLoad"])
