"""llvmlite's engines are heard from its import on, whether that comes before ours or after.

So `import listeners` need not load llvmlite, some 180 MB: programs that have other engines, and
those that look into other processes, do without.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["hear_llvmlite"]

logger = logging.getLogger("listeners")

BINDING = "llvmlite.binding"


def hear_llvmlite() -> None:
    """Hear llvmlite's engines: from now on, or as soon as somebody has imported llvmlite."""
    if BINDING in sys.modules:
        import_module(".llvmlite", __package__)
    else:
        sys.meta_path.insert(0, _Waiting())


class _Waiting:
    """A finder that waits for the import of `llvmlite.binding`, and leaves then."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != BINDING or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec:
                if spec.loader:
                    spec.loader = _Watched(spec.loader, self)
                return spec
        return None


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
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self._waiting]
        try:
            import_module(".llvmlite", __package__)
        except Exception:  # is not to be an error of llvmlite's import
            logger.exception("llvmlite's engines cannot be heard")
