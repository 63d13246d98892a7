"""`jitlisten stackmap`: the tables of an object file, for people and as JSON."""

import json
import random
import re
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import faults
import pytest
from statepoints import random_module
from test_safepoint_tables import THROWING, made_by_llc
from test_safepoints import chain, compiled
from test_stackmap import emitted
from tools import run, tool

import jitlisten
from jitlisten.stackmap import RecordingObject, show
from listeners.functions import read_functions
from listeners.objectfile import ObjectFile

OTHERS = """
declare void @llvm.experimental.stackmap(i64, i32, ...)
declare void @llvm.experimental.patchpoint.void(i64, i32, ptr, i32, ...)
define void @g(i64 %a) {
  call void (i64, i32, ...) @llvm.experimental.stackmap(i64 5, i32 0, i64 %a, i64 -1)
  %b = mul i64 %a, %a
  call void (i64, i32, ptr, i32, ...) @llvm.experimental.patchpoint.void(
    i64 6, i32 16, ptr null, i32 0, i64 %b)
  ret void
}
"""


def written(directory: Path, elf: bytes) -> str:
    path = directory / "object.o"
    path.write_bytes(elf)
    return str(path)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert jitlisten.main(["stackmap", *arguments]) == 0
    return capsys.readouterr().out


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_safepoints_are_shown_by_function_and_offset(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    path = written(tmp_path, compiled(chain(0, depth=1)))
    table = rows(shown(capsys, path))
    assert table[0] == path
    assert "place kind id frame values" in table
    found = [row for row in table if row.startswith("f0+")]
    pattern = r"f0\+0x[0-9a-f]+ statepoint 1 24 roots \[rsp[+]\d+\]; deopt \[rsp[+]\d+\]"
    assert re.fullmatch(pattern, found[0])
    path = written(tmp_path, compiled(OTHERS))
    table = rows(shown(capsys, path))
    found = [row for row in table if row.startswith("g+")]
    assert re.fullmatch(r"g\+0x[0-9a-f]+ stackmap 5 \d+ locations rdi -1", found[0])
    assert re.fullmatch(r"g\+0x[0-9a-f]+ patchpoint 6 .* live out rbx.*", found[1])


def test_json_has_roots_with_registers_and_no_addresses_of_what_is_not_loaded(tmp_path, capsys):
    elf = compiled(chain(0, depth=1))
    (one,) = json.loads(shown(capsys, written(tmp_path, elf), "--json"))["objects"]
    first, second = one["safepoints"]
    assert (first["function"], first["address"], first["kind"]) == ("f0", None, "statepoint")
    assert first["roots"] == [[first["roots"][0][0]] * 2]
    assert first["roots"][0][0]["register"] == "rsp"
    assert (first["id"], second["id"]) == (1, 3)
    assert "f0" in [frame["function"] for frame in one["frames"]]


def test_registers_are_those_of_the_objects_machine(tmp_path, capsys):
    elf = emitted(chain(0, depth=1), "aarch64-unknown-linux-gnu", 2)
    (one,) = json.loads(shown(capsys, written(tmp_path, elf), "--json"))["objects"]
    assert one["safepoints"][0]["roots"][0][0]["register"] == "sp"


def test_loaded_objects_are_shown_at_their_addresses(capsys):
    elf = compiled(chain(0, depth=1))
    file = ObjectFile(elf)
    addresses = {i: 0x7F00_0000_0000 + 0x10000 * i for i in range(len(file.sections))}
    assert show([RecordingObject("one", elf, addresses)], as_json=True) == 0
    (one,) = json.loads(capsys.readouterr().out)["objects"]
    function = next(one for one in read_functions(file, addresses) if one.name == "f0")
    first = one["safepoints"][0]
    assert first["address"] == function.address + first["offset"]


def test_call_sites_show_what_they_catch(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    table = rows(shown(capsys, written(tmp_path, compiled(THROWING.replace("SEEN", "0")))))
    found = [row for row in table if row.count("sites+") == 2]
    caught = [row.split(maxsplit=3)[3] for row in found]
    assert caught == ["_ZTIl, _ZTIi", "all", "all but (_ZTIi), cleanup"]


@pytest.mark.parametrize(
    ("strategy", "title"), [("erlang", ".note.gc"), ("ocaml", "OCaml frametable")]
)
def test_tables_of_other_collectors_are_shown(strategy, title, tmp_path, capsys):
    table = rows(shown(capsys, written(tmp_path, made_by_llc(strategy, tmp_path))))
    assert title in table
    assert sum(bool(re.fullmatch(r"[fg]\+0x\w+ \d+( \[sp\+\d+\])+", row)) for row in table) == 4


def test_fault_maps_are_shown(tmp_path, capsys):
    source, result = tmp_path / "faults.ll", tmp_path / "faults.o"
    source.write_text(faults.TEXT)
    options = "-O2", "-enable-implicit-null-checks", "-filetype=obj", "-o"
    run(tool("llc-19"), *options, str(result), str(source))
    table = rows(shown(capsys, str(result)))
    assert "Faults" in table
    assert any(re.fullmatch(r"read\+0x0 load read\+0x[1-9a-f]+", row) for row in table)
    assert any(re.fullmatch(r"write\+0x0 store write\+0x[1-9a-f]+", row) for row in table)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), (b"hello", "an ELF object of 5 bytes"), (bytes(100), "not a little-")],
)
def test_what_cannot_be_read_is_one_line_and_a_status(content, problem, tmp_path, capsys):
    path = tmp_path / "object.o"
    if content is not None:
        path.write_bytes(content)
    assert jitlisten.main(["stackmap", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"jitlisten stackmap: {path}: ")
    assert problem in line


def test_a_malformed_root_is_shown_in_its_row_and_gives_a_status(tmp_path, capsys):
    elf = bytearray(compiled(chain(0, depth=1)))
    file = ObjectFile(bytes(elf))
    names = [file.section_name(index) for index in range(len(file.sections))]
    start = file.sections[names.index(".llvm_stackmaps")].offset
    elf[start + 16 + 24 + 16 + 4 * 12] = 1  # the first root: in a register
    assert jitlisten.main(["stackmap", written(tmp_path, bytes(elf)), "--json"]) == 1
    (one,) = json.loads(capsys.readouterr().out)["objects"]
    assert "location 5: a root in a register" in one["safepoints"][0]["error"]
    assert "roots" in one["safepoints"][1]


def test_a_file_without_end_is_refused_at_its_beginning(capsys):
    assert jitlisten.main(["stackmap", "/dev/zero"]) == 1
    assert "/dev/zero: not a little-endian ELF64 file" in capsys.readouterr().err


def test_objects_with_changed_bytes_are_shown_or_refused(capsys):
    chance = random.Random(3)
    texts = [random_module(1), random_module(3), chain(0), THROWING.replace("SEEN", "0")]
    elves = [compiled(text) for text in texts]
    refused = 0
    for _ in range(600):
        elf = bytearray(chance.choice(elves))
        for _ in range(chance.randrange(1, 6)):
            elf[chance.randrange(len(elf))] = chance.choice((0, 1, 8, 0x7F, 0xFF))
        refused += show([RecordingObject("x", bytes(elf), None)], as_json=True)
    capsys.readouterr()
    assert 50 < refused < 550


def test_an_object_with_nothing_recorded_has_no_table_unless_all_are_such(capsys):
    nothing = RecordingObject("nothing", compiled("@x = global i64 1"), None)
    recording = RecordingObject("recording", compiled(chain(0, depth=1)), None)
    assert show([nothing, recording, nothing], as_json=False) == 0
    table = rows(capsys.readouterr().out)
    assert table[0] == "recording"
    assert "Safepoints" in table
    assert not {"nothing", "nothing recorded"} & set(table)
    assert show([nothing, nothing], as_json=False) == 0
    assert capsys.readouterr().out == "nothing recorded\n"
    assert show([nothing, recording], as_json=True) == 0
    found = json.loads(capsys.readouterr().out)["objects"]
    assert [one["name"] for one in found] == ["nothing", "recording"]


LOADED = """
import sys
from pathlib import Path
from subprocess import PIPE, Popen
import llvmlite.binding as llvm
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
machine = llvm.Target.from_default_triple().create_target_machine()
nothing = llvm.parse_assembly("")
engine = llvm.create_mcjit_compiler(nothing, machine)
engine.remove_module(nothing)
engine.add_object_file(llvm.ObjectFileRef.from_data(Path(sys.argv[1]).read_bytes()))
engine.add_global_mapping(llvm.parse_assembly("declare void @safepoint()").get_function(
    "safepoint"), 4096)
engine.finalize_object()
print(engine.get_function_address("f0"), flush=True)
input()
"""


def test_what_a_process_has_loaded_is_shown_at_its_addresses(tmp_path, capsys):
    path = written(tmp_path, compiled(chain(0, depth=1)))
    (file,) = json.loads(shown(capsys, path, "--json"))["objects"]
    command = sys.executable, "-c", LOADED, path
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        start = int(process.stdout.readline())
        (loaded,) = json.loads(shown(capsys, str(process.pid), "--json"))["objects"]
        process.communicate("\n")
    addresses = [safepoint.pop("address") for safepoint in loaded["safepoints"]]
    for safepoint in file["safepoints"]:
        assert safepoint.pop("address") is None
    assert loaded["safepoints"] == file["safepoints"]
    assert addresses[0] == start + file["safepoints"][0]["offset"]
    assert jitlisten.main(["stackmap", str(process.pid)]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(rf"jitlisten stackmap: .*{process.pid}.*\n", error)
