"""`place_statepoints`: a front end writes calls and references; a collector finds all of them."""

import ctypes
import re
import sys

import llvmlite.binding as llvm
import pytest
from collector import Runtime
from jit import target_machine
from llvmlite import ir
from tools import PROGRAMS, run

from listeners import JITListenerError
from listeners.objectfile import ObjectFile
from listeners.safepoints import StackMaps, place_statepoints

REF = "ptr addrspace(1)"
GC = 'gc "statepoint-example"'
DECLARED = f"""
declare void @poll()
declare {REF} @make()
declare void @leaf({REF}) "gc-leaf-function"
declare i32 @__gxx_personality_v0(...)
"""


def placed(text: str) -> str:
    return str(place_statepoints(llvm.parse_assembly(DECLARED + text)))


def refusal(text: str) -> str:
    with pytest.raises(JITListenerError) as refused:
        placed(text)
    return str(refused.value)


@pytest.mark.parametrize("first", [0, 40])
def test_random_functions_compute_the_same_where_objects_move(first):
    printed = run(sys.executable, str(PROGRAMS / "moving.py"), str(first), str(first + 40))
    rows = [line.split() for line in printed.splitlines()]
    assert len(rows) == 40
    assert sum(int(row[4]) for row in rows) > 500  # roots
    assert sum(int(row[5]) for row in rows) > 50  # of which derived


def test_derived_pointers_follow_their_objects(linker):
    runtime = Runtime(linker)
    (address,) = runtime.load(
        place_statepoints(
            llvm.parse_assembly(
                runtime.code
                + f"""
                define i64 @f(i64 %n) {GC} {{
                  %o = call {REF} @alloc(i64 0, i64 4)
                  %inside = getelementptr i64, {REF} %o, i64 3
                  store i64 %n, {REF} %inside
                  call void @poll()
                  call void @poll()
                  %v = load i64, {REF} %inside
                  ret i64 %v
                }}"""
            )
        ),
        "f",
    )
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)
    assert function(41) == 41
    assert runtime.heap.moved == 2
    assert runtime.derived == 2
    runtime.rewrite = False
    assert function(41) != 41


def test_the_module_given_stays_as_it_was():
    module = llvm.parse_assembly(
        DECLARED + f"define void @f() {GC} {{ call void @poll() ret void }}"
    )
    before = str(module)
    after = place_statepoints(module)
    assert str(module) == before
    assert "gc.statepoint" in str(after)


@pytest.mark.parametrize("module", [ir.Module(), "define void @f() { ret void }"])
def test_a_module_that_is_not_parsed_is_refused(module):
    with pytest.raises(JITListenerError, match=r"llvm\.parse_assembly\(str\(module\)\)"):
        place_statepoints(module)


def test_functions_without_a_strategy_stay_as_they_are():
    assert "statepoint" not in placed("define void @f() { call void @poll() ret void }")
    assert "gc.statepoint" not in placed(
        'define void @f() gc "shadow-stack" { call void @poll() ret void }'
    )


@pytest.mark.parametrize(
    "call",
    [
        f"call void @leaf({REF} %o)",
        'call void @poll() "gc-leaf-function"',
        'call void asm sideeffect "nop", ""()',
        f"call void @llvm.memset.p1.i64({REF} %o, i8 0, i64 8, i1 false)",
    ],
)
def test_what_cannot_collect_is_no_safepoint(call):
    assert "gc.statepoint" not in placed(f"define void @f({REF} %o) {GC} {{ {call} ret void }}")


def test_a_musttail_call_leaves_no_frame_to_walk():
    text = placed(f"define void @f() {GC} {{ musttail call void @poll() ret void }}")
    assert "musttail call void @poll()" in text
    assert "gc.statepoint" not in text


@pytest.mark.parametrize(
    ("call", "callee"),
    [
        ("call void %p()", "ptr elementtype(void ()) %p"),
        ("call void inttoptr (i64 4096 to ptr)()", "inttoptr (i64 4096 to ptr)"),
        ("tail call fastcc void @poll()", "call fastcc token"),
        ('call void @poll() "statepoint-id"="77"', "(i64 77, i32 0"),
        ('call void @poll() [ "deopt"(i64 %n, i32 7) ]', '"deopt"(i64 %n, i32 7)'),
        ("call void (i32, ...) @variadic(i32 1, i64 %n)", "(i32, ...)) @variadic, i32 2, i32 0"),
        ("call void @small(i8 3)", "i8 zeroext 3"),
        ("call void @small(i8 noundef zeroext 3)", "i8 zeroext 3"),
        ('call void @"a b"()', '@"a b"'),
    ],
)
def test_every_other_call_is_one(call, callee):
    text = placed(
        'declare void @variadic(i32, ...)\ndeclare void @small(i8 zeroext)\ndeclare void @"a b"()'
        f"define void @f(ptr %p, i64 %n) {GC} {{ {call} ret void }}"
    )
    (line,) = (line for line in text.splitlines() if "= call" in line)
    assert "gc.statepoint" in line
    assert callee in line


