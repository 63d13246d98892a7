"""A flame graph: one SVG file that any browser opens, with all it needs inside.

Each frame is a box as wide as its share, below its caller; the colour tells the kind of code. A
script zooms, searches and fits it to the window. Without one, it is a picture with tooltips.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from .calltree import Node, call_tree
from .profile import Profile

__all__ = ["flame_graph"]

# In pixels; the script makes it as wide as the window.
WIDTH, MARGIN = 1200, 10
ROW, TOP, BOTTOM = 18, 84, 10
CHARACTER, TEXT_MARGIN, NARROWEST = 7.25, 4, 3  # the narrowest text has so many characters
LEAST = 0.0001  # of all samples, for a box
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Box(NamedTuple):
    node: Node
    x: float
    """Of the left side, and the width: parts of the whole."""
    width: float
    depth: int


def flame_graph(profile: Profile) -> str:
    """The SVG document."""
    root = call_tree(profile)
    boxes = list(_boxes(root))
    height = TOP + ROW * (1 + max(box.depth for box in boxes)) + BOTTOM
    here = Path(__file__)
    return "".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>\n',
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">\n',
            f"<style>\n{here.with_suffix('.css').read_text('utf-8')}</style>\n",
            f'<text id="title" x="{MARGIN}" y="26">{_text(profile.heading)}</text>\n',
            *_legend(profile),
            f'<foreignObject id="search-box" class="hidden" x="{MARGIN + 640}" y="36"'
            ' width="220" height="26"><input xmlns="http://www.w3.org/1999/xhtml" id="search"'
            ' type="search" placeholder="search" /></foreignObject>\n',
            f'<text id="details" x="{MARGIN}" y="76"></text>\n',
            *(_frame(box, profile) for box in boxes),
            f"<script><![CDATA[\n{here.with_suffix('.js').read_text('utf-8')}]]></script>\n",
            "</svg>\n",
        ]
    )


def _boxes(root: Node) -> Iterator[_Box]:
    """Callers come before what they call, and the hottest of that first."""
    whole = root.weight.total or 1
    waiting = [_Box(root, 0, 1, 0)]
    while waiting:
        box = waiting.pop()
        yield box
        x, below = box.x, []
        for node in box.node.hottest:
            width = node.weight.total / whole
            if width >= LEAST:
                below.append(_Box(node, x, width, box.depth + 1))
            x += width
        waiting += reversed(below)


def _frame(box: _Box, profile: Profile) -> str:
    node = box.node
    frame = node.frame
    kind = frame.kind.name.lower() if frame else "all"
    also = " inlined" if frame and frame.inlined else ""
    also += " interpreter" if frame and frame.is_interpreter else ""
    left = MARGIN + box.x * (WIDTH - 2 * MARGIN)
    width = box.width * (WIDTH - 2 * MARGIN)
    top = TOP + ROW * box.depth
    return (
        f'<g class="frame {kind}{also}" data-name={_attribute(node.name)} data-x="{box.x:.7g}"'
        f' data-width="{box.width:.7g}" data-depth="{box.depth}">'
        f"<title>{_text(_tooltip(node, profile))}</title>"
        f'<rect x="{left:.2f}" y="{top}" width="{width:.2f}" height="{ROW}" rx="2"/>'
        f'<text x="{left + TEXT_MARGIN:.2f}" y="{top + 13}">{_text(_fitted(node.name, width))}'
        "</text></g>\n"
    )


def _tooltip(node: Node, profile: Profile) -> str:
    samples = f"{node.samples:,} samples" if node.samples != 1 else "1 sample"
    amount = f"{node.weight.total / 1e9:.3f} s" if profile.is_time else f"{node.weight.total:,}"
    total = 100 * node.weight.total / profile.weight
    own = 100 * node.weight.self / profile.weight
    lines = [node.name]
    if node.frame:
        kind = node.frame.kind.value + (", inlined" if node.frame.inlined else "")
        lines.append(f"{kind}: {node.frame.file or 'no file known'}")
    lines.append(f"{total:.2f} %, {samples}, {amount}; self {own:.2f} %")
    return "\n".join(lines)


def _fitted(name: str, width: float) -> str:
    """As much of the name as a box has room for."""
    room = int((width - 2 * TEXT_MARGIN) / CHARACTER)
    if room < NARROWEST:
        return ""
    return name if len(name) <= room else name[: room - 1] + "…"


def _legend(profile: Profile) -> Iterator[str]:
    for index, (kind, weight) in enumerate(profile.by_kind().items()):
        x = MARGIN + 155 * index
        share = f"{kind.value} {100 * weight / profile.weight:.1f} %"
        name = kind.name.lower()
        yield f'<rect class="key {name}" x="{x}" y="42" width="14" height="14" rx="2"/>'
        yield f'<text x="{x + 20}" y="53">{share}</text>\n'


def _text(text: str) -> str:
    return escape(NOT_IN_XML.sub("?", text))


def _attribute(text: str) -> str:
    return quoteattr(NOT_IN_XML.sub("?", text))
