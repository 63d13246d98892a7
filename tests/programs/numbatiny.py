"""Sources of the tiny language are Python, too: Numba compiles them."""

from pathlib import Path
from types import FunctionType

import numba


def compiled(source: Path) -> dict[str, object]:
    """The functions of a source by name; it is run as a main program is."""
    names = {"__name__": "__main__"}
    exec(compile(source.read_text(), str(source), "exec"), names)
    for name, function in names.items():
        if isinstance(function, FunctionType):
            # Without debug=True, LLVM leaves out the call frame information of what cannot raise.
            names[name] = numba.njit(debug=True)(function)
    return names
