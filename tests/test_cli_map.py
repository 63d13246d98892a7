"""`jitlisten map`: a process that knows nothing of us gets a map file, where perf looks for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from outside import NOBODY, command, listed, refused, running
from tools import JITLISTEN, PROGRAMS, perf_symbols, run, tool

from perfmap import read_map

pytestmark = pytest.mark.tools


def test_map_names_a_program_that_is_being_recorded(tmp_path: Path) -> None:
    data = tmp_path / "perf.data"
    with running("numba") as process:
        options = ("record", "-q", "-e", "cpu-clock", "-o", str(data), "-p", str(process.pid))
        run(tool("perf"), *options, "--", "sleep", "1")
        out, _ = command("map", process.pid)
        entries = read_map(f"/tmp/perf-{process.pid}.map")
        assert out == f"{len(entries)} functions in /proc/{process.pid}/root/tmp/" + (
            f"perf-{process.pid}.map\n"
        )
        shares = perf_symbols(data)
    found = {name: share for name, share in shares.items() if ".steps(" in name}
    assert sum(found.values()) > 50, shares


def test_map_is_written_where_perf_looks_in_a_container(tmp_path: Path) -> None:
    """A pid and a mount namespace of its own, with another /tmp."""
    # What is needed of the old /tmp comes to the same place in the new one.
    needed = {str(PROGRAMS.parents[1]), sys.prefix, sys.base_prefix}
    inner = "mount --rbind /tmp /mnt; mount -t tmpfs none /tmp; "
    for path in sorted(path for path in needed if path.startswith("/tmp/")):
        inner += f"mkdir -p {path}; mount --rbind /mnt{path.removeprefix('/tmp')} {path}; "
    inner += 'exec "$@"'
    new = ("--map-root-user", "--mount", "--pid", "--fork", "--kill-child")
    within = (tool("unshare"), *new, "sh", "-c", inner, "sh")
    with running("mcjit", within=within) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        pid = int(children)
        data = tmp_path / "perf.data"
        options = ("record", "-q", "-e", "cpu-clock", "-o", str(data), "-p", str(pid))
        run(tool("perf"), *options, "--", "sleep", "0.5")
        out, _ = command("map", pid)
        assert out == f"2 functions in /proc/{pid}/root/tmp/perf-1.map\n"
        assert not Path(f"/tmp/perf-{pid}.map").exists()
        # Only root's perf may go there.
        assert os.geteuid() or perf_symbols(data)["steps"] > 50


def test_map_keeps_the_lines_of_the_process_and_replaces_what_is_wrong(tiny: int) -> None:
    steps, longest = listed(tiny)[0]["functions"]
    path = Path(f"/tmp/perf-{tiny}.map")
    kept = (
        "1000 10 py::main\n",
        "not a line\n",
        f"{longest['address']:x} {longest['size']:x} longest\n",
    )
    wrong = f"{steps['address'] + 16:x} 8 something else\n"
    path.write_text(kept[0] + wrong + kept[1] + kept[2])
    command("map", tiny)
    lines = [text for text in path.read_text().splitlines(True) if text != "\n"]
    assert sorted(lines) == sorted([*kept, f"{steps['address']:x} {steps['size']:x} steps\n"])
    written = path.read_bytes()
    command("map", tiny)
    assert path.read_bytes() == written
    path.unlink()


def test_map_empties_the_file_of_a_dead_process(tiny: int) -> None:
    path = Path(f"/tmp/perf-{tiny}.map")
    path.write_text("1000 10 of_another_program\n")
    os.utime(path, (0, 0))
    command("map", tiny)
    assert [entry.name for entry in read_map(path)] == ["steps", "longest"]
    path.unlink()


def test_map_belongs_to_the_user_of_the_process(tmp_path: Path) -> None:
    """Which for an ordinary user can only be the same one."""
    user = os.geteuid() or NOBODY
    with running("mcjit", *(() if os.geteuid() else ("--nobody",))) as process:
        path = Path(f"/tmp/perf-{process.pid}.map")
        command("map", process.pid)
        status = path.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (user, 0o600)
        path.unlink()
        precious = tmp_path / "precious"
        precious.write_text("precious")
        path.symlink_to(precious)
        assert str(path) in refused("map", process.pid)
        assert precious.read_text() == "precious"


def test_root_without_the_right_to_be_the_user_says_so() -> None:
    with running("mcjit", "--nobody") as process:
        within = (tool("setpriv"), "--bounding-set=-setuid", "--inh-caps=-setuid")
        said = run(*within, *JITLISTEN, "map", str(process.pid), status=1)
    assert said == (
        f"jitlisten map: cannot write as user {NOBODY}: Operation not permitted; run as that user\n"
    )
