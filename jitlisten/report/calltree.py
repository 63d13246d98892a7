"""Who called whom: the stacks of a profile as one tree of functions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .locations import Frame
from .profile import Profile, Weight

__all__ = ["Node", "call_tree"]


@dataclass(eq=False)
class Node:
    """A function, called in one way."""

    frame: Frame | None
    """None for all of the recording, and for a process."""
    name: str
    weight: Weight = field(default_factory=Weight)
    samples: int = 0
    """Their number, with those of what it called."""
    callees: dict[Frame | int, Node] = field(default_factory=dict)
    """Processes, in the root of several, by their pid."""

    @property
    def hottest(self) -> list[Node]:
        return sorted(self.callees.values(), key=lambda node: (-node.weight.total, node.name))


def call_tree(profile: Profile) -> Node:
    """The tree of a profile. Its root is the process; of several processes, what is above them."""
    root = Node(None, "all")
    own: Counter[tuple[int, int]] = Counter()
    samples: Counter[tuple[int, int]] = Counter()
    for sample in profile.samples:
        key = sample.thread.pid, sample.stack
        own[key] += sample.weight
        samples[key] += 1
    roots = dict.fromkeys(profile.processes, root)
    for pid, name in profile.processes.items():
        if len(roots) == 1:
            root.name = name
        else:
            roots[pid] = root.callees[pid] = Node(None, f"{name} ({pid})")

    nodes: dict[tuple[int, int], Node] = {(pid, -1): node for pid, node in roots.items()}
    for key, weight in own.items():
        node = _node(profile, nodes, *key)
        node.weight.self += weight
        node.weight.samples += samples[key]
    _sum_up(root)
    return root


def _node(profile: Profile, nodes: dict[tuple[int, int], Node], pid: int, stack: int) -> Node:
    missing = []
    while (pid, stack) not in nodes:
        missing.append(stack)
        stack = profile.stacks[stack][0]
    node = nodes[pid, stack]
    for stack in reversed(missing):
        frame = profile.stacks[stack][1].frame
        if frame not in node.callees:
            node.callees[frame] = Node(frame, frame.name)
        node = nodes[pid, stack] = node.callees[frame]
    return node


def _sum_up(root: Node) -> None:
    order = [root]
    for node in order:
        order += node.callees.values()
    for node in reversed(order):
        node.weight.total = node.weight.self + sum(
            callee.weight.total for callee in node.callees.values()
        )
        node.samples = node.weight.samples + sum(callee.samples for callee in node.callees.values())
