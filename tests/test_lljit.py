"""LLJIT, over either linker: libraries, what they draw from each other, and when each part goes."""

import ctypes
import gc
import os
import subprocess
import sys

import llvmlite.binding as llvm
import pytest
from heard import Int, Log, function
from jit import Program, target_machine

import listeners


@pytest.fixture(params=["rtdyld", "jitlink"])
def lljit(request) -> llvm.LLJIT:
    return Program(request.param).engine


def link(lljit, name, *texts, exports=(), libraries=()):
    builder = llvm.JITLibraryBuilder()
    for text in texts:
        builder.add_ir(text)
    for library in libraries:
        builder.add_jit_library(library)
    for export in exports:
        builder.export_symbol(export)
    return builder.link(lljit, name)


def test_a_library_of_ir_objects_files_and_assembly(lljit, tmp_path):
    machine = target_machine()
    image, file = (machine.emit_object(llvm.parse_assembly(function(n))) for n in ("o", "p"))
    path = tmp_path / "p.o"
    path.write_bytes(file)
    attachment = listeners.attach(lljit, Log())
    builder = llvm.JITLibraryBuilder().add_ir(function("i")).add_native_assembly(function("a"))
    builder.add_object_img(image).add_object_file(path)
    for name in "iaop":
        builder.export_symbol(name)
    tracker = builder.link(lljit, "library")
    found = {function.name: function for obj in attachment.objects for function in obj.functions}
    assert {name: found[name].address for name in "iaop"} == {
        name: tracker[name] for name in "iaop"
    }
    assert next(obj for obj in attachment.objects if obj.name == "o").elf == image


def test_what_is_not_looked_up_is_not_in_memory_and_not_announced(lljit):
    attachment = listeners.attach(lljit, log := Log())
    tracker = link(lljit, "library", function("now"), function("later"), exports=["now"])
    assert log.events == ["+now"]
    looked_up = lljit.lookup("library", "later")
    assert log.events == ["+now", "+later"]
    assert attachment.objects[1].function("later").address == looked_up["later"]
    tracker.close()
    assert sorted(log.events[2:]) == ["-later", "-now"]
    del looked_up


def test_what_one_library_draws_from_another_goes_with_that_other(lljit):
    listeners.attach(lljit, log := Log())
    lower = link(lljit, "lower", function("low", 4))
    assert log.events == []
    text = "declare i64 @low() define i64 @high() { %r = call i64 @low() ret i64 %r }"
    upper = link(lljit, "upper", text, exports=["high"], libraries=["lower"])
    assert sorted(log.events) == ["+high", "+low"]
    assert Int(upper["high"])() == 4
    upper.close()
    assert log.events[2:] == ["-high"]
    lower.close()
    assert log.events[2:] == ["-high", "-low"]


def test_a_tracker_collected_unloads_its_library(lljit):
    listeners.attach(lljit, log := Log())
    link(lljit, "library", function("f"), exports=["f"])
    gc.collect()
    assert log.events == ["+f", "-f"]


def test_a_closed_lljit_lives_as_long_as_a_tracker(lljit):
    listeners.attach(lljit, log := Log())
    tracker = link(lljit, "library", function("f", 8), exports=["f"])
    lljit.close()
    assert log.events == ["+f"]
    assert Int(tracker["f"])() == 8
    tracker.close()
    assert log.events == ["+f", "-f"]


def test_equal_names_in_two_libraries_are_kept_apart(lljit):
    attachment = listeners.attach(lljit, log := Log())
    first = link(lljit, "first", function("f", 1), function("g", 2), exports=["g"])
    second = link(lljit, "second", function("f", 3), exports=["f"])
    second.close()
    assert log.events == ["+g", "+f", "-f"]
    assert [obj.name for obj in attachment.objects] == ["g"]
    looked_up = lljit.lookup("first", "f")
    assert Int(looked_up["f"])() == 1
    first.close()
    assert sorted(log.events[3:]) == ["+f", "-f", "-g"]


