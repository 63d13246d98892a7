# What a Python runs at its start when `jitlisten run` has put this directory into PYTHONPATH.
#
# Any Python may come here, of another environment or too old for the rest, and it may have a
# sitecustomize module of its own. So this leaves no trace but what `startup` does, and hands over.

# ruff: noqa: PTH120, UP036

import os
import sys

_here = os.path.dirname(__file__)
sys.path[:] = [entry for entry in sys.path if entry != _here]

if sys.version_info >= (3, 10):
    # Last, and for this import only: what else is installed there is for another Python.
    sys.path.append(os.path.dirname(os.path.dirname(_here)))
    try:
        from jitlisten.startup import start
    except ImportError:  # half uninstalled
        pass
    else:
        start()
    finally:
        sys.path.pop()

# The next one on sys.path takes our place; where there is none, the error tells `site` so.
del sys.modules["sitecustomize"]
__import__("sitecustomize")
