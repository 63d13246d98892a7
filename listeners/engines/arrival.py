"""llvmlite's engines are heard from its import on, whether that comes before ours or after.

So `import listeners` need not load llvmlite, some 180 MB: programs that have other engines, and
those that look into other processes, do without.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module

from .importing import after_import

__all__ = ["hear_llvmlite"]

logger = logging.getLogger("listeners")

BINDING = "llvmlite.binding"


def hear_llvmlite() -> None:
    """Hear llvmlite's engines: from now on, or as soon as somebody has imported llvmlite."""
    if BINDING in sys.modules:
        _hear()
    else:
        after_import(BINDING, _try_to_hear)


def _hear() -> None:
    import_module(".llvmlite", __package__)


def _try_to_hear() -> None:
    try:
        _hear()
    except Exception:  # is not to be an error of llvmlite's import
        logger.exception("llvmlite's engines cannot be heard")
