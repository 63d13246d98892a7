"""What this process has registered with debuggers, also where the list is corrupt."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from targets import line, llvm_descriptor, native_image, target, without_addresses

import gdbjit
from gdbjit.layout import CodeDescriptor, CodeEntry

pytestmark = pytest.mark.usefixtures("settled")


def compiled(name: str, value: int = 42) -> bytes:
    """An object with one function."""
    module = llvm.parse_assembly(f"define i32 @{name}() {{ ret i32 {value} }}")
    machine = llvm.Target.from_default_triple().create_target_machine()
    return bytes(machine.emit_object(module))


@contextmanager
def loaded(emitted: bytes) -> Iterator[None]:
    """The object, loaded by MCJIT, which registers it."""
    machine = llvm.Target.from_default_triple().create_target_machine()
    nothing = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(nothing, machine)
    engine.remove_module(nothing)
    engine.add_object_file(llvm.ObjectFileRef.from_data(emitted))
    engine.finalize_object()
    yield
    engine.close()


def test_local_symbols_of_llvmlite_are_found() -> None:
    descriptor = llvm_descriptor()
    assert not descriptor.exported
    assert descriptor.pid is None
    words = CodeDescriptor.from_address(descriptor.address)
    assert words.version == 1


def test_an_entry_holds_what_llvm_emitted() -> None:
    emitted = compiled("in_this_process")
    descriptor = llvm_descriptor()
    before = descriptor.entries()
    with loaded(emitted):
        *earlier, entry = descriptor.entries()
        assert earlier == before
        assert entry.size == len(emitted)
        assert without_addresses(entry.symfile) == emitted
        assert entry.symfile == ctypes.string_at(entry.symfile_address, entry.size)
    assert descriptor.entries() == before


def test_entries_are_listed_oldest_first() -> None:
    descriptor = gdbjit.own_descriptor()
    image = native_image()
    registrations = [gdbjit.register(image, descriptor) for _ in range(3)]
    listed = [entry.address for entry in descriptor.entries()]
    assert listed[-3:] == [registration.entry for registration in registrations]
    for registration in registrations:
        registration.unregister()


def test_this_process_by_its_number_is_this_process() -> None:
    assert gdbjit.descriptors(os.getpid()) == gdbjit.descriptors()


def test_descriptors_come_in_load_order(tmp_path: Path) -> None:
    paths = []
    for name in ("z", "a"):
        path = tmp_path / f"{name}.so"
        path.write_bytes(native_image())
        ctypes.CDLL(str(path))
        paths.append(str(path))
    found = gdbjit.descriptors()
    order = [descriptor.library for descriptor in found if descriptor.library in paths]
    assert order == paths
    assert all(descriptor.exported for descriptor in found if descriptor.library in paths)


def test_the_cached_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "changing.so"
    path.write_bytes(native_image())
    ctypes.CDLL(str(path))
    assert str(path) in {descriptor.library for descriptor in gdbjit.descriptors()}
    path.rename(tmp_path / "moved.so")
    path.write_bytes(native_image().replace(b"__jit_debug", b"__was_debug"))
    assert str(path) not in {descriptor.library for descriptor in gdbjit.descriptors()}


def test_an_image_of_an_unregistered_entry_is_an_error() -> None:
    descriptor = gdbjit.own_descriptor()
    with gdbjit.register(native_image(), descriptor) as registration:
        (entry,) = (e for e in descriptor.entries() if e.address == registration.entry)
    with pytest.raises(gdbjit.GDBJITError, match="unregistered"):
        _ = entry.symfile


def test_this_process_is_read_after_a_change_of_user() -> None:
    script = """
import tempfile
if not os.geteuid():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE: what a change of user does
os.environ["HOME"] = "/nonexistent"
with tempfile.TemporaryDirectory() as os.environ["TMPDIR"]:
    with gdbjit.register(image) as registration:
        (entry,) = registration.descriptor.entries()
        right = entry.symfile == image and gdbjit.descriptors() == [registration.descriptor]
say(right)
"""
    with target(script) as process:
        assert line(process) == "True"


def test_a_changing_list_of_this_process_is_read_whole() -> None:
    image = native_image()
    descriptor = gdbjit.own_descriptor()
    before = len(descriptor.entries())
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            gdbjit.register(image, descriptor).unregister()

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            assert len(descriptor.entries()) in range(before, before + 4)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(descriptor.entries()) == before


# Corrupt lists, in this process: an error, not a crash


@contextmanager
def crafted(fields: list[tuple[int, int]]) -> Iterator[tuple[gdbjit.Descriptor, int]]:
    """A list of entries (index of the next or -1, size) in a descriptor of its own."""
    descriptor = gdbjit.own_descriptor()
    words = CodeDescriptor.from_address(descriptor.address)
    before = words.first
    entries = (CodeEntry * len(fields))()
    image = ctypes.create_string_buffer(native_image())
    base = ctypes.addressof(entries)
    for entry, (following, size) in zip(entries, fields, strict=True):
        entry.next = base + following * ctypes.sizeof(CodeEntry) if following >= 0 else 0
        entry.symfile, entry.size = ctypes.addressof(image), size
    words.first = base
    yield descriptor, base
    words.first = before


def test_a_circle_is_an_error() -> None:
    with (
        crafted([(1, 64), (2, 64), (1, 64)]) as (descriptor, _),
        pytest.raises(gdbjit.GDBJITError, match="circle"),
    ):
        descriptor.entries()


@pytest.mark.parametrize("wild", [0x10, 0x7FFF_FFFF_F000, 1 << 63, (1 << 64) - 8])
def test_a_wild_pointer_is_an_error(wild: int) -> None:
    with crafted([(-1, 64)]) as (descriptor, base):
        CodeEntry.from_address(base).next = wild
        with pytest.raises(gdbjit.GDBJITError, match=f"{wild:#x}"):
            descriptor.entries()


@pytest.mark.parametrize("size", [1 << 36, 1 << 40, 1 << 62, (1 << 64) - 1])
def test_a_huge_image_is_an_error(size: int) -> None:
    with crafted([(-1, size)]) as (descriptor, _):
        (entry,) = descriptor.entries()
        assert entry.size == size
        with pytest.raises(gdbjit.GDBJITError, match="not mapped"):
            _ = entry.symfile


def test_reserved_memory_is_not_read_as_an_image() -> None:
    size = 1 << 36
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    none, private_anonymous_noreserve = 0, 0x4022
    reserved = libc.mmap(None, size, none, private_anonymous_noreserve, -1, 0)
    with crafted([(-1, size)]) as (descriptor, base):
        CodeEntry.from_address(base).symfile = reserved
        (entry,) = descriptor.entries()
        with pytest.raises(gdbjit.GDBJITError, match="not mapped"):
            _ = entry.symfile
    libc.munmap(ctypes.c_void_p(reserved), ctypes.c_size_t(size))


def test_another_version_is_an_error() -> None:
    with crafted([(-1, 64)]) as (descriptor, _):
        words = CodeDescriptor.from_address(descriptor.address)
        words.version = 2
        try:
            with pytest.raises(gdbjit.GDBJITError, match="version is 2"):
                descriptor.entries()
            with pytest.raises(gdbjit.GDBJITError, match="version 2"):
                gdbjit.register(native_image(), descriptor)
        finally:
            words.version = 1
