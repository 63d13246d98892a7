"""JITLink: what is compiled ahead of it is what the engine would have compiled."""

import json
import subprocess
import sys

import pytest

GENERATED = """
import ctypes, json, sys
import llvmlite.binding as llvm
if heard:
    import listeners
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
options = json.loads(sys.argv[1])
machine = None
if options is not None:
    machine = llvm.Target.from_default_triple().create_target_machine(**options)
engine = llvm.create_lljit_compiler(machine, use_jit_link=True)
text = '''
define double @dot(ptr noalias %x, ptr noalias %y, i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %sum = phi <8 x double> [ zeroinitializer, %entry ], [ %more, %loop ]
  %p = getelementptr double, ptr %x, i64 %i
  %q = getelementptr double, ptr %y, i64 %i
  %a = load <8 x double>, ptr %p
  %b = load <8 x double>, ptr %q
  %c = fmul fast <8 x double> %a, %b
  %more = fadd fast <8 x double> %sum, %c
  %next = add i64 %i, 8
  %again = icmp ult i64 %next, %n
  br i1 %again, label %loop, label %done
done:
  %low = extractelement <8 x double> %more, i64 0
  %high = extractelement <8 x double> %more, i64 7
  %both = fadd double %low, %high
  ret double %both
}
define void @end() { ret void }
'''
library = llvm.JITLibraryBuilder().add_ir(text).export_symbol("dot").export_symbol("end")
tracker = library.link(engine, "library")
print(ctypes.string_at(tracker["dot"], tracker["end"] - tracker["dot"]).hex())
"""


def generated(options, heard: bool) -> str:
    command = [sys.executable, "-c", f"heard = {heard}{GENERATED}", json.dumps(options)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"jit": True, "opt": 0},
        {"cpu": "haswell", "opt": 3},
        {"cpu": "skylake-avx512", "opt": 2},
        {"features": "+avx,-avx2,-fma"},
        {"codemodel": "small", "reloc": "pic"},
    ],
    ids=str,
)
def test_the_code_is_the_engines_own(options):
    bare = generated(options, heard=False)
    assert len(bare) > 100
    assert generated(options, heard=True) == bare
