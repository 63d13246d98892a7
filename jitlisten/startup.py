"""What a Python does at its start when JITLISTEN is set: attach to every llvmlite engine.

JITLISTEN holds names of listeners, as in `JITLISTEN=gdb,perf-map`; the file of `trace` is in a
variable of its own, for it may have any name. `jitlisten run` sets them; they may as well be set by
hand where jit-listeners is installed, since `jitlisten.pth` in site-packages comes here then.

Nothing of ours is loaded, and nothing but a finder is left behind, until the program imports
`llvmlite.binding`: listeners are attached before that import returns, and so to every engine.

A program cannot fail because of this. What goes wrong is one line on stderr. Python's option -S
leaves out both ways to here, -I and -E leave out PYTHONPATH, which is the way from `jitlisten run`
to a Python that does not have jit-listeners.
"""

# The standard library's larger modules, pathlib among them, are not for every Python's start.
# ruff: noqa: PTH100, PTH110, PTH118, PTH120

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["LISTENERS", "TRACE_VARIABLE", "VARIABLE", "cancel", "import_listeners", "start"]

VARIABLE = "JITLISTEN"
TRACE_VARIABLE = "JITLISTEN_TRACE"
LISTENERS: dict[str, tuple[str, dict[str, bool | str]]] = {
    "gdb": ("GDBRegistration", {}),
    "gdb-all": ("GDBRegistration", {"all": True}),
    "perf-map": ("PerfMap", {}),
    "images": ("CodeImages", {}),
    "jitdump": ("JITDump", {}),
    "trace": ("Trace", {"path": os.environ.get(TRACE_VARIABLE, "")}),
}
"""By name in JITLISTEN: a class of `listeners`, and its arguments."""

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The directory that our packages are installed in."""

_started = False
_wanted: list[str] = []


def start() -> None:
    """Attach the listeners that JITLISTEN names as soon as the program has imported llvmlite.

    Again: nothing happens. In a virtual environment Python reads .pth files twice (before 3.13),
    and after them comes `sitecustomize`.
    """
    global _started
    if _started:
        return
    _started = True
    names = os.environ.get(VARIABLE, "").replace(",", " ").split()
    unknown = [name for name in names if name not in LISTENERS]
    if unknown:
        _complain(f"{VARIABLE} names {', '.join(unknown)}; there are {', '.join(LISTENERS)}")
    elif "trace" in names and not os.environ.get(TRACE_VARIABLE):
        _complain(f"{VARIABLE} names trace: set {TRACE_VARIABLE} to the path of its file")
    elif names:
        try:
            _wanted.extend(names)
            _after_import("llvmlite.binding", lambda: _attach(_wanted))
        except OSError as error:  # half uninstalled
            _complain(f"{error}")


def cancel() -> None:
    """Attach nothing after all: this is a command of ours, which JITLISTEN is not meant for."""
    _wanted.clear()


def _after_import(name: str, action: Callable[[], None]) -> None:
    """That of `listeners.engines.importing`, from a file that stands alone."""
    from importlib.machinery import SourceFileLoader

    path = os.path.join(ROOT, "listeners", "engines", "importing.py")
    module = type(sys)("jitlisten.importing")
    SourceFileLoader(module.__name__, path).exec_module(module)
    module.after_import(name, action)


def _attach(names: Sequence[str]) -> None:
    if not names:
        return
    try:
        listeners = import_listeners()
        chosen = (LISTENERS[name] for name in names)
        listeners.attach(None, *(getattr(listeners, kind)(**options) for kind, options in chosen))
    except Exception as error:  # is not to be an error of the program
        _complain(f"{type(error).__name__}: {error}")


def import_listeners() -> Any:
    """Our package, whether or not the program's Python has it, or has another of that name."""
    from importlib import import_module, util

    sys.meta_path.append(_Beside())
    spec = util.find_spec("listeners")
    if spec and _is_ours(spec):
        return import_module("listeners")
    # The name is the program's, which may import its own module later.
    path = os.path.join(ROOT, "listeners", "__init__.py")
    spec = util.spec_from_file_location("jitlisten.listeners", path)
    assert spec
    assert spec.loader
    sys.modules[spec.name] = module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_ours(spec: ModuleSpec) -> bool:
    """Whether a package called `listeners` is this project's."""
    places = spec.submodule_search_locations or ()
    return any(os.path.exists(os.path.join(place, "engines", "llvmlite.py")) for place in places)


class _Beside:
    """A finder of our packages alone, for a Python that has no others of their names."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in ("listeners", "gdbjit", "perfmap"):
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [ROOT], target)


def _complain(problem: str) -> None:
    from contextlib import suppress

    line = " ".join(problem.split())
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # it may be closed
            print(f"jitlisten: nothing is attached: {line}", file=sys.stderr)
