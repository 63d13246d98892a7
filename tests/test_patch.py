"""`Patchpoints`: call sites that change while threads run them."""

import ctypes
import threading
import time
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from jit import Program
from llvmlite import ir

import listeners
from listeners import JITListenerError
from listeners.objectfile import ObjectFile
from listeners.safepoints import Patchpoints, emit

pytestmark = pytest.mark.usefixtures("patchpoints_built")

I64 = ir.IntType(64)
VOID = ir.VoidType()
Number = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


@pytest.fixture(scope="module", autouse=True)
def _assembler() -> None:
    llvm.initialize_native_asmparser()


class Sites:
    """An engine with patchpoints of so many bytes."""

    def __init__(self, program: Program, *sizes: int, first: bool = False, code: bool = False):
        self.module = ir.Module()
        self.functions: list[str] = []
        self.counters = (ctypes.c_int64 * 2)()
        self.stop = ctypes.c_int64()
        for number in range(2):
            self.count(f"count{number}", ctypes.addressof(self.counters) + 8 * number)
        target = self.module.get_global("count0") if first else None
        for number, size in enumerate(sizes):
            self.once(number, size, target)
        self.loop(len(sizes), target)
        self.patchpoints = Patchpoints()
        tools = [listeners.CodeImages()] if code else []
        listeners.attach(program.engine, self.patchpoints, *tools)
        names = ["count0", "count1", *self.functions]
        addresses = program.load(str(self.module), *names)
        self.addresses = dict(zip(names, addresses, strict=True))
        self.sites = sorted(self.patchpoints, key=lambda site: site.id)

    def function(self, name: str, result: ir.Type, *arguments: ir.Type) -> ir.IRBuilder:
        function = ir.Function(self.module, ir.FunctionType(result, arguments), name)
        self.functions.append(name)
        return ir.IRBuilder(function.append_basic_block())

    def count(self, name: str, counter: int) -> None:
        builder = self.function(name, I64, I64)
        place = builder.inttoptr(I64(counter), ir.PointerType())
        builder.store(builder.add(builder.load(place, typ=I64), I64(1)), place)
        builder.ret(builder.mul(builder.function.args[0], I64(2)))

    def once(self, number: int, size: int, target: ir.Function | None) -> None:
        """f0, …: what the patchpoint gives for the argument, on a stack of any alignment."""
        builder = self.function(f"f{number}", I64, I64)
        argument = builder.function.args[0]
        for _ in range(number % 8):
            builder.asm(ir.FunctionType(VOID, []), "nop", "", [], True)  # begin at any address
        result = emit.patchpoint(builder, number, size, target, [argument], returns=I64)
        builder.ret(result)

    def loop(self, number: int, target: ir.Function | None) -> None:
        """loop: how often it has run the patchpoint until `stop` is set."""
        builder = self.function("loop", I64)
        begin = builder.block
        body, done = (builder.append_basic_block(name) for name in ("body", "done"))
        builder.branch(body)
        builder.position_at_end(body)
        turn = builder.phi(I64)
        emit.patchpoint(builder, number, 16, target, [turn])
        stop = builder.inttoptr(I64(ctypes.addressof(self.stop)), ir.PointerType())
        stopped = builder.icmp_signed("!=", builder.load(stop, typ=I64), I64(0))
        following = builder.add(turn, I64(1))
        turn.add_incoming(I64(0), begin)
        turn.add_incoming(following, body)
        builder.cbranch(stopped, done, body)
        builder.position_at_end(done)
        builder.ret(following)


def test_sites_are_found_by_id_and_by_address(program):
    made = Sites(program, 16, 16)
    assert [site.id for site in made.sites] == [0, 1, 2]
    (site,) = made.patchpoints.by_id(1)
    assert made.patchpoints.at(site.address) is site
    assert site.function.name == "f1"
    assert made.patchpoints.at(site.address + 1) is None
    assert made.patchpoints.by_id(77) == []


def test_a_site_calls_what_it_is_told_and_again_nothing(program):
    made = Sites(program, *range(9, 33))
    for site in made.sites[:-1]:
        run = Number(made.addresses[f"f{site.id}"])
        run(21)
        assert made.counters[0] == 0
        site.call(made.addresses["count0"])
        assert run(21) == 42
        site.call(made.addresses["count1"])
        assert run(4) == 8
        assert list(made.counters) == [1, 1]
        site.skip()
        run(1)
        assert list(made.counters) == [1, 1]
        made.counters[:] = [0, 0]


def test_a_site_with_a_target_calls_it_until_it_is_changed(program):
    made = Sites(program, *range(13, 32), first=True)
    for site in made.sites[:-1]:
        run = Number(made.addresses[f"f{site.id}"])
        assert site.target == made.addresses["count0"]
        assert run(21) == 42
        site.skip()
        run(21)
        site.call(made.addresses["count1"])
        assert run(3) == 6
    assert list(made.counters) == [19, 19]


def test_a_far_target_is_reached_by_a_stub(program):
    """Python's own memory is far from the code; libffi needs a stack that is aligned."""
    made = Sites(program, 16, 16)
    called = []
    callback = Number(lambda number: called.append(number) or number + 1)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    for site in made.sites[:2]:
        site.call(address)
        assert site.target == address
        assert Number(made.addresses[f"f{site.id}"])(5 + site.id) == 6 + site.id
    assert called == [5, 6]


