"""Engines that are not llvmlite's, heard by what they tell debuggers: wasmtime, and a toy."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jit import Program
from targets import target
from tools import PROGRAMS, gdb, perf_symbols, run, tool
from wasm import Wasm, descriptor

import gdbjit
import listeners
from gdbjit import elf
from gdbjit.layout import CodeDescriptor, CodeEntry
from gdbjit.library import build
from listeners.objectfile import SHF_EXECINSTR, ObjectFile
from perfmap import read_map


class Log(listeners.JITEventListener):
    """What is heard: `+name` and `-name`."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def notify_object_loaded(self, obj: listeners.LoadedObject) -> None:
        self.events.append(f"+{obj.name}")

    def notify_freeing_object(self, obj: listeners.LoadedObject) -> None:
        self.events.append(f"-{obj.name}")


def emitted(name: str, address: int) -> bytes:
    """An object with one function, said to be loaded at `address`."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(f"define i64 @{name}(i64 %x) {{ ret i64 %x }}")
    machine = llvm.Target.from_default_triple().create_target_machine()
    image = bytearray(machine.emit_object(module))
    file = ObjectFile(bytes(image))
    (code,) = (i for i in file.allocated if file.sections[i].flags & SHF_EXECINSTR)
    at = file.section_table + 64 * code + 16
    image[at : at + 8] = address.to_bytes(8, "little")
    return bytes(image)


class Toy:
    """An engine that registers objects, with a descriptor in a library of its own."""

    def __init__(self, library: Path) -> None:
        library.write_bytes(build(elf.native()[0].machine))
        ctypes.CDLL(str(library))
        (self.descriptor,) = (d for d in gdbjit.descriptors() if d.library == str(library))
        self.head = CodeDescriptor.from_address(self.descriptor.address)
        self.entries = (CodeEntry * 4)()
        self.images: dict[int, ctypes.Array[ctypes.c_char]] = {}

    def load(self, slot: int, image: bytes) -> None:
        entry = self.entries[slot]
        self.images[slot] = ctypes.create_string_buffer(image, len(image))
        entry.symfile, entry.size = ctypes.addressof(self.images[slot]), len(image)
        entry.next, entry.prev = self.head.first, 0
        if entry.next:
            CodeEntry.from_address(entry.next).prev = ctypes.addressof(entry)
        self.head.first = self.head.relevant = ctypes.addressof(entry)

    def free(self, slot: int) -> None:
        entry = self.entries[slot]
        if entry.prev:
            CodeEntry.from_address(entry.prev).next = entry.next
        else:
            self.head.first = entry.next
        if entry.next:
            CodeEntry.from_address(entry.next).prev = entry.prev


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    engine = Toy(tmp_path / "toy.so")
    yield engine
    engine.head.first = 0


# wasmtime


def test_a_function_of_wasmtime_is_heard_until_it_is_gone() -> None:
    before = Wasm()
    log = Log()
    with listeners.attach(descriptor(), log) as attachment:
        (obj,) = attachment.objects
        (code,) = obj.sections
        assert code.name == ".text"
        sploosh = obj.function("wasm[0]::function[0]::sploosh")
        assert code.address <= sploosh.address < code.address + code.size
        assert obj.registered_in == descriptor()
        assert {Path(line.file).suffix for line in obj.lines()} == {".wasm"}
        after = Wasm()
        assert after.call(3) == 3 * (3 * (3 * 0 + 3) + 2) + 1
        attachment.refresh()
        assert len(attachment.objects) == 2
        del before, after
        gc.collect()
        attachment.refresh()
        assert attachment.objects == ()
    name = "wasm[0]::function[0]::sploosh"
    assert log.events == [f"+{name}", f"+{name}", f"-{name}", f"-{name}"]


@pytest.mark.tools
def test_wasmtime_and_numba_are_named_in_one_recording(tmp_path: Path) -> None:
    shares = recorded(tmp_path, "run", "numba")
    assert shares["wasm[0]::function[0]::sploosh"] > 5
    assert sum(share for name, share in shares.items() if "numba_sum" in name) > 1


@pytest.mark.tools
def test_wasmtime_has_code_images(tmp_path: Path) -> None:
    shares = recorded(tmp_path, "run", "images")
    assert shares["wasm[0]::function[0]::sploosh"] > 5


def recorded(tmp_path: Path, *arguments: str) -> dict[str, float]:
    data = tmp_path / "perf.data"
    options = ("record", "-q", "-e", "cpu-clock", "-o", str(data))
    program = (sys.executable, f"{PROGRAMS}/wasm.py", *arguments)
    run(tool("perf"), *options, "--", *program, env={**os.environ, "JITDUMPDIR": str(tmp_path)})
    return perf_symbols(data)


@pytest.mark.tools
def test_gdb_stops_in_wasm_by_name_and_sees_it_once() -> None:
    said = gdb("break sploosh", "run", "backtrace", program=(f"{PROGRAMS}/wasm.py", "gdb"))
    assert re.search(r"Breakpoint 1, .*sploosh", said)
    assert re.search(r"#\d+ .* in _start \(\)", said)


@pytest.mark.tools
def test_wasm_of_another_process_is_listed() -> None:
    script = "from wasm import Wasm; wasm = Wasm(); say('ready'); wait()"
    with target(f"sys.path.insert(0, {str(PROGRAMS)!r}); {script}") as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        said = run(sys.executable, "-m", "jitlisten", "list", str(process.pid))
    assert re.search(
        r"_libwasmtime\.so +\.text +\d+ +0x\w+ +\d+ +wasm\[0\]::function\[0\]::sploosh", said
    )


def test_at_the_end_of_the_program_what_was_not_looked_at_is_named() -> None:
    script = f"""
