"""The house in docs/design.md is the one there is."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("listeners", "gdbjit", "perfmap", "jitlisten")
# What they are for goes without saying; sitecustomize is a part of startup.py.
UNNAMED = {"__init__.py", "__main__.py", "errors.py", "sitecustomize.py"}


def test_every_module_has_its_line_and_every_line_its_module() -> None:
    house = (ROOT / "docs/design.md").read_text().split("```")[1]
    _, *parts = re.split(r"^(\w+)/", house, flags=re.MULTILINE)
    drawn = {
        name: set(re.findall(r"\w+\.py", part))
        for name, part in zip(parts[::2], parts[1::2], strict=True)
    }
    assert drawn == {
        package: {path.name for path in (ROOT / package).rglob("*.py")} - UNNAMED
        for package in PACKAGES
    }
