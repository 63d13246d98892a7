"""A command of ours under another, and one listener beside another of its kind."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path

import pytest
from jit import Program, source_ir
from tools import JITLISTEN

import listeners


@pytest.mark.tools
@pytest.mark.parametrize("option", ["--images", "--jitdump", "--perf-map", "--gdb-all"])
def test_doctor_finds_the_same_where_listeners_are_asked_for(option: str, tmp_path: Path) -> None:
    def checks(*before: str) -> dict[str, str]:
        done = subprocess.run(
            [*before, *JITLISTEN, "doctor", "--json"],
            env={**os.environ, "JITDUMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        found = json.loads(done.stdout)["checks"]
        return {check["name"]: check["state"] for check in found}

    assert checks(*JITLISTEN, "run", option, "--") == checks()
    assert list(tmp_path.rglob("*.so")) == list(tmp_path.rglob("*.dump")) == []


@pytest.mark.tools
def test_record_chooses_the_same_where_listeners_are_asked_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [*JITLISTEN, "run", "--images", *JITLISTEN, "record", "-o", "data", "--", "true"],
        env={**os.environ, "JITDUMPDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "jitlisten record: the profile is data: jitlisten report data\n"


def test_a_second_code_images_says_that_one_is_enough(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = listeners.CodeImages(tmp_path / "first")
    second = listeners.CodeImages(tmp_path / "second")
    programs = [Program("rtdyld"), Program("rtdyld")]
    for program in programs:
        listeners.attach(program.engine, first, second)
        program.load(source_ir(), "steps")
    assert first.problems == ()
    (problem,) = second.problems
    assert f"mapped from a file in '{tmp_path}/first' already: by another CodeImages" in problem
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert os.listdir(tmp_path / "second") == []
    for program in programs:
        program.unload()
