"""Registering images in this process, beside LLVM, other threads and forked children."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from targets import llvm_descriptor, native_image

import gdbjit
from gdbjit.layout import NOACTION, CodeDescriptor, CodeEntry

pytestmark = pytest.mark.usefixtures("settled")

IMAGE = native_image()


def engine(name: str) -> llvm.ExecutionEngine:
    """An engine of LLVM's with one object, which LLVM has registered."""
    module = llvm.parse_assembly(f"define i32 @{name}() {{ ret i32 1 }}")
    machine = llvm.Target.from_default_triple().create_target_machine()
    loaded = llvm.create_mcjit_compiler(module, machine)
    loaded.finalize_object()
    return loaded


def addresses(descriptor: gdbjit.Descriptor) -> list[int]:
    return [entry.address for entry in descriptor.entries()]


def check_links(descriptor: gdbjit.Descriptor) -> None:
    """The list is whole in both directions."""
    previous, address = 0, CodeDescriptor.from_address(descriptor.address).first
    while address:
        entry = CodeEntry.from_address(address)
        assert entry.prev == previous
        previous, address = address, entry.next


def in_child(check: Callable[[], None]) -> int | None:
    """Run `check` in a forked child; its status."""
    child = multiprocessing.get_context("fork").Process(target=check)
    child.start()
    child.join(60)
    child.kill()
    child.join()
    return child.exitcode


@pytest.fixture
def descriptor() -> Iterator[gdbjit.Descriptor]:
    found = gdbjit.own_descriptor()
    before = found.entries()
    yield found
    assert found.entries() == before
    check_links(found)


def test_a_registered_image_is_in_the_list_until_it_is_unregistered(
    descriptor: gdbjit.Descriptor,
) -> None:
    registration = gdbjit.register(IMAGE, descriptor)
    assert registration.descriptor is descriptor
    entry = descriptor.entries()[-1]
    assert entry.address == registration.entry
    assert entry.symfile == IMAGE
    assert gdbjit.is_registered(registration.entry)
    registration.unregister()
    assert registration.entry not in addresses(descriptor)
    assert not gdbjit.is_registered(registration.entry)


def test_unregistering_again_does_nothing(descriptor: gdbjit.Descriptor) -> None:
    registration = gdbjit.register(IMAGE, descriptor)
    registration.unregister()
    other = gdbjit.register(IMAGE, descriptor)  # malloc may give the same address
    registration.unregister()
    assert other.entry in addresses(descriptor)
    other.unregister()


def test_a_block_unregisters_at_its_end(descriptor: gdbjit.Descriptor) -> None:
    with gdbjit.register(IMAGE, descriptor) as registration:
        assert registration.entry in addresses(descriptor)
    assert registration.entry not in addresses(descriptor)


def test_a_dropped_registration_stays(descriptor: gdbjit.Descriptor) -> None:
    entry = gdbjit.register(IMAGE, descriptor).entry
    assert entry in addresses(descriptor)
    gdbjit.Registration(entry, descriptor).unregister()


def test_the_image_is_a_copy(descriptor: gdbjit.Descriptor) -> None:
    image = bytearray(IMAGE)
    with gdbjit.register(image, descriptor):  # type: ignore[arg-type]
        image[:] = bytes(len(image))
        assert descriptor.entries()[-1].symfile == IMAGE


def test_the_descriptor_does_not_point_to_freed_memory(descriptor: gdbjit.Descriptor) -> None:
    words = CodeDescriptor.from_address(descriptor.address)
    with gdbjit.register(IMAGE, descriptor):
        assert (words.action, words.relevant) == (NOACTION, 0)
    assert (words.action, words.relevant) == (NOACTION, 0)


def test_entries_are_unregistered_in_any_order(descriptor: gdbjit.Descriptor) -> None:
    registrations = [gdbjit.register(IMAGE, descriptor) for _ in range(5)]
    for index in (2, 0, 4, 1, 3):
        registrations[index].unregister()
        check_links(descriptor)


def test_the_first_descriptor_in_load_order_is_taken() -> None:
    with gdbjit.register(IMAGE) as registration:
        assert registration.descriptor == gdbjit.descriptors()[0]


def test_the_descriptor_of_another_process_is_refused() -> None:
    script = f"import ctypes; ctypes.CDLL({gdbjit.own_descriptor().library!r}); print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", script + "; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (other,) = gdbjit.descriptors(process.pid)
        with pytest.raises(gdbjit.GDBJITError, match="can only be read"):
            gdbjit.register(IMAGE, other)
        process.kill()


def test_an_entry_that_somebody_cut_out_is_left_alone(descriptor: gdbjit.Descriptor) -> None:
    words = CodeDescriptor.from_address(descriptor.address)
    first = words.first
    registration = gdbjit.register(IMAGE, descriptor)
    words.first = first
    with pytest.raises(gdbjit.GDBJITError, match="share_lock"):
        registration.unregister()
    words.first = registration.entry
    registration.unregister()


# Beside LLVM


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("ours_goes_first", [True, False])
def test_beside_entries_of_llvm(ours_first: bool, ours_goes_first: bool) -> None:
    found = llvm_descriptor()
    before = addresses(found)
    tag = f"{ours_first}_{ours_goes_first}"
    outer = engine(f"outer_{tag}")
    if ours_first:
        ours, theirs = gdbjit.register(IMAGE, found), engine(f"inner_{tag}")
    else:
        theirs = engine(f"inner_{tag}")
        ours = gdbjit.register(IMAGE, found)
    check_links(found)
    assert len(addresses(found)) == len(before) + 3
    if ours_goes_first:
        ours.unregister()
        check_links(found)
        theirs.close()
    else:
        theirs.close()
        check_links(found)
        ours.unregister()
    check_links(found)
    assert len(addresses(found)) == len(before) + 1
    outer.close()
    assert addresses(found) == before


