"""Code for perf to sample, with whatever listeners the environment asks for.

    reported.py collatz LINKER    `longest` calls `steps`, with lines; LINKER may be numba
    reported.py names             functions with names that are hard to read
    reported.py inlined           a function with another one inlined, by the lines of INLINED
    reported.py processes         `both`, and in a child of another name `child`

With -X perf, Python's own functions are named in the map file, too. It prints its process number.
"""

import os
import re
import sys
from pathlib import Path

from jit import EXAMPLES, Long, Program, initialize, loop_ir, source_ir

ROUNDS = 100_000_000
NAMES = (
    "semi;colon", "two words (and) parens", "two\nlines", "<&\"']]>", "größe", "f+0x1 (/x)", "%d%s"
)  # fmt: skip
# The lines of the loop are those of `inner`, line 20 on, which `outer` calls in line 11.
INLINED = """
define i64 @outer(i64 %n) "frame-pointer"="all" !dbg !4 {
entry:
  br label %loop, !dbg !10
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ], !dbg !12
  %x = phi i64 [ 1, %entry ], [ %y, %loop ], !dbg !12
  %y = mul i64 %x, 3, !dbg !11
  %next = add i64 %i, 1, !dbg !12
  %more = icmp slt i64 %next, %n, !dbg !12
  br i1 %more, label %loop, label %done, !dbg !12
done:
  ret i64 %y, !dbg !13
}
!llvm.module.flags = !{!0}
!llvm.dbg.cu = !{!1}
!0 = !{i32 2, !"Debug Info Version", i32 3}
!1 = distinct !DICompileUnit(language: DW_LANG_C, file: !2, isOptimized: true,
                             emissionKind: FullDebug)
!2 = !DIFile(filename: "program.txt", directory: "DIRECTORY")
!3 = !DISubroutineType(types: !{null})
!4 = distinct !DISubprogram(name: "outer", file: !2, line: 10, type: !3, unit: !1,
                            spFlags: DISPFlagDefinition)
!5 = distinct !DISubprogram(name: "inner", file: !2, line: 20, type: !3, unit: !1,
                            spFlags: DISPFlagDefinition)
!9 = distinct !DILocation(line: 11, scope: !4)
!10 = !DILocation(line: 10, scope: !4)
!11 = !DILocation(line: 21, scope: !5, inlinedAt: !9)
!12 = !DILocation(line: 22, scope: !5, inlinedAt: !9)
!13 = !DILocation(line: 12, scope: !4)
"""


def collatz(linker: str) -> None:
    if linker == "numba":
        from numbatiny import compiled

        longest = compiled(EXAMPLES / "collatz.tiny")["longest"]
    else:
        text = re.sub(r"(define .*?\))", r'\1 "frame-pointer"="all"', source_ir())
        longest = load("longest", text, linker)
    longest(1_000_000)


def load(name: str, text: str, linker: str = "mcjit"):
    program = Program(linker)
    programs.append(program)
    return Long(program.load(text, name)[0])


def names() -> None:
    for number, name in enumerate(NAMES):
        escaped = "".join(f"\\{byte:02x}" for byte in name.encode())
        # an engine finds functions by plain names only: the one with the work is called by it
        caller = f"""
        define i64 @plain{number}(i64 %n) {{
          %result = call i64 @"{escaped}"(i64 %n)
          ret i64 %result
        }}
        """
        work = loop_ir("PLACEHOLDER").replace("PLACEHOLDER", f'"{escaped}"')
        load(f"plain{number}", work + caller)(ROUNDS // 2)


def inlined() -> None:
    load("outer", INLINED.replace("DIRECTORY", str(Path.cwd())))(3 * ROUNDS)


def processes() -> None:
    both = load("both", loop_ir("both"))
    child = os.fork()
    if not child:
        Path("/proc/self/comm").write_text("other name")
        load("child", loop_ir("child"))(ROUNDS)
    both(ROUNDS)
    if not child:
        os._exit(0)
    print(child)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


if __name__ == "__main__":
    print(os.getpid(), flush=True)
    initialize()
    programs: list[Program] = []
    globals()[sys.argv[1]](*sys.argv[2:])
