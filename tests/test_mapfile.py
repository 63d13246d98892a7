"""MapFile: what is in the file after every call."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapfiles import CODE, names, open_in

from perfmap import MapEntry, MapFile, PerfMapError, read_map

# What is written


def test_a_line_is_start_size_and_name_in_hexadecimal_without_prefix(
    map_file: MapFile, path: Path
) -> None:
    map_file.add_all([(CODE, 0x1F, "kernel(double*, int)"), MapEntry(CODE + 64, 8, "größe")])
    assert path.read_bytes() == (
        b"7f0000000000 1f kernel(double*, int)\n7f0000000040 8 gr\xc3\xb6\xc3\x9fe\n"
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("f", "f()"),
        ("f2", "f2()"),
        ("é", "é()"),
        ("for", "for"),
        ("", "[unnamed]"),
        ("a\nb\rc\x00d\x1b[31m\x7f\x9b", "a?b?c?d?[31m??"),
        ("line\u2028separator", "line?separator"),
        ("sym\udcff\ud800", "sym??"),
        (" spaced  out ", " spaced  out "),
        ("x" * 4096, "x" * 4096),
        ("x" * 4097, "x" * 4093 + "..."),
        ("é" * 4000, "é" * 2046 + "..."),
    ],
)
def test_a_name_is_written_so_that_perf_resolves_it(
    map_file: MapFile, path: Path, name: str, written: str
) -> None:
    map_file.add(CODE, 16, name)
    assert read_map(path) == [MapEntry(CODE, 16, written)]


def test_a_size_of_zero_is_written_as_one(map_file: MapFile, path: Path) -> None:
    map_file.add(CODE, 0, "assembly_label")
    assert read_map(path) == [MapEntry(CODE, 1, "assembly_label")]


@pytest.mark.parametrize(
    ("address", "size"), [(-1, 4), (CODE, -1), (1 << 64, 0), ((1 << 64) - 4, 5)]
)
def test_a_range_outside_the_address_space_is_an_error_and_nothing_is_written(
    map_file: MapFile, path: Path, address: int, size: int
) -> None:
    with pytest.raises(PerfMapError, match=r"'wrong', -?\d+ bytes at -?0x[0-9a-f]+, is not in"):
        map_file.add_all([(CODE, 16, "right"), (address, size, "wrong")])
    assert not path.exists()
    map_file.add((1 << 64) - 4, 4, "the last four bytes")


def test_no_file_is_made_before_the_first_entry(path: Path) -> None:
    with MapFile(path=path) as map_file:
        map_file.remove(CODE)
        map_file.add_all([])
    assert not path.exists()


def test_the_file_is_private_and_stays_after_close(path: Path) -> None:
    with MapFile(path=path) as map_file:
        map_file.add(CODE, 16, "function")
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(path) == ["function"]


def test_to_add_after_close_is_an_error(map_file: MapFile, path: Path) -> None:
    map_file.add(CODE, 16, "function")
    map_file.close()
    map_file.close()
    map_file.remove(CODE)
    with pytest.raises(PerfMapError, match=r"file'?: it is closed: make a new MapFile"):
        map_file.add(CODE, 16, "late")
    assert names(path) == ["function"]


def test_descriptors_are_closed_with_the_object(path: Path) -> None:
    map_files = [MapFile(path=path) for _ in range(3)]
    for map_file in map_files:
        map_file.add(CODE, 16, "function")
    assert set(open_in(path.parent)) == {path}
    del map_file, map_files
    gc.collect()
    assert open_in(path.parent) == []


def test_the_default_file_is_where_perf_looks() -> None:
    assert MapFile().path == Path(f"/tmp/perf-{os.getpid()}.map")
    assert MapFile(pid=1234567).path == Path("/tmp/perf-1234567.map")
    with pytest.raises(PerfMapError, match="not both"):
        MapFile(pid=1, path="/tmp/x")


# What goes


def test_removed_lines_go_and_the_others_stay(map_file: MapFile, path: Path) -> None:
    map_file.add_all([(CODE + 64 * i, 64, f"function_{i}") for i in range(6)])
    map_file.remove(CODE + 64)
    map_file.remove_all([CODE + 64 * 3, CODE + 64 * 4, CODE + 64 * 4, 0xDEAD])
    assert names(path) == ["function_0", "function_2", "function_5"]


@pytest.mark.parametrize(
    ("address", "size", "left"),
    [
        (CODE + 0x100, 0x100, ["first", "third"]),
        (CODE + 0x180, 1, ["first", "third"]),
        (CODE + 0xFF, 2, ["third"]),
        (CODE, 0x1000, []),
        (CODE + 0x300, 1, ["first", "second", "third"]),
        (CODE - 1, 1, ["first", "second", "third"]),
    ],
)
def test_a_new_entry_takes_the_place_of_those_it_overlaps(
    map_file: MapFile, path: Path, address: int, size: int, left: list[str]
) -> None:
    map_file.add_all(
        [(CODE, 0x100, "first"), (CODE + 0x100, 0x100, "second"), (CODE + 0x200, 0x100, "third")]
    )
    map_file.add(address, size, "newer")
    assert sorted(names(path)) == sorted([*left, "newer"])


def test_of_entries_in_a_batch_that_overlap_the_last_one_stays(
    map_file: MapFile, path: Path
) -> None:
    map_file.add(CODE + 90, 4, "older code")
    map_file.add_all(
        [(CODE + 32, 64, "function"), (CODE, 8, "far"), (CODE + 32, 16, "alias"), (CODE, 8, "for")]
    )
    assert names(path) == ["for", "alias"]


def test_loading_and_unloading_does_not_make_the_file_grow(map_file: MapFile, path: Path) -> None:
    map_file.add(CODE - 64, 64, "stays")
    sizes = set()
    for cycle in range(500):
        code = CODE + 4096 * (cycle % 7)
        map_file.add_all([(code + 64 * i, 64, f"function_{i}") for i in range(10)])
        sizes.add(path.stat().st_size)
        map_file.remove_all([code + 64 * i for i in range(10)])
    assert len(sizes) == 1
    assert names(path) == ["stays"]


RANGES = st.tuples(
    st.integers(0, 300).map(lambda n: CODE + n),
    st.integers(1, 40),
    st.text(st.characters(categories=["L", "P"]), min_size=3, max_size=30),
)
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(RANGES, min_size=1, max_size=5)),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 300).map(lambda n: CODE + n), max_size=9)),
    st.tuples(st.just("other"), st.text("xyz", min_size=3, max_size=9)),
)


def overlap(one: MapEntry, other: MapEntry) -> bool:
    return one.address < other.address + other.size and other.address < one.address + one.size


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_the_file_holds_what_is_live_and_every_line_of_others(
    steps: list[tuple[str, list[object] | str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("map") / "perf.map"
    live: list[MapEntry] = []
    others: list[MapEntry] = []
    with MapFile(path=path) as map_file, path.open("ab", buffering=0) as interpreter:
        inode = path.stat().st_ino
        for what, values in steps:
            if what == "add":
                map_file.add_all(values)
                batch = [MapEntry(*value) for value in values]
                live = [old for old in live if not any(overlap(old, new) for new in batch)]
                staying: list[MapEntry] = []
                for new in reversed(batch):
                    if not any(overlap(new, other) for other in staying):
                        staying.append(new)
                live += staying
            elif what == "remove":
                map_file.remove_all(values)
                live = [entry for entry in live if entry.address not in values]
            else:
                others.append(MapEntry(len(others), 1, values))
                interpreter.write(b"%x 1 %b\n" % (len(others) - 1, values.encode()))
            entries = read_map(path)
            assert sorted(e for e in entries if e.address >= CODE) == sorted(live)
            assert [e for e in entries if e.address < CODE] == others
    assert path.stat().st_ino == inode
