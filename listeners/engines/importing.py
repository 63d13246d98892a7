"""Something to do as soon as a module has been imported, by whomever.

`jitlisten` runs this file by its path at the start of programs that may never need the rest of us:
so it stands alone, and imports next to nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # without the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any
else:
    Loader = object

__all__ = ["after_import"]


def after_import(name: str, action: Callable[[], None]) -> None:
    """Do `action` before the import of the module `name` returns, or now if it has been imported.

    An import that fails does not count. An error of `action` is one of the import.
    """
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Waiting(name, action))


class _Waiting:
    """A finder that waits for the import of a module, and leaves then."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec:
                if spec.loader:
                    spec.loader = _Watched(spec.loader, self)
                return spec
        return None

    def executed(self) -> None:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        self._action()


class _Watched(Loader):
    """Stands in for the module's loader until it is asked to execute the module."""

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
        self._loader.exec_module(module)
        self._waiting.executed()
