"""The house in docs/design.md is the one there is."""

import ast
import re
from collections.abc import Iterator
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


KNOWN = {  # what a package may import of ours
    "gdbjit": ("gdbjit",),
    "perfmap": ("perfmap",),
    "listeners": ("listeners", "gdbjit", "perfmap"),
    "jitlisten": PACKAGES,
}


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, in full."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module)) if node.module else ".".join(base)
            found = [module, *(f"{module}.{name.name}" for name in node.names)]
        else:
            continue
        yield from (name for name in found if name.partition(".")[0] in PACKAGES)


def test_arrows_between_packages_go_one_way():
    for package, known in KNOWN.items():
        for path in (ROOT / package).rglob("*.py"):
            assert {name.partition(".")[0] for name in imports(path)} <= {*known}, path


def test_engines_and_listeners_do_not_know_each_other():
    engines = ROOT / "listeners/engines"
    told = {"gdb", "perf", "codeimages", "jitdump", "trace", "safepoints"}
    for path in (ROOT / "listeners").rglob("*.py"):
        inside = {name.split(".")[1] for name in imports(path) if name.startswith("listeners.")}
        if engines in path.parents:
            assert not inside & told, path
        elif path.name != "attachment.py":
            assert "engines" not in inside, path
