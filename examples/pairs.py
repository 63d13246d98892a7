"""A small language whose heap is collected, by a moving collector in Python.

The syntax is Python's; a value is None, a number, or a pair of values. Numbers are objects on the
heap as well, so that there is much to collect:

    $ python examples/pairs.py
    main() = 92
    … collections moved … objects

How it works, and what of it a front end needs: docs/gc.md.
"""

import ast
import ctypes
import os
from pathlib import Path

import llvmlite.binding as llvm
from llvmlite import ir

import listeners
from listeners.safepoints import (
    NativeWalker,
    Stacks,
    emit,
    place_statepoints,
    read_word,
    write_word,
)

INT = ir.IntType(64)
REFERENCE = emit.REFERENCE
OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "sdiv"}
COMPARISONS = {ast.Lt: "<", ast.Gt: ">"}
NUMBER, PAIR = 1, 3  # headers are odd: an address in its place says where the object has gone
SIZE = 24  # header and number, or header, head and tail

# What the compiled functions call. `next` and `end` of the heap are at these addresses.
RUNTIME = """
define ptr addrspace(1) @new(i64 %header) gc "statepoint-example" {{
  br label %try
try:
  %at = load i64, ptr inttoptr (i64 {next} to ptr)
  %after = add i64 %at, 24
  %end = load i64, ptr inttoptr (i64 {end} to ptr)
  %full = icmp ugt i64 %after, %end
  br i1 %full, label %collect, label %make
collect:
  call void inttoptr (i64 {collect} to ptr)()
  br label %try
make:
  store i64 %after, ptr inttoptr (i64 {next} to ptr)
  %object = inttoptr i64 %at to ptr addrspace(1)
  store i64 %header, ptr addrspace(1) %object
  ret ptr addrspace(1) %object
}}
define ptr addrspace(1) @number(i64 %value) gc "statepoint-example" {{
  %object = call ptr addrspace(1) @new(i64 1)
  %field = getelementptr i64, ptr addrspace(1) %object, i64 1
  store i64 %value, ptr addrspace(1) %field
  ret ptr addrspace(1) %object
}}
define ptr addrspace(1) @pair(ptr addrspace(1) %a, ptr addrspace(1) %b) gc "statepoint-example" {{
  %object = call ptr addrspace(1) @new(i64 3)
  %head = getelementptr i64, ptr addrspace(1) %object, i64 1
  store ptr addrspace(1) %a, ptr addrspace(1) %head
  %tail = getelementptr i64, ptr addrspace(1) %object, i64 2
  store ptr addrspace(1) %b, ptr addrspace(1) %tail
  ret ptr addrspace(1) %object
}}
"""


