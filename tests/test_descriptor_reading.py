"""What reading another process takes, and that no image is a mixture of two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from denied import deny
from targets import line, target

import gdbjit
from gdbjit import process as reading

# An image ends in one number again and again. New ones take the place of earlier ones.
CHANGING = """
import itertools
def make(number):
    return gdbjit.register(image + number.to_bytes(8, "little") * 4000)
kept = [make(0) for _ in range(50)]
passing = []
say("ready")
for number in itertools.count(1):
    passing.append(make(number))
    if len(passing) > 20:
        passing.pop(number % 20).unregister()
"""


def test_an_image_is_never_a_mixture_though_entries_and_addresses_are_used_again() -> None:
    with target(CHANGING) as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        end = time.monotonic() + 3
        passing: set[bytes] = set()
        whole = 0
        while time.monotonic() < end:
            try:
                images = [image[-32_000:] for _, image in descriptor.images()]
            except gdbjit.GDBJITError as error:  # a busy machine may leave it no quiet moment
                assert "faster than it can be read" in str(error)
                continue
            whole += 1
            assert all(image == image[:8] * 4000 for image in images)
            assert images.count(bytes(32_000)) == 50
            passing.update(image[:8] for image in images)
        assert whole > 5
        assert len(passing) > 50


def test_an_engine_that_does_not_point_back_is_read_all_the_same() -> None:
    script = """
kept = [gdbjit.register(image + bytes([n])) for n in range(20)]
for registration in kept:
    CodeEntry.from_address(registration.entry).prev = 0
say("ready"); wait()
"""
    with target(script) as process:
        assert line(process) == "ready"
        (descriptor,) = gdbjit.descriptors(process.pid)
        assert [image[-1] for _, image in descriptor.images()] == list(range(20))


def test_a_sandbox_without_process_vm_readv_reads_one_by_one() -> None:
    script = """
kept = [gdbjit.register(image + bytes([n % 256])) for n in range(3000)]
say("ready"); wait()
"""
    reader = """
import sys, gdbjit
(descriptor,) = gdbjit.descriptors(int(sys.argv[1]))
print(*(image[-1] for _, image in descriptor.images()))
"""
    with target(script) as process:
        assert line(process) == "ready"
        done = subprocess.run(
            [sys.executable, "-c", reader, str(process.pid)],
            env={**os.environ, "PYTHONPATH": str(Path(gdbjit.__file__).parent.parent)},
            preexec_fn=deny("process_vm_readv"),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    assert done.stdout.split() == [str(n % 256) for n in range(3000)]


def test_an_object_takes_few_pieces_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes the lock that the process wants when it maps memory."""
    script = """
kept = [gdbjit.register(image) for _ in range(1000)]
say("ready"); wait()
"""
    pieces = 0

    def counted(read: Callable[..., bytes], count: Callable[..., int]) -> Callable[..., bytes]:
        def counting(*arguments: Any) -> bytes:
            nonlocal pieces
            pieces += count(*arguments)
            return read(*arguments)

        return counting

    def ranges(_pid: int, ranges: Sequence[tuple[int, int]]) -> int:
        return len(ranges)

    with target(script) as process:
        assert line(process) == "ready"
        os.kill(process.pid, signal.SIGSTOP)
        (descriptor,) = gdbjit.descriptors(process.pid)
        monkeypatch.setattr(reading, "_read_vm", counted(reading._read_vm, ranges))
        monkeypatch.setattr(os, "pread", counted(os.pread, lambda *_: 1))
        assert sum(1 for _ in descriptor.images()) == 1000
    # One by one along the list; and together: once more, and twice with their images.
    assert pieces < 4 * 1000 + 100
