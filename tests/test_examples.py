"""Each example prints what its head comment says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def said_output(program: Path) -> tuple[str, str]:
    """The first command of the head comment, and what it says that this prints; … is anything."""
    session = re.search(r"^    \$ (.*)\n((?:    (?!\$).*\n)+)", program.read_text(), re.MULTILINE)
    assert session, f"{program} shows no session in its head comment"
    return session[1], re.sub(r"^    ", "", session[2], flags=re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_it_prints_what_it_says(program):
    command, expected = said_output(program)
    command = command.replace("python ", f"{sys.executable} ")
    done = subprocess.run(
        command, shell=True, cwd=EXAMPLES.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    pattern = re.escape(expected).replace("…", ".*")
    assert re.fullmatch(pattern, done.stdout)