def test_a_symbol_of_the_process_comes_before_that_of_another_library(lljit):
    listeners.attach(lljit, log := Log())
    missing = "declare i64 @nix()"
    shadowed = f"{missing} define i32 @getpid() {{ %r = call i64 @nix() ret i32 1 }}"
    lower = link(lljit, "lower", shadowed)
    text = "declare i32 @getpid() define i32 @who() { %r = call i32 @getpid() ret i32 %r }"
    builder = llvm.JITLibraryBuilder().add_ir(text).add_jit_library("lower").add_current_process()
    upper = builder.export_symbol("who").link(lljit, "upper")
    assert ctypes.CFUNCTYPE(ctypes.c_int)(upper["who"])() == os.getpid()
    assert log.events == ["+who"]
    del lower


def test_of_weak_and_strong_definitions_the_strong_one_is_in_memory(lljit):
    attachment = listeners.attach(lljit, Log())
    weak = "define weak i64 @f() { ret i64 1 }"
    tracker = link(lljit, "library", weak, function("f", 2), exports=["f"])
    assert Int(tracker["f"])() == 2
    assert tracker["f"] in {obj.function("f").address for obj in attachment.objects}


@pytest.mark.parametrize("linkage", ["private", "internal", "weak", ""])
@pytest.mark.parametrize("name", ["set", "a name", "ünïcode", r"quo\22te"])
def test_constructors_of_any_kind_run(lljit, linkage, name):
    listeners.attach(lljit, Log())
    text = f"""
    @value = global i64 1
    @llvm.global_ctors = appending global [1 x {{ i32, ptr, ptr }}]
      [{{ i32, ptr, ptr }} {{ i32 65535, ptr @"{name}", ptr @value }}]
    define {linkage} void @"{name}"() {{ store i64 2, ptr @value ret void }}
    define i64 @get() {{ %v = load i64, ptr @value ret i64 %v }}
    """
    builder = llvm.JITLibraryBuilder().add_ir(text).add_current_process()
    tracker = builder.export_symbol("get").link(lljit, "library")
    assert Int(tracker["get"])() == 2


CONSTRUCTOR = """
@value = global i64 1
@llvm.global_ctors = appending global [1 x { i32, ptr, ptr }]
  [{ i32, ptr, ptr } { i32 65535, ptr @set, ptr null }]
define internal void @set() { store i64 2, ptr @value ret void }
define i64 @get() { %v = load i64, ptr @value ret i64 %v }
"""


def test_static_constructors_run_and_their_functions_are_announced(lljit):
    attachment = listeners.attach(lljit, Log())
    builder = llvm.JITLibraryBuilder().add_ir(CONSTRUCTOR).add_current_process()
    tracker = builder.export_symbol("get").link(lljit, "library")
    assert Int(tracker["get"])() == 2
    names = {function.name for obj in attachment.objects for function in obj.functions}
    assert names >= {"get", "set"}


BAD_LINKS = {
    "unresolved": ["declare i64 @nix() define i64 @f() { %r = call i64 @nix() ret i64 %r }"],
    "no such export": ["define i64 @g() { ret i64 1 }"],
    "syntax": ["define i64 @f() { ret }"],
    "duplicate": ["define i64 @f() { ret i64 1 }"] * 2,
    "data layout": ['target datalayout = "e" define i64 @f() { ret i64 1 }'],
}


@pytest.mark.parametrize("texts", BAD_LINKS.values(), ids=BAD_LINKS)
def test_the_users_link_errors_are_what_they_were(linker, texts):
    if linker == "mcjit":
        linker = "rtdyld"
    script = f"""
import jit, llvmlite.binding as llvm
jit.initialize()
engine = jit.Program({linker!r}).engine
builder = llvm.JITLibraryBuilder()
for text in {texts!r}:
    builder.add_ir(text)
for attempt in 1, 2:
    try:
        builder.export_symbol("f").link(engine, "library")
    except RuntimeError as error:
        print(error)
"""
    bare = script.replace("import jit,", f"{BARE_JIT}\nimport jit,")
    assert output(script) == output(bare)


# `jit` imports listeners; this puts an empty module in its place.
BARE_JIT = "import sys, types; sys.modules['listeners'] = types.ModuleType('listeners')"


def output(script: str) -> str:
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout
