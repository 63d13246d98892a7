"""read_map: what other writers have written, whole or malformed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapfiles import CODE

from perfmap import MapEntry, MapFile, PerfMapError, read_map


def test_lines_of_other_writers_are_read(path: Path) -> None:
    path.write_bytes(
        b"7f0000000000 b py::<module>:/tmp/a b.py\n\n\n\n"
        b"0x00007F0000000010 0x20 0xprefix \xff\n"
        b"1 0  two spaces, no newline"
    )
    assert read_map(path) == [
        MapEntry(CODE, 11, "py::<module>:/tmp/a b.py"),
        MapEntry(CODE + 16, 32, "0xprefix \\xff"),
        MapEntry(1, 0, " two spaces, no newline"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"x 10 name",
        b"10 y name",
        b"10 20",
        b"10 20 ",
        b"10",
        b"-10 20 name",
        b"10  20 name",
        b" 10 20 name",
        b"1_0 20 name",
        b"10000000000000000 1 name",
        b"\r",
        b"\0",
        b"1 1 " + b"x" * (1 << 20),
    ],
)
def test_a_malformed_line_is_an_error_with_its_number(path: Path, line: bytes) -> None:
    path.write_bytes(b"1000 10 good\n\n" + line + b"\n2000 10 good\n")
    with pytest.raises(PerfMapError, match=r"file', line 3: .* is not 'START SIZE name'"):
        read_map(path)


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in [
        (tmp_path / "fifo", "is not a regular file"),
        (Path("/dev/null"), "is not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (Path("nul\0byte"), "embedded null"),
    ]:
        with pytest.raises(PerfMapError, match=reason):
            read_map(path)


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(
        st.tuples(
            st.integers(0, (1 << 32) - 1).map(lambda number: number << 32),
            st.integers(1, 1 << 32),
            st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=3),
        ),
        unique_by=lambda entry: entry[0],
    )
)
def test_what_is_written_is_read_back(
    entries: list[tuple[int, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("map") / "perf.map"
    path.touch()
    with MapFile(path=path) as map_file:
        map_file.add_all(entries)
    assert read_map(path) == sorted(entries)


@settings(max_examples=1000, deadline=None)
@given(
    data=st.one_of(
        st.binary(),
        st.lists(
            st.sampled_from([b"7f00", b" ", b"1f", b"\n", b"0x", b"name", b"\xff", b"\0"])
        ).map(b"".join),
    )
)
def test_any_bytes_are_entries_or_an_error(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.map"
    path.write_bytes(data)
    with contextlib.suppress(PerfMapError):
        assert len(read_map(path)) == sum(1 for line in data.split(b"\n") if line)