class Compiler(ast.NodeVisitor):
    """Compiles the functions of a source file into `module`; every value is a REFERENCE."""

    def __init__(self, source: str) -> None:
        self.module = ir.Module("pairs")
        self.number = self.function("number", INT)
        self.pair = self.function("pair", REFERENCE, REFERENCE)
        self.visit(ast.parse(source))

    def function(self, name: str, *arguments: ir.Type) -> ir.Function:
        return ir.Function(self.module, ir.FunctionType(REFERENCE, arguments), name)

    def visit_Module(self, node: ast.Module) -> None:
        for function in node.body:
            arguments = [REFERENCE] * len(function.args.args)
            emit.set_gc(self.function(function.name, *arguments))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        function = self.module.get_global(node.name)
        self.builder = ir.IRBuilder(function.append_basic_block())
        names = {n.id for n in ast.walk(node) if isinstance(getattr(n, "ctx", 0), ast.Store)}
        names.update(argument.arg for argument in node.args.args)
        self.variables = {name: self.builder.alloca(REFERENCE) for name in sorted(names)}
        for argument, value in zip(node.args.args, function.args, strict=True):
            self.builder.store(value, self.variables[argument.arg])
        self.visit_all(node.body)
        if not self.builder.block.is_terminated:
            self.builder.ret(REFERENCE(None))

    def visit_all(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.visit(statement)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.builder.store(self.visit(node.value), self.variables[node.targets[0].id])

    def visit_Return(self, node: ast.Return) -> None:
        self.builder.ret(self.visit(node.value))

    def visit_If(self, node: ast.If) -> None:
        with self.builder.if_else(self.truth(node.test)) as (then, otherwise):
            with then:
                self.visit_all(node.body)
            with otherwise:
                self.visit_all(node.orelse)

    def visit_While(self, node: ast.While) -> None:
        test, body, done = (self.builder.append_basic_block(name) for name in ("test", "", ""))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        self.builder.cbranch(self.truth(node.test), body, done)
        self.builder.position_at_end(body)
        self.visit_all(node.body)
        self.builder.branch(test)
        self.builder.position_at_end(done)

    def truth(self, node: ast.expr) -> ir.Value:
        """Whether a comparison holds, or a number is not 0."""
        if not isinstance(node, ast.Compare):
            return self.builder.icmp_signed("!=", self.value(self.visit(node)), INT(0))
        left, right = self.visit(node.left), node.comparators[0]
        if isinstance(right, ast.Constant) and right.value is None:
            return self.builder.icmp_unsigned("==", left, REFERENCE(None))
        left, right = self.value(left), self.value(self.visit(right))
        return self.builder.icmp_signed(COMPARISONS.get(type(node.ops[0]), "=="), left, right)

    def field(self, value: ir.Value, index: int, kind: ir.Type) -> ir.Value:
        place = self.builder.gep(value, [INT(index)], source_etype=INT)
        return self.builder.load(place, typ=kind)

    def value(self, number: ir.Value) -> ir.Value:
        return self.field(number, 1, INT)

    def visit_Name(self, node: ast.Name) -> ir.Value:
        return self.builder.load(self.variables[node.id], typ=REFERENCE)

    def visit_Constant(self, node: ast.Constant) -> ir.Value:
        if node.value is None:
            return REFERENCE(None)
        return self.builder.call(self.number, [INT(node.value)])

    def visit_BinOp(self, node: ast.BinOp) -> ir.Value:
        left, right = self.operand(node.left), self.operand(node.right)
        result = getattr(self.builder, OPERATORS[type(node.op)])(left, right)
        return self.builder.call(self.number, [result])

    def operand(self, node: ast.expr) -> ir.Value:
        return INT(node.value) if isinstance(node, ast.Constant) else self.value(self.visit(node))

    def visit_Call(self, node: ast.Call) -> ir.Value:
        arguments = [self.visit(argument) for argument in node.args]
        if node.func.id in ("head", "tail"):
            return self.field(arguments[0], 1 if node.func.id == "head" else 2, REFERENCE)
        return self.builder.call(self.module.get_global(node.func.id), arguments)


class Heap:
    """Two halves. Objects are made in one until it is full; then those in use go to the other."""

    def __init__(self, size: int, walker: NativeWalker, stacks: Stacks) -> None:
        self.size = size // SIZE * SIZE
        self.memory = ctypes.create_string_buffer(2 * self.size)
        self.start = ctypes.addressof(self.memory)
        self.words = memoryview(self.memory).cast("B").cast("Q")
        self.edges = (ctypes.c_uint64 * 2)(self.start, self.start + self.size)
        """Where the next object goes, and where the half in use ends."""
        self.walker, self.stacks = walker, stacks
        self.collections = self.moved = 0

    def collect(self) -> None:
        old = self.edges[1] - self.size
        self.next = scanned = 2 * self.start + self.size - old
        roots = [root for root in self.walker.roots(self.stacks.anchors()) if root.base]
        before = [(read_word(root.base), read_word(root.derived)) for root in roots]
        for root, (base, derived) in zip(roots, before, strict=True):
            moved = self.move(base)
            write_word(root.base, moved)
            write_word(root.derived, derived + moved - base)  # which may point into the object
        while scanned < self.next:  # what has come has to bring what it refers to
            at = scanned - self.start >> 3
            if self.words[at] == PAIR:
                self.words[at + 1] = self.move(self.words[at + 1])
                self.words[at + 2] = self.move(self.words[at + 2])
            scanned += SIZE
        end = 2 * self.start + 2 * self.size - old
        self.edges[:] = self.next, end
        self.collections += 1
        if end - self.next < self.size // 2:
            print("more than half of the heap is in use")
            os.abort()  # there is no Python to raise an exception into

    def move(self, address: int) -> int:
        """Where the object is now; None, which is 0, stays."""
        if not address:
            return 0
        at, to = address - self.start >> 3, self.next - self.start >> 3
        if self.words[at] in (NUMBER, PAIR):
            self.words[to : to + 3] = self.words[at : at + 3]
            self.words[at] = self.next
            self.next += SIZE
            self.moved += 1
        return self.words[at]


def main() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    safepoints, stacks = listeners.Safepoints(), Stacks()
    heap = Heap(1 << 14, NativeWalker(safepoints), stacks)
    collect = stacks.entry(heap.collect)  # calls it, and notes where the caller's frames are

    compiled = Compiler(Path(__file__).with_name("queens.pairs").read_text()).module
    module = llvm.parse_assembly(str(compiled))
    edges = ctypes.addressof(heap.edges)
    runtime = RUNTIME.format(next=edges, end=edges + 8, collect=collect.address)
    module.link_in(llvm.parse_assembly(runtime))
    module.verify()

    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    module.data_layout = f"{machine.target_data}-ni:1"
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    module = place_statepoints(module)  # now every call is a safepoint, its roots known

    with llvm.create_mcjit_compiler(module, machine) as engine:
        listeners.attach(engine, safepoints)
        function = ctypes.CFUNCTYPE(ctypes.c_uint64)(engine.get_function_address("main"))
        print(f"main() = {heap.words[(function() - heap.start >> 3) + 1]}")
        print(f"{heap.collections} collections moved {heap.moved} objects")


if __name__ == "__main__":
    main()
