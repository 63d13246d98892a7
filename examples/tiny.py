"""A tiny language on llvmlite, with what gdb and perf need to show its source.

The syntax is Python's, every value a 64-bit integer. `collatz.tiny` is compiled with debug
information (lines, parameters, local variables), loaded and run:

    $ python examples/tiny.py
    longest(1000000) = 524

Stopped by name or by line, with no debug information for Python needed:

    $ gdb -q -batch -ex 'set breakpoint pending on' -ex 'break collatz.tiny:8 if n > 1000' \\
          -ex run -ex backtrace -ex 'info locals' --args python examples/tiny.py

Profiled:

    $ perf record -e cpu-clock -o /tmp/perf.data python examples/tiny.py
    $ perf report -i /tmp/perf.data --stdio --sort symbol
"""

import ast
import ctypes
from pathlib import Path

import llvmlite.binding as llvm
from llvmlite import ir

import listeners

INT = ir.IntType(64)
OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "sdiv"}
COMPARISONS = {ast.Lt: "<", ast.Gt: ">", ast.Eq: "=="}


class Compiler(ast.NodeVisitor):
    """Compiles the functions of a source file into `module`."""

    def __init__(self, path: Path) -> None:
        self.module = ir.Module(path.name)
        debug = self.module.add_debug_info
        self.file = debug("DIFile", {"filename": path.name, "directory": str(path.parent)})
        self.unit = debug(
            "DICompileUnit",
            {
                "language": ir.DIToken("DW_LANG_C"),  # gdb evaluates expressions as in C
                "file": self.file,
                "isOptimized": False,
                "emissionKind": ir.DIToken("FullDebug"),
            },
            is_distinct=True,
        )
        self.int_type = debug(
            "DIBasicType", {"name": "int", "size": 64, "encoding": ir.DIToken("DW_ATE_signed")}
        )
        metadata = ir.FunctionType(ir.VoidType(), [ir.MetaDataType()] * 3)
        self.declare = ir.Function(self.module, metadata, "llvm.dbg.declare")
        i32 = ir.IntType(32)
        self.module.add_named_metadata("llvm.dbg.cu", self.unit)
        self.module.add_named_metadata("llvm.module.flags", [i32(2), "Debug Info Version", i32(3)])
        self.visit(ast.parse(path.read_text()))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        names = [argument.arg for argument in node.args.args]
        function = ir.Function(self.module, ir.FunctionType(INT, [INT] * len(names)), node.name)
        types = [self.int_type] * (1 + len(names))
        self.scope = self.module.add_debug_info(
            "DISubprogram",
            {
                "name": node.name,
                "file": self.file,
                "scope": self.file,
                "line": node.lineno,
                "scopeLine": node.lineno,
                "type": self.module.add_debug_info("DISubroutineType", {"types": types}),
                "unit": self.unit,
                "spFlags": ir.DIToken("DISPFlagDefinition"),
            },
            is_distinct=True,
        )
        function.set_metadata("dbg", self.scope)
        self.builder = ir.IRBuilder(function.append_basic_block())
        assigned = {n.id for n in ast.walk(node) if isinstance(getattr(n, "ctx", 0), ast.Store)}
        self.variables = {
            name: self.declare_variable(node, name, number)
            for number, name in enumerate([*names, *sorted(assigned - set(names))], 1)
        }
        for name, value in zip(names, function.args, strict=True):
            self.builder.store(value, self.variables[name])
        self.visit_all(node.body)

    def visit_all(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.at(statement)
            self.visit(statement)

    def at(self, node: ast.stmt) -> None:
        """What is built from here on belongs to the source line of `node`."""
        self.builder.debug_metadata = self.location(node)

    def location(self, node: ast.stmt) -> ir.DIValue:
        return self.module.add_debug_info(
            "DILocation",
            {"line": node.lineno, "column": node.col_offset + 1, "scope": self.scope},
        )

    def declare_variable(self, node: ast.FunctionDef, name: str, number: int) -> ir.AllocaInstr:
        """A place on the stack that debuggers know by name. Parameters are numbered from 1."""
        place = self.builder.alloca(INT, name=name)
        about = {
            "name": name,
            "scope": self.scope,
            "file": self.file,
            "line": node.lineno,
            "type": self.int_type,
        }
        if number <= len(node.args.args):
            about["arg"] = number
        variable = self.module.add_debug_info("DILocalVariable", about)
        expression = self.module.add_debug_info("DIExpression", {})
        call = self.builder.call(self.declare, [place, variable, expression])
        call.set_metadata("dbg", self.location(node))
        return place

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
        self.at(node)
        self.builder.cbranch(self.truth(node.test), body, done)
        self.builder.position_at_end(body)
        self.visit_all(node.body)
        self.builder.branch(test)
        self.builder.position_at_end(done)

    def truth(self, node: ast.expr) -> ir.Value:
        return self.builder.icmp_signed("!=", self.visit(node), INT(0))

    def visit_Name(self, node: ast.Name) -> ir.Value:
        return self.builder.load(self.variables[node.id])

    def visit_Constant(self, node: ast.Constant) -> ir.Value:
        return INT(node.value)

    def visit_BinOp(self, node: ast.BinOp) -> ir.Value:
        build = getattr(self.builder, OPERATORS[type(node.op)])
        return build(self.visit(node.left), self.visit(node.right))

    def visit_Compare(self, node: ast.Compare) -> ir.Value:
        comparison = COMPARISONS[type(node.ops[0])]
        left, right = self.visit(node.left), self.visit(node.comparators[0])
        return self.builder.zext(self.builder.icmp_signed(comparison, left, right), INT)

    def visit_Call(self, node: ast.Call) -> ir.Value:
        return self.builder.call(
            self.module.get_global(node.func.id), [self.visit(argument) for argument in node.args]
        )


def main() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    source = Path(__file__).resolve().with_name("collatz.tiny")
    machine = llvm.Target.from_default_triple().create_target_machine(opt=0)
    module = llvm.parse_assembly(str(Compiler(source).module))
    with llvm.create_mcjit_compiler(module, machine) as engine:
        listeners.attach(engine, listeners.GDBRegistration(), listeners.PerfMap())
        longest = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(
            engine.get_function_address("longest")
        )
        print(f"longest(1000000) = {longest(1000000)}")


if __name__ == "__main__":
    main()
