"""Processes whose descriptors tests read, and what is in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gdbjit
from gdbjit import elf
from gdbjit.library import build

# How a target begins: it answers each line of its standard input.
PRELUDE = """
import ctypes, os, sys
import gdbjit
from gdbjit.layout import CodeDescriptor, CodeEntry
from gdbjit.library import build
from gdbjit import elf
image = build(elf.native()[0].machine)
def say(*words):
    print(*words, flush=True)
def wait():
    sys.stdin.readline()
"""


@contextmanager
def target(script: str, prelude: str = PRELUDE) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `script`."""
    with subprocess.Popen(
        [sys.executable, "-c", prelude + script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(gdbjit.__file__).parent.parent)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def native_image() -> bytes:
    return build(elf.native()[0].machine)


def llvm_descriptor(pid: int | None = None) -> gdbjit.Descriptor:
    (found,) = (d for d in gdbjit.descriptors(pid) if d.library.endswith("/libllvmlite.so"))
    return found


def without_addresses(image: bytes) -> bytes:
    """A 64-bit image as it was before the linker wrote sh_addr."""
    header, form = elf.read_header(image)
    data = bytearray(image)
    for index in range(header.shnum):
        at = header.shoff + index * form.section.size + 16
        data[at : at + 8] = bytes(8)
    return bytes(data)
