"""The jitdump format: what is written is read, and what is malformed is an error."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmap import PerfMapError, read_jitdump
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
