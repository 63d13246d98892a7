"""`jitlisten stackmap`: what objects record of call sites, roots, faults and exceptions.

With `--json`, one object on stdout, in which an address is null where the object is not loaded and
a place is {"function": name, "offset": bytes, "address": int or null}:

    {"objects": [{"name":
      "safepoints": [{**place, "kind": "statepoint" | "patchpoint" | "stackmap", "id",
                      "frame_size": bytes, or null if not always the same,
                      "calling_convention", "flags", "deopt": [location], "allocas": [location],
                      "roots": [[slot or null, slot or null]]: base and derived,  of statepoints,
                      "locations": [location], "live_outs": [[register, bytes]]    of others,
                      "error": why it is not understood}]
      "faults": [{**place, "kind": "load" | "load_store" | "store", "handler": place}]
      "call_sites": [{**place, "size", "landing_pad": place or null,
                      "actions": [{"filter", "types": [symbol, or null: all]}]}]
      "frames": [{**place, "size"}]: the FDEs
      "note_gc": [{"safepoints": [place], "frame_size", "arity", "roots": [bytes]}]
      "frametable": [{**place, "frame_size", "roots": [bytes]}]}]}

A slot is {"register", "offset"}; a location has "kind" and "size", too, or, where it is a constant,
"kind", "size" and "value".
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from listeners.errors import JITListenerError
from listeners.events import LoadedObject
from listeners.objectfile import SHF_ALLOC, ObjectFile
from listeners.safepoints.registers import register_name
from listeners.safepoints.safepoint import Safepoint
from listeners.safepoints.stackmap import Location
from listeners.safepoints.statepoint import Slot
from listeners.safepoints.tables import ObjectTables

from .command import carry_out, complain
from .outside import Registered, Target

__all__ = ["RecordingObject", "main", "show"]

Json = dict[str, Any]
MAGIC = b"\x7fELF"
FIRST_ADDRESS = 0x10000  # of what is not loaded: low, since .note.gc has addresses of 32 bits


class RecordingObject(NamedTuple):
    """An object whose tables are shown."""

    name: str
    elf: bytes
    """As it was emitted."""
    addresses: Mapping[int, int] | None
    """The load addresses of its sections by index; None if it is not loaded."""


def main(arguments: list[str]) -> int:
    """Show the tables that the command line asks for; gives the exit status."""
    parser = ArgumentParser(
        prog="jitlisten stackmap",
        description="Show what objects record of call sites, roots, faults and exceptions.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        metavar="FILE|PID",
        help="an object file, as compilers emit it; or the number of a process",
    )
    parser.add_argument("--json", action="store_true", help="write JSON instead of tables")
    options = parser.parse_args(arguments)
    if options.what.isascii() and options.what.isdecimal() and not Path(options.what).exists():
        target = Target(int(options.what), None)
        return carry_out("stackmap", lambda: _show_process(target, options.json))
    return carry_out("stackmap", lambda: show(_from_file(options.what), as_json=options.json))


def _from_file(path: str) -> list[RecordingObject]:
    try:
        with Path(path).open("rb") as file:
            elf = file.read(64)
            if elf.startswith(MAGIC):  # else it may be endless
                elf += file.read()
        return [RecordingObject(path, elf, None)]
    except OSError as error:
        raise JITListenerError(f"{path}: {error.strerror}") from error


def _show_process(target: Target, as_json: bool) -> int:
    def recording(found: Registered) -> RecordingObject:
        addresses = {section.index: section.address for section in found.obj.sections}
        return RecordingObject(found.obj.name, found.obj.elf, addresses)

    objects, problems = target.look(recording)
    status = show(objects, as_json=as_json)
    return complain("stackmap", problems) or status


def show(objects: Iterable[RecordingObject], *, as_json: bool) -> int:
    """Show what objects record; gives the exit status: 1 where anything is not understood.

    Tables are of those objects that have recorded anything.
    """
    status = 0
    described = []
    for one in objects:
        try:
            described.append(_describe(one))
        except JITListenerError as error:
            print(f"jitlisten stackmap: {one.name}: {error}", file=sys.stderr)
            status = 1
    if as_json:
        print(json.dumps({"objects": described}, indent=2))
    else:
        of_interest = [one for one in described if any(one[key] for key in one if key != "name")]
        for found in of_interest:
            _print_tables(found)
        if described and not of_interest:
            print("nothing recorded")
    if any("error" in safepoint for found in described for safepoint in found["safepoints"]):
        status = 1
    return status


# As JSON


def _describe(one: RecordingObject) -> Json:
    obj = _placed(one)
    tables = ObjectTables(obj)
    machine = tables.safepoints.machine

    def place(address: int) -> Json:
        function = obj.function_at(address) or obj.function_at(address - 1)
        return {
            "function": function.demangled if function else None,
            "offset": address - (function.address if function else 0),
            "address": None if one.addresses is None else address,
        }

    return {
        "name": one.name,
        "safepoints": [
            {**place(safepoint.address), **_safepoint(safepoint, machine)}
            for safepoint in tables.safepoints
        ],
        "faults": [
            {
                **place(fault.address),
                "kind": fault.kind.name.lower(),
                "handler": place(fault.handler),
            }
            for fault in tables.faults
        ],
        "call_sites": [
            {
                **place(site.start),
                "size": site.end - site.start,
                "landing_pad": None if site.landing_pad is None else place(site.landing_pad),
                "actions": [action._asdict() for action in site.actions],
            }
            for site in tables.call_sites
        ],
        "frames": [{**place(frame.pc), "size": frame.size} for frame in tables.frames],
        "note_gc": [
            {**found._asdict(), "safepoints": [place(address) for address in found.safepoints]}
            for found in tables.note_gc
        ],
        "frametable": [
            {**place(found.return_address), "frame_size": found.frame_size, "roots": found.roots}
            for found in tables.frametable
        ],
    }


def _placed(one: RecordingObject) -> LoadedObject:
    """The object at its addresses, or one section after the other."""
    addresses = one.addresses
    file = ObjectFile(one.elf)
    if addresses is None:
        addresses, at = {}, FIRST_ADDRESS
        file.check_sections()
        for index, header in enumerate(file.sections):
            if header.flags & SHF_ALLOC:
                at = -(-at // (header.alignment or 1)) * (header.alignment or 1)
                addresses[index] = at
                at += header.size
    return LoadedObject(lambda: file, _no_memory, addresses)


def _no_memory(address: int, size: int) -> NoReturn:
    raise JITListenerError(f"{size} bytes at {address:#x}: the memory is not at hand")


def _safepoint(safepoint: Safepoint, machine: int) -> Json:
    found: Json = {
        "kind": safepoint.kind,
        "id": safepoint.id,
        "frame_size": safepoint.frame_size,
    }
    try:
        if safepoint.kind == "statepoint":
            statepoint = safepoint.statepoint
            return {
                **found,
                "calling_convention": statepoint.calling_convention,
                "flags": statepoint.flags,
                "deopt": [_location(location, machine) for location in statepoint.deopt],
                "allocas": [_location(location, machine) for location in statepoint.allocas],
                "roots": [[_slot(slot, machine) for slot in root] for root in statepoint.roots],
            }
        return {
            **found,
            "locations": [_location(location, machine) for location in safepoint.values],
            "live_outs": [
                [register_name(machine, register), size] for register, size in safepoint.live_outs
            ],
        }
    except JITListenerError as error:
        return {**found, "error": str(error)}


def _location(location: Location, machine: int) -> Json:
    kind = location.kind.name.lower()
    if kind == "constant":
        return {"kind": kind, "size": location.size, "value": location.offset}
    register = register_name(machine, location.register)
    return {"kind": kind, "size": location.size, "register": register, "offset": location.offset}


def _slot(slot: Slot | None, machine: int) -> Json | None:
    if slot is None:
        return None
    return {"register": register_name(machine, slot.register), "offset": slot.offset}


# As tables


def _print_tables(found: Json) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()

    def show_rows(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        if rows:
            table = Table(*columns, title=Text(title), box=SIMPLE_HEAD, title_justify="left")
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)

    console.print(Text(found["name"], style="bold"))
    show_rows(
        "Safepoints",
        ("place", "kind", "id", "frame", "values"),
        [
            (_place(one), one["kind"], str(one["id"]), _frame(one), _values(one))
            for one in found["safepoints"]
        ],
    )
    show_rows(
        "Faults",
        ("place", "kind", "handler"),
        [(_place(one), one["kind"], _place(one["handler"])) for one in found["faults"]],
    )
    show_rows(
        "Call sites",
        ("from", "bytes", "landing pad", "catches"),
        [
            (
                _place(one),
                str(one["size"]),
                _place(one["landing_pad"]) if one["landing_pad"] else "",
                ", ".join(map(_action, one["actions"])),
            )
            for one in found["call_sites"]
        ],
    )
    show_rows(
        "Frames",
        ("from", "bytes"),
        [(_place(one), str(one["size"])) for one in found["frames"]],
    )
    for title in ("note_gc", "frametable"):
        show_rows(
            {"note_gc": ".note.gc", "frametable": "OCaml frametable"}[title],
            ("place", "frame", "roots"),
            [
                (_place(place), _frame(one), " ".join(f"[sp+{root}]" for root in one["roots"]))
                for one in found[title]
                for place in one.get("safepoints", [one])
            ],
        )


def _place(place: Json) -> str:
    name, offset = place["function"], place["offset"]
    text = f"{name}+{offset:#x}" if name else hex(offset)
    return text if place["address"] is None else f"{place['address']:#x} {text}"


def _frame(one: Json) -> str:
    return "dynamic" if one["frame_size"] is None else str(one["frame_size"])


def _action(action: Json) -> str:
    if action["filter"] == 0:
        return "cleanup"
    types = ", ".join(name or "all" for name in action["types"])
    return types if action["filter"] > 0 else f"all but ({types})"


def _values(one: Json) -> str:
    if "error" in one:
        return str(one["error"])
    parts = []
    if "roots" in one:
        parts.append(f"roots {' '.join(map(_root, one['roots'])) or 'none'}")
    for title in ("deopt", "allocas", "locations"):
        if one.get(title):
            parts.append(f"{title} {' '.join(map(_written, one[title]))}")
    if one.get("live_outs"):
        parts.append(f"live out {' '.join(register for register, _ in one['live_outs'])}")
    return "; ".join(parts)


def _root(root: list[Json | None]) -> str:
    base, derived = (f"[{slot['register']}{slot['offset']:+}]" if slot else "null" for slot in root)
    return base if base == derived else f"{base}→{derived}"


def _written(location: Json) -> str:
    kind = location["kind"]
    if kind == "constant":
        return str(location["value"])
    if kind == "register":
        return str(location["register"])
    text = f"{location['register']}{location['offset']:+}"
    return f"[{text}]" if kind == "indirect" else text