def test_only_what_is_live_after_a_call_is_recorded():
    text = placed(
        f"""
        define {REF} @f({REF} %dead, {REF} %live) {GC} {{
          call void @leaf({REF} %dead)
          %made = call {REF} @make()
          call void @leaf({REF} %made)
          ret {REF} %live
        }}"""
    )
    assert re.findall(r'"gc-live"\((.*?)\) \]', text) == [f"{REF} %live"]


def test_a_reference_among_deopt_values_is_recorded_too():
    text = placed(
        f"define void @f({REF} %o) {GC} {{"
        f' call void @poll() [ "deopt"({REF} %o, i64 1) ] ret void }}'
    )
    assert f'[ "deopt"({REF} %o, i64 1), "gc-live"({REF} %o) ]' in text
    text = placed(
        f"define void @f({REF} %o) {GC} personality ptr @__gxx_personality_v0 {{"
        f' invoke void @poll() [ "deopt"({REF} %o, i64 1) ] to label %out unwind label %pad'
        " out: ret void pad: %l = landingpad { ptr, i32 } cleanup ret void }"
    )
    assert f'[ "deopt"({REF} %o, i64 1), "gc-live"({REF} %o) ]' in text


def test_bases_that_meet_meet_in_a_phi_of_their_own():
    text = placed(
        f"""
        define i64 @f(i1 %c, {REF} %a, {REF} %b) {GC} {{
          br i1 %c, label %one, label %two
        one:
          %x = getelementptr i8, {REF} %a, i64 8
          br label %both
        two:
          %y = getelementptr i8, {REF} %b, i64 16
          br label %both
        both:
          %d = phi {REF} [ %x, %one ], [ %y, %two ]
          call void @poll()
          %v = load i64, {REF} %d
          ret i64 %v
        }}"""
    )
    (base,) = re.findall(rf"(%\S+) = phi {re.escape(REF)} \[ %a, %one \], \[ %b, %two \]", text)
    (live,) = re.findall(r'"gc-live"\((.*?)\) \]', text)
    assert set(live.split(", ")) == {f"{REF} {base}", f"{REF} %d"}
    assert f"; ({base}, %d)" in text  # as LLVM comments a relocate of what is derived


def test_a_reference_left_in_an_alloca_is_a_root_from_the_entry_on():
    text = placed(
        f"""
        declare void @out(ptr)
        define {REF} @f() {GC} {{
          %slot = alloca {REF}
          call void @llvm.lifetime.start.p0(ptr %slot)
          call void @poll()
          call void @out(ptr %slot)
          %o = load {REF}, ptr %slot
          ret {REF} %o
        }}"""
    )
    assert f"store {REF} null, ptr %slot" in text
    assert text.count('"gc-live"(ptr %slot)') == 2
    assert "call void @llvm.lifetime" not in text  # or its memory could be another one's


def test_references_in_vectors_are_roots_each():
    text = placed(
        f"""
        define <2 x {REF}> @f({REF} %o) {GC} {{
          %v = load <2 x {REF}>, {REF} %o
          call void @poll()
          ret <2 x {REF}> %v
        }}"""
    )
    machine = target_machine(opt=2)
    obj = machine.emit_object(llvm.parse_assembly(text))
    file = ObjectFile(obj)
    names = [file.section_name(index) for index in range(len(file.sections))]
    ((_, record),) = StackMaps(file.contents(names.index(".llvm_stackmaps"))).records()
    assert [location.size for location in record.locations[3:]] == [16, 16]


def test_calls_keep_their_source_lines():
    text = placed(
        f"""
        define void @f() {GC} !dbg !4 {{ call void @poll(), !dbg !5 ret void, !dbg !5 }}
        !llvm.dbg.cu = !{{!0}}
        !llvm.module.flags = !{{!2}}
        !0 = distinct !DICompileUnit(language: DW_LANG_C, file: !1, emissionKind: FullDebug)
        !1 = !DIFile(filename: "f", directory: "/")
        !2 = !{{i32 2, !"Debug Info Version", i32 3}}
        !3 = !DISubroutineType(types: !{{null}})
        !4 = distinct !DISubprogram(name: "f", file: !1, line: 1, type: !3, unit: !0,
                                    spFlags: DISPFlagDefinition)
        !5 = !DILocation(line: 7, scope: !4)
        """
    )
    (statepoint,) = (line for line in text.splitlines() if "= call token" in line)
    (number,) = re.findall(r", !dbg (!\d+)", statepoint)
    assert f"{number} = !DILocation(line: 7" in text


