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
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any
else:
    Loader = object

__all__ = ["LISTENERS", "TRACE_VARIABLE", "VARIABLE", "start"]

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

BINDING = "llvmlite.binding"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The directory that our packages are installed in."""

_started = False


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
    elif BINDING in sys.modules:
        _attach(names)
    elif names:
        sys.meta_path.insert(0, _Waiting(names))


class _Waiting:
    """A finder that waits until `llvmlite.binding` has been imported, and leaves then.

    A program that imports our `listeners` does that in the middle of it: both have to be done.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.under_way = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in (BINDING, "listeners") or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec:
                if spec.loader and (name == BINDING or _is_ours(spec)):
                    spec.loader = _Watched(spec.loader, self)
                return spec
        return None

    def executed(self) -> None:
        if not self.under_way and BINDING in sys.modules:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            _attach(self._names)


class _Watched(Loader):
    """Stands in for a module's loader until it is asked to execute the module."""

    def __init__(self, loader: Loader, waiting: _Waiting) -> None:
        self._loader = loader
        self._waiting = waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__:
            module.__spec__.loader = self._loader
        self._waiting.under_way += 1
        try:
            self._loader.exec_module(module)
        finally:
            self._waiting.under_way -= 1
        self._waiting.executed()


def _attach(names: Sequence[str]) -> None:
    try:
        listeners = _import_listeners()
        chosen = (LISTENERS[name] for name in names)
        listeners.attach(None, *(getattr(listeners, kind)(**options) for kind, options in chosen))
    except Exception as error:
        _complain(f"{type(error).__name__}: {error}")


def _import_listeners() -> Any:
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
