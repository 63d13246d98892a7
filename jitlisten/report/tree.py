"""The call tree in the terminal: straight chains stay in line, what splits is indented."""

from __future__ import annotations

from rich.text import Text

from .calltree import Node, call_tree
from .locations import Kind
from .looks import STYLES, base_name, console, kinds, share
from .profile import Profile

__all__ = ["show_tree"]

LEAST = 0.01, 0.05  # of all samples, to be shown: with JIT or Python code, and without
STRAIGHT = 0.95  # of a caller's total: a callee that has it goes on with the chain
RUN = 3  # native functions in a straight chain of more are folded


def show_tree(profile: Profile) -> None:
    """Print it."""
    out = console()
    out.print(Text(profile.heading))
    out.print()
    out.print(kinds(profile))
    out.print(Text("  total     self", "bold"))
    # Depth first, without recursion: chains may be longer than Python's stack.
    root = call_tree(profile)
    view = _View(root, profile.weight)
    waiting = [(root, "", "")]
    while waiting:
        node, first, guide = waiting.pop()
        chain = view.chain(node)
        for index, (shown, label) in enumerate(_rows(chain)):
            line = _figures(shown, profile.weight)
            line.append(guide if index else first, "dim")
            out.print(line.append_text(label), no_wrap=True, overflow="ellipsis")
        callees = view.callees(chain[-1])
        branches = []
        for index, callee in enumerate(callees):
            last = index == len(callees) - 1
            branches.append(
                (callee, guide + ("└ " if last else "├ "), guide + ("  " if last else "│ "))
            )
        waiting += reversed(branches)


class _View:
    """What is shown of a tree."""

    def __init__(self, root: Node, whole: int) -> None:
        self._whole = whole
        self._of_interest: set[Node] = set()
        """Those with JIT or Python functions in or below them."""
        order = [root]
        for node in order:
            order += node.callees.values()
        for node in reversed(order):
            if _is_of_interest(node) or not self._of_interest.isdisjoint(node.callees.values()):
                self._of_interest.add(node)

    def callees(self, node: Node) -> list[Node]:
        return [
            callee
            for callee in node.hottest
            if callee.weight.total >= LEAST[callee not in self._of_interest] * self._whole
        ]

    def chain(self, node: Node) -> list[Node]:
        """The node, what it calls, and so on as long as that does not split."""
        chain = [node]
        while callees := self.callees(chain[-1]):
            if len(callees) > 1 or callees[0].weight.total < STRAIGHT * chain[-1].weight.total:
                break
            chain.append(callees[0])
        return chain


def _rows(chain: list[Node]) -> list[tuple[Node, Text]]:
    """Lines for a chain, in which long runs of native functions are one line."""
    rows: list[tuple[Node, Text]] = []
    start = 0
    while start < len(chain):
        end = start
        while end < len(chain) and _is_native(chain[end]):
            end += 1
        if end - start > RUN:
            rows.append((chain[start], _label(chain[start])))
            rows.append((chain[start + 1], Text(f"… {end - start - 2} native functions", "dim")))
            rows.append((chain[end - 1], _label(chain[end - 1])))
        else:
            end = max(end, start + 1)
            rows += [(node, _label(node)) for node in chain[start:end]]
        start = end
    return rows


def _is_of_interest(node: Node) -> bool:
    frame = node.frame
    return frame is not None and (
        frame.kind is Kind.JIT or (frame.kind is Kind.PYTHON and not frame.is_interpreter)
    )


def _is_native(node: Node) -> bool:
    frame = node.frame
    return frame is not None and (frame.kind is Kind.NATIVE or frame.is_interpreter)


def _label(node: Node) -> Text:
    if node.frame is None:
        return Text(node.name, "bold")
    text = Text(node.name, "" if node.frame.is_interpreter else STYLES[node.frame.kind])
    if node.frame.inlined:
        text.append(" (inlined)", "dim")
    if node.frame.kind is not Kind.KERNEL and node.frame.file:
        text.append(f"  {base_name(node.frame.file)}", "not bold dim")
    return text


def _figures(node: Node, whole: int) -> Text:
    return Text.assemble(
        share(node.weight.total, whole), "  ", share(node.weight.self, whole), "  "
    )
