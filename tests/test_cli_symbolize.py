"""`jitlisten symbolize`: addresses, and the log of a crash."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from outside import command, functions, listed, running
from tools import JITLISTEN, run

pytestmark = pytest.mark.tools


def test_symbolize_tells_function_offset_and_line(tiny: int) -> None:
    steps = listed(tiny)[0]["functions"][0]
    address = steps["address"]
    words = f"{address + 16:#x}", f"{address:x}", "0x1000", f"{address:x}"
    first, second, third, again = command("symbolize", tiny, *words)[0].splitlines()
    assert re.fullmatch(rf"{address + 16:#x} steps\+0x10 at /.*/collatz\.tiny:5", first)
    assert re.fullmatch(rf"{address:x} steps\+0x0 at /.*/collatz\.tiny:3", second)
    assert third == "0x1000 ??"
    assert again == second


def test_symbolize_explains_a_log_and_keeps_its_text(tiny: int) -> None:
    address = listed(tiny)[0]["functions"][0]["address"]
    log = f"\tpc {address:#018x}: crash\nfirst 0x400000 [<{address:x}>] last, no end"
    out, _ = command("symbolize", tiny, text=log)
    assert re.sub(r" \(steps\+0x0 at /.*?collatz\.tiny:3\)", "", out) == log
    assert out.count("(steps+0x0 at ") == 2


def test_a_log_of_any_encoding_is_explained(tiny: int) -> None:
    address = listed(tiny)[0]["functions"][0]["address"]
    done = subprocess.run(
        [*JITLISTEN, "symbolize", str(tiny)],
        input=b"\xff\xfe %x" % address,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(b"\xff\xfe %x (steps+0x0" % address)
    assert run("sh", "-c", f"{shlex.join(JITLISTEN)} symbolize {tiny} <&-") == ""


def test_symbolize_knows_what_came_while_it_reads(tmp_path: Path) -> None:
    with running("churn", "1") as process:
        reading = subprocess.Popen(
            [*JITLISTEN, "symbolize", str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with reading:
            assert reading.stdin
            assert reading.stdout
            time.sleep(1.5)
            for _ in range(20):
                newest = functions(listed(process.pid)).popitem()
                time.sleep(1.1)
                reading.stdin.write(f"{newest[1]['address']:#x}\n")
                reading.stdin.flush()
                if "pass_" in reading.stdout.readline():
                    break
            else:
                pytest.fail("nothing new was found")
            reading.stdin.close()
