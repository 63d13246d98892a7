"""Random functions over references, compiled, run with objects that move and with none that do.

    moving.py FIRST LAST

For each seed it prints what was computed, of how many roots a collector was told and how many of
them were derived. It fails at the first seed where moving objects made a difference. The functions
have loops, calls of each other, exceptions that they catch, and pointers into objects.
"""

import ctypes
import random
import sys

import llvmlite.binding as llvm
from collector import Runtime
from jit import LINKERS, initialize, target_machine

from listeners.safepoints import place_statepoints

REF = "ptr addrspace(1)"
HEAD = """
declare i32 @__gxx_personality_v0(...)
declare ptr @__cxa_begin_catch(ptr) "gc-leaf-function"
declare void @__cxa_end_catch() "gc-leaf-function"
declare ptr @__cxa_allocate_exception(i64)
declare void @__cxa_throw(ptr, ptr, ptr)
@_ZTIi = external global ptr

define void @poll_or_throw(i64 %a) noinline gc "statepoint-example" {
  call void @poll()
  %low = and i64 %a, 15
  %zero = icmp eq i64 %low, 0
  br i1 %zero, label %throw, label %done
done:
  ret void
throw:
  %e = call ptr @__cxa_allocate_exception(i64 4)
  call void @__cxa_throw(ptr %e, ptr @_ZTIi, ptr null)
  unreachable
}

define i64 @main(i64 %n) gc "statepoint-example" personality ptr @__gxx_personality_v0 {
  %a = call ptr addrspace(1) @alloc(i64 2, i64 2)
  %b = call ptr addrspace(1) @alloc(i64 2, i64 2)
  %r = invoke i64 @g0(ptr addrspace(1) %a, ptr addrspace(1) %b, i64 %n, i64 1)
    to label %returned unwind label %thrown
returned:
  ret i64 %r
thrown:
  %l = landingpad { ptr, i32 } catch ptr null
  ret i64 99
}
"""


