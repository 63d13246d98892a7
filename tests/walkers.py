"""Both walkers over the stack of an engine's code."""

from collections.abc import Callable

import pytest
from jit import Program

import listeners
from listeners.safepoints import Anchor, NativeWalker, Stacks, walk

FIRST = 0x7000_0000_0000
MOVED = 0x10_0000


class Runtime:
    """An engine, its safepoints, and both walkers over them."""

    def __init__(self, linker: str, opt: int = 2) -> None:
        self.program = Program(linker, opt=opt)
        self.safepoints = listeners.Safepoints()
        listeners.attach(self.program.engine, self.safepoints)
        self.native = NativeWalker(self.safepoints)
        self.stacks = Stacks()

    def entry(self, function: Callable[..., object], *types: str) -> int:
        return self.stacks.entry(function, *types).address

    def roots(self, anchors: list[Anchor] | None = None) -> list[tuple[int, int]]:
        """What both walkers say, which is the same."""
        anchors = self.stacks.anchors() if anchors is None else anchors
        python = [root for frame in walk(self.safepoints, anchors) for root in frame.roots]
        assert self.native.roots(anchors) == python
        return python


@pytest.fixture
def runtime(linker: str) -> Runtime:
    return Runtime(linker)