def test_loads_that_llvm_could_move_across_a_collection_lose_what_allows_that():
    text = placed(
        f"""
        define i64 @f({REF} noalias dereferenceable(8) %o) {GC} {{
          call void @poll()
          %v = load i64, {REF} %o, !invariant.load !{{}}
          ret i64 %v
        }}"""
    )
    assert "invariant.load" not in text
    assert "dereferenceable" not in text


QUOTED = {
    "assembly": (
        f'call void asm sideeffect "mov $0, %rax", "r"({REF} %rax)',
        '"mov $0, %rax"',
    ),
    "a constant": (
        f'%s = insertvalue {{ [4 x i8], {REF} }} {{ [4 x i8] c"%rax", {REF} null }}, {REF} %rax, 1'
        f" store {{ [4 x i8], {REF} }} %s, ptr %p",
        'c"%rax"',
    ),
    "an attribute like a call": (f'%s = call "x"="fastcc @f(" {REF} @make()', "token (i64"),
    "an attribute of an argument": ('call void @take(ptr "x"="),(" %p)', "i32 1, i32 0, ptr %p,"),
    "a deopt value": (
        'call void @poll() [ "deopt"([6 x i8] c"] %rax", [2 x i64] zeroinitializer) ]',
        '"deopt"([6 x i8] c"] %rax", [2 x i64] zeroinitializer)',
    ),
    "a name": ('call void @"x)(@poll("()', '@"x)(@poll("'),
}


@pytest.mark.parametrize("case", QUOTED)
def test_what_is_in_quotes_is_not_taken_for_code(case):
    body, kept = QUOTED[case]
    text = placed(
        'declare void @take(ptr)\ndeclare void @"x)(@poll("()\n'
        f'define void @"f gc \\22erlang\\22"({REF} %rax, ptr %p) section ") gc " align 16 {GC} {{'
        f" call void @poll() {body} call void @leaf({REF} %rax) ret void }}"
    )
    assert kept in text
    assert "fastcc" not in text
    assert f'"gc-live"({REF} %rax)' in text


def test_code_that_control_never_gets_to_is_left_out():
    text = placed(
        f"""
        @address = global ptr blockaddress(@f, %alone)
        define {REF} @f({REF} %o) {GC} {{
          call void @poll()
          br label %out
        alone:
          %inside = getelementptr i8, {REF} %inside, i64 8
          %same = freeze {REF} %same
          %place = getelementptr i8, ptr %place, i64 8
          store {REF} %inside, ptr %place
          call void @poll()
          br label %out
        out:
          %p = phi {REF} [ %o, %0 ], [ %inside, %alone ]
          ret {REF} %p
        }}"""
    )
    assert text.count("call token") == 1
    assert "blockaddress(@f, %alone)" in text
    assert "freeze" not in text


def test_it_refuses_references_in_an_argument_that_is_copied():
    said = refusal(
        f"%Inner = type {{ {REF} }}\n"
        f"define void @f(ptr byval({{ i64, %Inner }}) %p) {GC} {{ call void @poll() ret void }}"
    )
    assert "references in an argument by byval" in said


def test_it_refuses_functions_without_names():
    said = refusal(f"define void @0() {GC} {{ call void @poll() ret void }}")
    assert "a function without a name" in said