import sys; sys.path.insert(0, {str(PROGRAMS)!r})
import os, listeners
from wasm import Wasm, descriptor
listeners.attach(descriptor(), listeners.PerfMap())
wasm = Wasm()
print(os.getpid())
"""
    path = Path(f"/tmp/perf-{int(run(sys.executable, '-c', script))}.map")
    names = {entry.name for entry in read_map(path)}
    path.unlink()
    assert "wasm[0]::function[0]::sploosh" in names


def test_many_threads_may_load_and_free_while_it_is_watched() -> None:
    log = Log()
    attachment = listeners.attach(descriptor(), log)
    attachment.watch(0.001)
    both = listeners.attach(None, log)

    def load_wasm() -> None:
        for _ in range(20):
            assert Wasm().call(1) == 1

    def load_llvm() -> None:
        for number in range(40):
            program = Program("rtdyld")
            program.load(f"define void @llvm_{number}() {{ ret void }}", f"llvm_{number}")
            program.unload()

    threads = [threading.Thread(target=work) for work in (load_wasm, load_wasm, load_llvm)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    attachment.refresh()
    assert attachment.objects == ()
    assert sum(event.startswith("+llvm_") for event in log.events) == 40
    ours = [event for event in log.events if event[1:].startswith(("llvm_", "wasm"))]
    loaded = sorted(event[1:] for event in ours if event[0] == "+")
    assert loaded == sorted(event[1:] for event in ours if event[0] == "-")
    both.detach()
    attachment.detach()


# Any engine


def test_what_comes_and_goes_is_announced_at_refresh(toy: Toy) -> None:
    log = Log()
    toy.load(0, emitted("first", 0x10000))
    attachment = listeners.attach(toy.descriptor, log)
    assert log.events == ["+first"]
    toy.load(1, emitted("second", 0x20000))
    toy.load(2, emitted("third", 0x30000))
    toy.free(1)
    assert log.events == ["+first"]
    attachment.refresh()
    assert log.events == ["+first", "+third"]
    toy.free(0)
    toy.free(2)
    attachment.refresh()
    assert sorted(log.events[2:]) == ["-first", "-third"]


def test_another_object_in_the_place_of_a_freed_one_is_noticed(toy: Toy) -> None:
    log = Log()
    attachment = listeners.attach(toy.descriptor, log)
    toy.load(0, emitted("object_a", 0x10000))
    attachment.refresh()
    image = emitted("object_b", 0x10000)
    ctypes.memmove(toy.images[0], image, len(image))  # all addresses and sizes are the same
    attachment.refresh()
    assert log.events == ["+object_a", "-object_a", "+object_b"]


def test_two_attachments_hear_the_same_object(toy: Toy) -> None:
    toy.load(0, emitted("shared", 0x10000))
    first = listeners.attach(toy.descriptor)
    second = listeners.attach(toy.descriptor)
    assert first.objects == second.objects
    first.detach()
    toy.load(1, emitted("later", 0x20000))
    second.refresh()
    assert [obj.name for obj in first.objects] == ["shared"]
    assert [obj.name for obj in second.objects] == ["shared", "later"]
    toy.free(0)
    second.refresh()
    assert first.objects == ()


def test_a_watcher_notices_what_comes_and_goes(toy: Toy) -> None:
    attachment = listeners.attach(toy.descriptor)
    attachment.watch(0.05)
    for number in range(5):
        toy.load(0, emitted(f"number_{number}", 0x10000))
        while not attachment.objects:
            time.sleep(0.001)
        toy.free(0)
        while attachment.objects:
            time.sleep(0.001)


@pytest.mark.parametrize("interval", [0, -1.0, float("nan"), float("inf")])
def test_an_interval_that_is_no_time_is_an_error(toy: Toy, interval: float) -> None:
    with (
        listeners.attach(toy.descriptor) as attachment,
        pytest.raises(listeners.JITListenerError, match="give seconds"),
    ):
        attachment.watch(interval)


def test_a_watcher_goes_on_in_a_forked_child(toy: Toy) -> None:
    attachment = listeners.attach(toy.descriptor)
    attachment.watch(0.001)
    toy.load(0, emitted("inherited", 0x10000))
    for _ in range(20):
        child = os.fork()
        if not child:
            toy.load(1, emitted("of_child", 0x20000))
            for _ in range(5000):
                if len(attachment.objects) == 2:
                    os._exit(0)
                time.sleep(0.001)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_freed_code_is_announced_before_others_have_its_place(toy: Toy, program: Program) -> None:
    log = Log()
    toy.load(0, emitted("of_toy", 0x10000))
    late = listeners.attach(toy.descriptor, log)
    with listeners.attach(program.engine, log):
        toy.free(0)
        program.load("define void @of_llvm() { ret void }", "of_llvm")
    assert log.events[:3] == ["+of_toy", "-of_toy", "+of_llvm"]
    assert late.objects == ()


def test_a_corrupt_list_is_an_error_and_a_watcher_says_so_once(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    attachment = listeners.attach(toy.descriptor)
    toy.load(0, emitted("one", 0x10000))
    toy.entries[0].next = 8
    with pytest.raises(listeners.JITListenerError, match="0x8"):
        attachment.refresh()
    with caplog.at_level(logging.WARNING, "listeners"):
        attachment.watch(0.001)
        time.sleep(0.1)
    assert len(caplog.records) == 1
    toy.entries[0].next = 0
    attachment.refresh()
    assert [obj.name for obj in attachment.objects] == ["one"]


def test_a_malformed_object_is_announced_and_says_what_is_wrong(toy: Toy) -> None:
    toy.load(0, b"\x7fELF, not really")
    (obj,) = listeners.attach(toy.descriptor).objects
    with pytest.raises(listeners.JITListenerError, match="header"):
        _ = obj.functions


def test_memory_that_is_gone_is_an_error(toy: Toy) -> None:
    toy.load(0, emitted("nowhere", 0x10000))
    (obj,) = listeners.attach(toy.descriptor).objects
    with pytest.raises(listeners.JITListenerError, match="cannot be read"):
        obj.image()


def test_what_listeners_register_themselves_is_not_heard_again(toy: Toy) -> None:
    log = Log()
    attachment = listeners.attach(toy.descriptor, log)
    with gdbjit.register(build(elf.native()[0].machine), toy.descriptor):
        attachment.refresh()
    assert log.events == []


def test_a_descriptor_of_another_process_cannot_be_attached_to() -> None:
    with target("gdbjit.register(image); say('ready'); wait()") as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        (found,) = gdbjit.descriptors(process.pid)
        with pytest.raises(listeners.JITListenerError, match="not in this process"):
            listeners.attach(found)


def test_llvmlite_is_not_loaded_for_it() -> None:
    script = f"""
import sys; sys.path.insert(0, {str(PROGRAMS)!r})
import listeners
from wasm import Wasm, descriptor
wasm = Wasm()
print(len(listeners.attach(descriptor()).objects), "llvmlite" in sys.modules)
"""
    assert (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        == "1 False\n"
    )