def test_a_jump_goes_on_elsewhere(program):
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(I64, [ir.PointerType()]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    emit.patchpoint(builder, 1)
    builder.store(I64(1), function.args[0]).volatile = True
    emit.stackmap(builder, 2)
    builder.ret(I64(5))
    patchpoints, safepoints = Patchpoints(), listeners.Safepoints()
    listeners.attach(program.engine, patchpoints, safepoints)
    (address,) = program.load(str(module), "f")
    number = ctypes.c_int64()
    run = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)
    (site,), (beyond,) = patchpoints.by_id(1), safepoints.by_id(2)
    site.jump(beyond.address)
    assert (run(ctypes.addressof(number)), number.value) == (5, 0)
    site.skip()
    assert (run(ctypes.addressof(number)), number.value) == (5, 1)


def mapping(address: int) -> str:
    """The line of this process's memory map with an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if start <= address < end:
            return line
    return ""


def test_a_code_image_made_later_has_the_change(program, tmp_path, monkeypatch):
    monkeypatch.setenv("JITDUMPDIR", str(tmp_path))
    made = Sites(program, 16)
    site, run = made.sites[0], Number(made.addresses["f0"])
    site.call(made.addresses["count0"])
    listeners.attach(program.engine, listeners.CodeImages())
    assert str(tmp_path) in mapping(site.address)
    assert run(3) == 6
    site.call(made.addresses["count1"])
    assert run(3) == 6
    assert list(made.counters) == [1, 1]


@pytest.mark.parametrize("images", [False, True], ids=["bare", "under a code image"])
def test_sites_change_while_threads_run_them(program, images, tmp_path, monkeypatch):
    monkeypatch.setenv("JITDUMPDIR", str(tmp_path))
    made = Sites(program, 16, first=True, code=images)
    site, first, second = made.sites[1], made.addresses["count0"], made.addresses["count1"]
    turns = []
    loop = ctypes.CFUNCTYPE(ctypes.c_int64)(made.addresses["loop"])
    thread = threading.Thread(target=lambda: turns.append(loop()))
    thread.start()
    while not made.counters[0]:
        time.sleep(0)
    assert (str(tmp_path) in mapping(site.address)) == images
    for _ in range(10000):
        site.call(second)
        site.call(first)
    while not made.counters[1]:
        site.call(second)
        time.sleep(0.001)
    made.stop.value = 1
    thread.join()
    assert turns == [sum(made.counters)]  # every turn called one of them, none both


def test_several_threads_run_and_several_change(program):
    """All bytes of the instruction change at once: a mixed one would crash."""
    made = Sites(program, 16)
    site = made.sites[1]
    targets = [made.addresses["count0"], made.addresses["count1"]]
    loop = ctypes.CFUNCTYPE(ctypes.c_int64)(made.addresses["loop"])

    def change() -> None:
        for _ in range(3000):
            for target in targets:
                site.call(target)
                site.skip()

    running = [threading.Thread(target=loop) for _ in range(3)]
    changing = [threading.Thread(target=change) for _ in range(2)]
    for thread in running + changing:
        thread.start()
    for thread in changing:
        thread.join()
    site.call(targets[0])
    before = made.counters[0]
    while made.counters[0] == before:
        time.sleep(0.001)
    site.skip()
    assert site.target is None
    made.stop.value = 1
    for thread in running:
        thread.join()


def test_a_site_that_no_word_holds_is_refused(program):
    made = Sites(program, *[5] * 8)
    refused = changed = 0
    for site in made.sites[:-1]:
        run = Number(made.addresses[f"f{site.id}"])
        try:
            site.call(made.addresses["count0"])
            changed += 1
            assert run(4) == 8
        except JITListenerError as error:
            assert f"Patchpoint {site.id} at {site.address:#x}" in str(error)
            assert "9 or more" in str(error)
            run(4)
            refused += 1
    assert (refused, changed) == (4, 4)  # they begin at eight addresses that follow each other
    assert made.counters[0] == changed


def test_a_freed_site_is_refused(program):
    made = Sites(program, 16)
    program.unload()
    assert list(made.patchpoints) == []
    assert made.sites[0].freed
    with pytest.raises(JITListenerError, match="has been freed"):
        made.sites[0].skip()


def test_code_of_another_machine_is_refused():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple("aarch64-linux-gnu").create_target_machine()
    text = (
        "define void @f() { call void (i64, i32, ptr, i32, ...)"
        " @llvm.experimental.patchpoint.void(i64 1, i32 16, ptr null, i32 0) ret void }"
    )
    file = ObjectFile(machine.emit_object(llvm.parse_assembly(text)))
    addresses = {index: 0x1000 * (index + 1) for index in range(len(file.sections))}
    obj = listeners.LoadedObject(lambda: file, lambda address, size: b"", addresses)
    with pytest.raises(JITListenerError, match="code of machine 183 cannot be patched"):
        Patchpoints().notify_object_loaded(obj)