AROUND = {
    "an alloca of references and others": (
        f"%a = alloca {{ i64, {REF} }} store {{ i64, {REF} }} zeroinitializer, ptr %a",
        "no record can name the references",
    ),
    "an array of references": (f"%a = alloca [2 x {REF}]", "no record can name the references"),
    "an alloca of a named struct with references": (
        "%a = alloca [2 x %Outer]",
        "no record can name the references",
    ),
    "an alloca of a struct whose name is quoted": (
        '%a = alloca %"of references"',
        "no record can name the references",
    ),
    "a reference in an alloca of bytes": (
        f"%a = alloca [16 x i8] %b = getelementptr i8, ptr %a, i64 8 store {REF} %o, ptr %b",
        "no record can name the references",
    ),
    "a reference in one of two allocas": (
        f"%a = alloca i64 %b = alloca i64 %n = load i1, ptr %p %c = select i1 %n, ptr %a, ptr %b"
        f" store {REF} %o, ptr %c",
        "no record can name the references",
    ),
    "a reference from an alloca that was copied to": (
        f"%a = alloca [2 x i64] call void @llvm.memcpy.p0.p0.i64(ptr %a, ptr %p, i64 16, i1 0)"
        f" call void @poll() %x = load {REF}, ptr %a call void @leaf({REF} %x)",
        "no record can name the references",
    ),
    "an id of too many bits": (
        'call void @poll() "statepoint-id"="18446744073709551616"',
        "more than 64 bits",
    ),
    "an alloca that is no variable": (f"br label %x x: %a = alloca {REF}", "no record can name"),
    "a stored pointer into an object": (
        f"%i = getelementptr i8, {REF} %o, i64 8 store {REF} %i, ptr %p",
        "%i points into an object",
    ),
    "a pointer into an object in a struct": (
        f"%i = getelementptr i8, {REF} %o, i64 8"
        f" %s = insertvalue {{ i64, {REF} }} poison, {REF} %i, 1",
        "%i points into an object",
    ),
    "a pointer into an object that is passed": (
        f"%i = getelementptr i8, {REF} %o, i64 8 call void @take({REF} %i)",
        "%i points into an object",
    ),
    "a struct with a reference across a call": (
        f"%s = call {{ i64, {REF} }} @two() call void @poll()"
        f" %x = extractvalue {{ i64, {REF} }} %s, 1 call void @leaf({REF} %x)",
        "%s holds references among other data",
    ),
    "a result that no registers hold": (
        "%s = call { i64, i64, i64, i64 } @four()",
        "cannot return more than 2 registers hold",
    ),
    "a variadic call with a result": (
        "%s = call i64 (...) @variadic()",
        "no statepoint for a variadic call with a result",
    ),
    "an argument that is copied": ("call void @byval(ptr byval(i64) %p)", "by byval(i64)"),
    "an argument whose parameter is copied": ("call void @byval(ptr %p)", "by byval(i64)"),
    "another operand bundle": (
        'call void @poll() [ "kcfi"(i32 7) ]',
        "cannot take the operand bundle 'kcfi'",
    ),
    "statepoints already there": (
        "%t = call token (i64, i32, ptr, i32, i32, ...) @llvm.experimental.gc.statepoint.p0("
        "i64 1, i32 0, ptr elementtype(void ()) @poll, i32 0, i32 0, i32 0, i32 0)",
        "no statepoints can be placed around this",
    ),
    "a result in a register of its own kind": (
        "%s = call x86_fp80 @extended()",
        "cannot return x86_fp80",
    ),
    "an argument of nothing": ("call void @nothing({} zeroinitializer)", "an argument of type {}"),
    "a deopt value in several registers": (
        'call void @poll() [ "deopt"(<2 x ptr> zeroinitializer) ]',
        "a deopt value of type <2 x ptr>",
    ),
    "an unwind destination of another kind": (
        "invoke void @poll() to label %out unwind label %pad pad: %c = cleanuppad within none []"
        " cleanupret from %c unwind to caller out:",
        "does not unwind to a landing pad",
    ),
    "a small vector that a call returns or throws": (
        "%s = invoke <2 x half> @small() to label %out unwind label %pad"
        " pad: %l = landingpad { ptr, i32 } cleanup br label %out out:",
        "cannot return <2 x half>",
    ),
    "vectors of pointers into objects": (
        f"%i = getelementptr i8, {REF} %o, <2 x i64> <i64 8, i64 16> call void @poll()"
        f" %x = extractelement <2 x {REF}> %i, i32 0 call void @leaf({REF} %x)",
        "optimise without vectorisation",
    ),
}


@pytest.mark.parametrize("case", AROUND)
def test_it_refuses_what_no_record_can_name(case):
    body, problem = AROUND[case]
    said = refusal(
        f'%"of references" = type {{ {REF} }}\n'
        f"%Inner = type {{ {REF} }}\n%Outer = type {{ i64, %Inner }}\n"
        f"declare {{ i64, {REF} }} @two()\ndeclare {{ i64, i64, i64, i64 }} @four()\n"
        f"declare void @take({REF})\n"
        "declare i64 @variadic(...)\ndeclare void @byval(ptr byval(i64))\n"
        "declare x86_fp80 @extended()\ndeclare void @nothing({})\ndeclare <2 x half> @small()\n"
        f"define void @f({REF} %o, ptr %p) {GC} personality ptr @__gxx_personality_v0 {{"
        f" {body} ret void }}"
    )
    assert said.startswith("function 'f'")
    assert problem in said


@pytest.mark.parametrize("strategy", ["erlang", "ocaml", "mine"])
def test_it_refuses_strategies_without_statepoints(strategy):
    said = refusal(f'define void @f() gc "{strategy}" {{ call void @poll() ret void }}')
    assert "'f'" in said
    assert repr(strategy) in said


def test_it_refuses_a_module_that_is_not_valid():
    assert "is not valid" in refusal("define i64 @f() { %a = add i64 %a, 1 ret i64 %a }")