class Functions:
    """f0, f1 (REF) and g0, g1 (i64), each over (REF, REF, calls left, i64)."""

    def __init__(self, chance: random.Random, derived: bool) -> None:
        self.chance = chance
        self.derived = derived
        self.lines = [HEAD]
        self.count = 0
        for name, result in (("f0", REF), ("f1", REF), ("g0", "i64"), ("g1", "i64")):
            self.function(name, result)

    def new(self, prefix: str = "%v") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def value(self, text: str) -> str:
        self.lines.append(f"  {(name := self.new())} = {text}")
        return name

    def do(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def begin(self, block: str) -> None:
        self.lines.append(f"{block}:")

    def variable(self, kind: str) -> str:
        return f"%{kind}{self.chance.randrange({'r': 4, 'd': 2}[kind])}"

    def reference(self) -> str:
        return self.value(f"load {REF}, ptr {self.variable('r')}")

    def number(self) -> str:
        return self.value("load i64, ptr %sum")

    def field(self, first: int) -> str:
        """The address of one of two fields of some object, from field number `first` on."""
        at = 1 + first + self.chance.randrange(2)
        return self.value(f"getelementptr i64, {REF} {self.reference()}, i64 {at}")

    def add(self, number: str) -> None:
        product = self.value(f"mul i64 {self.number()}, 31")
        self.do(f"store i64 {self.value(f'add i64 {product}, {number}')}, ptr %sum")

    def condition(self) -> str:
        bit = self.value(f"and i64 {self.number()}, {1 << self.chance.randrange(5)}")
        return self.value(f"icmp eq i64 {bit}, 0")

    def call(self, result: str, call: str) -> str:
        name = "" if result == "void" else self.new()
        assigned = f"{name} = " if name else ""
        if self.chance.random() < 0.4:
            after = self.new("b")
            self.do(f"{assigned}invoke {result} {call} to label %{after} unwind label %{self.pad}")
            self.begin(after)
        else:
            self.do(f"{assigned}call {result} {call}")
        return name

    def keep(self, reference: str) -> None:
        self.do(f"store {REF} {reference}, ptr {self.variable('r')}")

    def statements(self, depth: int, count: int) -> None:
        for _ in range(count):
            self.chance.choice(self.KINDS)(self, depth)

    def allocate(self, depth: int) -> None:
        self.keep(made := self.call(REF, "@alloc(i64 2, i64 2)"))
        field = self.value(f"getelementptr i64, {REF} {made}, i64 3")
        self.do(f"store i64 {self.number()}, {REF} {field}")

    def copy(self, depth: int) -> None:
        self.keep(self.reference())

    def link(self, depth: int) -> None:
        self.do(f"store {REF} {self.reference()}, {REF} {self.field(0)}")

    def follow(self, depth: int) -> None:
        found, other = self.value(f"load {REF}, {REF} {self.field(0)}"), self.reference()
        null = self.value(f"icmp eq {REF} {found}, null")
        self.keep(self.value(f"select i1 {null}, {REF} {other}, {REF} {found}"))

    def write(self, depth: int) -> None:
        self.do(f"store i64 {self.number()}, {REF} {self.field(2)}")

    def read(self, depth: int) -> None:
        self.add(self.value(f"load i64, {REF} {self.field(2)}"))

    def branch(self, depth: int) -> None:
        if depth < 3:
            blocks = [self.new("b") for _ in range(3)]
            self.do(f"br i1 {self.condition()}, label %{blocks[0]}, label %{blocks[1]}")
            for block in blocks[:2]:
                self.begin(block)
                self.statements(depth + 1, self.chance.randrange(4))
                self.do(f"br label %{blocks[2]}")
            self.begin(blocks[2])

    def loop(self, depth: int) -> None:
        if depth < 2:
            head, body, done = (self.new("b") for _ in range(3))
            self.do(f"store i64 {self.chance.randrange(1, 4)}, ptr %i{depth}")
            self.do(f"br label %{head}")
            self.begin(head)
            left = self.value(f"load i64, ptr %i{depth}")
            more = self.value(f"icmp ne i64 {left}, 0")
            self.do(f"br i1 {more}, label %{body}, label %{done}")
            self.begin(body)
            self.do(f"store i64 {self.value(f'sub i64 {left}, 1')}, ptr %i{depth}")
            self.statements(depth + 1, self.chance.randrange(1, 4))
            self.do(f"br label %{head}")
            self.begin(done)

    def call_other(self, depth: int) -> None:
        left = self.value("sub i64 %left, 1")
        arguments = f"{REF} {self.reference()}, {REF} {self.reference()}, i64 {left}"
        arguments += f", i64 {self.number()}"
        number = self.chance.randrange(2)
        if self.chance.random() < 0.5:
            self.keep(self.call(REF, f"@f{number}({arguments})"))
        else:
            self.add(self.call("i64", f"@g{number}({arguments})"))

    def point(self, depth: int) -> None:
        if self.derived:
            self.do(f"store {REF} {self.field(2)}, ptr {self.variable('d')}")

    def choose(self, depth: int) -> None:
        if self.derived:
            one, other = (self.value(f"load {REF}, ptr %d{n}") for n in range(2))
            chosen = self.value(f"select i1 {self.condition()}, {REF} {one}, {REF} {other}")
            self.do(f"store {REF} {chosen}, ptr {self.variable('d')}")

    def use(self, depth: int) -> None:
        if self.derived:
            pointer = self.value(f"load {REF}, ptr {self.variable('d')}")
            self.add(self.value(f"load i64, {REF} {pointer}"))
            self.do(f"store i64 {self.number()}, {REF} {pointer}")

    def poll(self, depth: int) -> None:
        self.call("void", f"@poll_or_throw(i64 {self.number()})")

    KINDS = (
        *(allocate, allocate, copy, link, follow, write, read, branch, loop, call_other),
        *(point, choose, use, use, poll),
    )

    def function(self, name: str, result: str) -> None:
        inlined = self.chance.choice(("", "noinline ", "noinline minsize optsize "))
        self.lines.append(
            f"define {result} @{name}({REF} %a, {REF} %b, i64 %left, i64 %given) {inlined}"
            'gc "statepoint-example" personality ptr @__gxx_personality_v0 {'
        )
        for place in ("r0", "r1", "r2", "r3", *(("d0", "d1") if self.derived else ())):
            self.do(f"%{place} = alloca {REF}")
        for place in ("sum", "i0", "i1"):
            self.do(f"%{place} = alloca i64")
        self.do("store i64 %given, ptr %sum")
        for number in range(4):
            self.do(f"store {REF} %{'ab'[number % 2]}, ptr %r{number}")
        if self.derived:
            for number in range(2):
                self.do(f"store {REF} {self.field(2)}, ptr %d{number}")
        end = self.value("icmp sle i64 %left, 0")
        self.do(f"br i1 {end}, label %done, label %work")
        self.begin("work")
        self.pad = "pad0"
        self.statements(0, self.chance.randrange(6, 16))
        for number in range(2):
            self.do("br label %done")
            self.begin(f"pad{number}")
            caught = self.value("landingpad { ptr, i32 } catch ptr null")
            thrown = self.value(f"extractvalue {{ ptr, i32 }} {caught}, 0")
            self.do(f"call ptr @__cxa_begin_catch(ptr {thrown})")
            self.do("call void @__cxa_end_catch()")
            self.pad = "pad1"
            self.statements(1, 0 if number else self.chance.randrange(2, 5))
            self.read(1)
        self.do("br label %done")
        self.begin("done")
        self.read(1)
        self.do(f"ret {result} {self.reference() if result == REF else self.number()}")
        self.lines.append("}")


def run(seed: int) -> None:
    chance = random.Random(seed)
    linker, opt = LINKERS[seed % 3], seed // 3 % 3
    derived = bool(opt or seed % 2)
    runtime = Runtime(linker, chance.randrange(1, 4))
    module = llvm.parse_assembly(runtime.code + "\n".join(Functions(chance, derived).lines))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=opt)
    machine = target_machine(opt=opt)
    passes = llvm.create_pass_builder(machine, options)
    if chance.random() < 0.5:
        module.data_layout = f"{machine.target_data}-ni:1"
    if opt:
        passes.getModulePassManager().run(module, passes)
    elif derived:  # which no variable can hold
        manager = llvm.create_new_module_pass_manager()
        manager.add_sroa_pass()
        manager.run(module, passes)
    (main,) = runtime.load(place_statepoints(module), "main")
    function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(main)
    moving = function(5)
    runtime.every = 0
    still = function(5)
    print(seed, linker, opt, moving, runtime.roots, runtime.derived, runtime.heap.moved, flush=True)
    assert moving == still, f"seed {seed}: {still}, and {moving} where objects move"


def main() -> None:
    initialize()
    llvm.load_library_permanently("libstdc++.so.6")
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        run(seed)


if __name__ == "__main__":
    main()
