"""`jitlisten report --svg`: the flame graph, in a browser."""

from __future__ import annotations

import html
import json
import os
import re
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
from recordings import Record, report, weights
from reported import NAMES
from tools import ASCII, JITLISTEN, run, tool

pytestmark = pytest.mark.tools

COLOURS = {"jit": (255, 159, 64), "native": (205, 211, 218), "kernel": (201, 160, 220)}
MEASURE = """
const boxes = frames.map(([rect, text, frame]) => {
  const {x, y, width, height} = rect.getBoundingClientRect();
  return {
    name: frame.dataset.name, classes: [...frame.classList], x, y, width, height,
    text: text.textContent, textWidth: text.getBoundingClientRect().width,
    title: frame.querySelector("title").textContent, opacity: getComputedStyle(frame).opacity,
  };
});
document.getElementById("title").setAttribute("data-boxes", JSON.stringify(boxes));
"""


def browse(*options: str, directory: Path) -> str:
    return run(
        *(tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--window-size=900,560", f"--user-data-dir={directory / 'browser'}", *options),
        env={**os.environ, "HOME": str(directory)},
    )


@cache
def boxes(svg: Path, action: str = "") -> list[dict[str, Any]]:
    """The boxes that a browser shows, after an `action` in its language."""
    frames = 'const frames = [...document.querySelectorAll(".frame:not(.hidden)")]'
    frames += '.map((frame) => [frame.querySelector("rect"), frame.querySelector("text"), frame]);'
    script = f"<script><![CDATA[{{{action};{frames}{MEASURE}}}]]></script></svg>"
    measured = svg.with_name("measured.svg")
    measured.write_text(svg.read_text().replace("</svg>", script))
    dom = browse("--dump-dom", measured.as_uri(), directory=svg.parent)
    (found,) = re.findall(r'data-boxes="([^"]*)"', dom)
    return json.loads(html.unescape(found))


def named(boxes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(box for box in boxes if box["name"] == name)


def pixels(png: Path) -> numpy.ndarray:
    """Rows of pixels, each red, green, blue (PNG specification; 9.2 has the filters)."""
    data = png.read_bytes()
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    packed, offset = b"", 8
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        if data[offset + 4 : offset + 8] == b"IDAT":
            packed += data[offset + 8 : offset + 8 + length]
        offset += length + 12
    raw = zlib.decompress(packed)
    rows = [bytearray(size * (width + 1))]  # with a pixel of zeros at the left
    for start in range(0, len(raw), size * width + 1):
        row = bytearray(size) + raw[start + 1 : start + 1 + size * width]
        above = rows[-1]
        for i in range(size, len(row)) if raw[start] else ():
            left, up, corner = row[i - size], above[i], above[i - size]
            if raw[start] == 4:
                far = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
                guess = (left, up, corner)[far.index(min(far))]
            else:
                guess = (0, left, up, (left + up) // 2)[raw[start]]
            row[i] = (row[i] + guess) & 0xFF
        rows.append(row)
    image = numpy.frombuffer(b"".join(rows[1:]), numpy.uint8).reshape(height, width + 1, size)
    return image[:, 1:, :3].astype(int)


@pytest.fixture(scope="session")
def graph(record: Record, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recording, and its flame graph."""
    data = record("images", "collatz", "mcjit", graph="dwarf,16384")
    svg = tmp_path_factory.mktemp("graph") / "graph.svg"
    assert report(data, "--svg", str(svg)) == ""
    return data, svg


def test_a_browser_shows_the_hot_function_in_the_colour_of_jit_code_and_its_name(graph):
    data, svg = graph
    shown = boxes(svg)
    steps, longest, root = (named(shown, name) for name in ("steps", "longest", "python"))
    share = weights(data)[1] / weights(data)[0]
    # The kernel's time in `steps` is part of its width.
    assert steps["width"] / root["width"] == pytest.approx(share, abs=0.05)
    assert steps["y"] == longest["y"] + longest["height"]
    assert longest["x"] - 1 <= steps["x"] < longest["x"] + longest["width"]
    assert steps["text"] == "steps"
    assert re.fullmatch(r"steps\nJIT: .*collatz.tiny\n[\d.]+ %, [\d,]+ samples, .*", steps["title"])

    png = svg.with_suffix(".png")
    browse(f"--screenshot={png}", svg.as_uri(), directory=svg.parent)
    image = pixels(png)

    def part(box: dict[str, Any], start: float, end: float) -> numpy.ndarray:
        left, top = box["x"] + 2, box["y"] + 2
        rows = slice(round(top), round(top + box["height"] - 4))
        return image[rows, round(left + start) : round(left + end)].reshape(-1, 3)

    for box in (steps, longest, named(shown, "__libc_start_call_main")):
        kind = box["classes"][1]
        behind_text = part(box, box["textWidth"] + 10, box["width"] - 6)
        assert (behind_text == COLOURS[kind]).all()
        letters = (part(box, 0, box["textWidth"] + 4).sum(axis=1) < 200).sum()
        assert letters > 5 * len(box["text"])
    keys = re.findall(r'<rect class="key (\w+)" x="(\d+)" y="(\d+)"', svg.read_text())
    found = {kind: image[int(y) + 7, int(x) + 7] for kind, x, y in keys}
    assert all((found[kind] == colour).all() for kind, colour in COLOURS.items())


def test_every_text_fits_into_its_box(graph):
    shown = boxes(graph[1])
    texts = [box for box in shown if box["text"]]
    assert len(texts) > 20
    assert all(box["textWidth"] <= box["width"] for box in texts)
    assert {box["text"] == box["name"] or box["text"][-1] == "…" for box in texts} == {True}


def test_a_click_zooms_and_the_root_leads_back(graph):
    svg = graph[1]
    click = "document.querySelector('{}').dispatchEvent(new MouseEvent('click'));"
    zoom, leave = click.format("[data-name=longest]"), click.format(".frame")
    zoomed = boxes(svg, zoom)
    whole = named(zoomed, "python")["width"]
    assert named(zoomed, "longest")["width"] == pytest.approx(whole)
    assert named(zoomed, "steps")["width"] > 0.9 * whole
    assert "above" in named(zoomed, "_start")["classes"]
    assert len(zoomed) < len(boxes(svg)) / 2
    assert len(boxes(svg, zoom + leave)) == len(boxes(svg))


def test_search_leaves_what_matches(graph):
    svg = graph[1]
    search = "const box = document.getElementById('search'); box.value = 'STEPS';"
    found = boxes(svg, search + "box.dispatchEvent(new Event('input'))")
    assert {box["name"] for box in found if box["opacity"] == "1"} == {"steps"}


def test_the_file_is_the_same_where_the_encoding_is_another_one(graph, tmp_path):
    data, svg = graph
    command = (*JITLISTEN, "report", "--svg", str(tmp_path / "graph.svg"), str(data))
    assert run(*command, env={**os.environ, **ASCII}) == ""
    assert (tmp_path / "graph.svg").read_bytes() == svg.read_bytes()


def test_the_file_needs_nothing_else_and_holds_any_name(record, tmp_path):
    svg = tmp_path / "graph.svg"
    report(record("images", "names"), "--svg", str(svg))
    text = svg.read_text()
    links = set(re.findall(r"\w+://[^\"'\s]*", text))
    assert links == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
    assert not re.search(r"@import|url\(|href|\bsrc=", text)
    frames = ElementTree.fromstring(text).findall(".//*[@data-name]")
    assert {name.replace("\n", "?") for name in NAMES} <= {f.get("data-name") for f in frames}