def test_two_thousand_interleaved_loads_and_unloads() -> None:
    found = llvm_descriptor()
    before = addresses(found)
    kept: list[gdbjit.Registration] = []
    engines: list[llvm.ExecutionEngine] = []
    for n in range(1000):
        kept.append(gdbjit.register(IMAGE, found))
        if n % 10 == 0:
            engines.append(engine(f"interleaved_{n}"))
        if n % 3 == 0:
            kept.pop(n % len(kept)).unregister()
        if n % 30 == 0:
            engines.pop(n % len(engines)).close()
    check_links(found)
    while kept or engines:
        if kept:
            kept.pop(len(kept) // 2).unregister()
        if engines:
            engines.pop(len(engines) // 2).close()
    assert addresses(found) == before


def test_threads_share_the_list_with_llvm_under_its_lock() -> None:
    found = llvm_descriptor()
    before = addresses(found)
    gdbjit.share_lock(found, llvm.ffi.lib._lock)

    def ours() -> None:
        for _ in range(300):
            gdbjit.register(IMAGE, found).unregister()

    def theirs(tag: int) -> None:
        for n in range(20):
            module = llvm.parse_assembly(
                f"define i32 @thread_{tag}_{n}() {{ ret i32 1 }}", llvm.create_context()
            )
            machine = llvm.Target.from_default_triple().create_target_machine()
            with llvm.create_mcjit_compiler(module, machine) as loaded:
                loaded.finalize_object()

    with ThreadPoolExecutor(4) as pool:
        work = (ours, ours, partial(theirs, 0), partial(theirs, 1))
        tasks = [pool.submit(each) for each in work]
    for task in tasks:
        task.result()
    check_links(found)
    assert addresses(found) == before


def test_the_shared_lock_is_held_first_and_while_editing(descriptor: gdbjit.Descriptor) -> None:
    held: list[str] = []

    class Lock:
        def __enter__(self) -> None:
            held.append("acquired")

        def __exit__(self, *exc_info: object) -> None:
            held.append("released")

    gdbjit.share_lock(descriptor.address, Lock())
    try:
        with gdbjit.register(IMAGE, descriptor):
            assert held == ["acquired", "released"]
        assert held == ["acquired", "released"] * 2
    finally:
        gdbjit.share_lock(descriptor, contextlib.nullcontext())


# Fork and the end of the process


def test_a_child_has_its_own_copy(descriptor: gdbjit.Descriptor) -> None:
    registration = gdbjit.register(IMAGE, descriptor)

    def check() -> None:
        assert descriptor.entries()[-1].address == registration.entry
        assert descriptor.entries()[-1].symfile == IMAGE
        with gdbjit.register(IMAGE, descriptor) as another:
            assert addresses(descriptor)[-2:] == [registration.entry, another.entry]
        registration.unregister()
        assert registration.entry not in addresses(descriptor)
        assert gdbjit.own_descriptor() == descriptor
        assert descriptor in gdbjit.descriptors()

    assert in_child(check) == 0
    assert descriptor.entries()[-1].symfile == IMAGE
    registration.unregister()


def test_a_fork_in_the_middle_of_edits_gives_a_whole_list(descriptor: gdbjit.Descriptor) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            gdbjit.register(IMAGE, descriptor).unregister()

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:

        def check() -> None:
            check_links(descriptor)
            for entry in descriptor.entries():
                assert entry.symfile == IMAGE
            gdbjit.register(IMAGE, descriptor).unregister()

        assert [in_child(check) for _ in range(20)] == [0] * 20
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "os._exit(0)", "raise SystemExit"])
def test_the_end_of_the_process_leaves_the_list_to_the_engines(end: str) -> None:
    # LLVM unlinks its entries around ours, also late in the interpreter's end.
    script = f"""
import os, pathlib, sys, gdbjit, llvmlite.binding as llvm
llvm.initialize_native_target(); llvm.initialize_native_asmprinter()
(found,) = gdbjit.descriptors()
image = pathlib.Path(gdbjit.own_descriptor().library).read_bytes()
engines, kept = [], []
for n in range(20):
    module = llvm.parse_assembly(f"define i32 @f{{n}}() {{{{ ret i32 1 }}}}")
    machine = llvm.Target.from_default_triple().create_target_machine()
    engines.append(llvm.create_mcjit_compiler(module, machine))
    engines[-1].finalize_object()
    kept.append(gdbjit.register(image, found))
sys.keep = engines
{end}
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(gdbjit.__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (3 if "3" in end else 0), done.stderr
    assert "gdbjit" not in done.stderr


def test_nothing_is_left_behind(descriptor: gdbjit.Descriptor) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    big = IMAGE + bytes(100_000)
    for _ in range(200):
        gdbjit.register(big, descriptor).unregister()
    files, pages = len(os.listdir("/proc/self/fd")), resident()
    for _ in range(2000):
        gdbjit.register(big, descriptor).unregister()
        descriptor.entries()
    assert len(os.listdir("/proc/self/fd")) == files
    assert resident() - pages < 1000


def test_no_memory_of_the_list_belongs_to_python(descriptor: gdbjit.Descriptor) -> None:
    # What Python owns it frees at its end.
    with gdbjit.register(IMAGE, descriptor) as registration:
        entry = CodeEntry.from_address(registration.entry)
        assert entry.symfile == registration.entry + ctypes.sizeof(CodeEntry)
