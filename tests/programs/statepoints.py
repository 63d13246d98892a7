"""IR with stackmaps, patchpoints and statepoints, in many forms, for tests."""

import random
import re

DECLARATIONS = """
declare token @llvm.experimental.gc.statepoint.p0(i64, i32, ptr, i32, i32, ...)
declare ptr addrspace(1) @llvm.experimental.gc.relocate.p1(token, i32, i32)
declare i64 @llvm.experimental.gc.result.i64(token)
declare void @llvm.experimental.stackmap(i64, i32, ...)
declare void @llvm.experimental.patchpoint.void(i64, i32, ptr, i32, ...)
declare i64 @llvm.experimental.patchpoint.i64(i64, i32, ptr, i32, ...)
declare void @escape(ptr)
declare void @poll()
declare void @keep(ptr addrspace(1))
declare i64 @many(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64)
"""


def statepoint(
    name: str,
    kind: str = "void ()",
    target: str = "@poll",
    *,
    identity: int = 0,
    arguments: tuple[str, ...] = (),
    live: tuple[str, ...] = (),
    deopt: tuple[str, ...] = (),
    flags: int = 0,
) -> str:
    """A call of `target`, a function of type `kind`, as a statepoint, its token being %name."""
    given = "".join(f", {argument}" for argument in arguments)
    bundles = [f'"{tag}"({", ".join(values)})' for tag, values in
               (("gc-live", live), ("deopt", deopt)) if values]  # fmt: skip
    call = (
        f"%{name} = call token (i64, i32, ptr, i32, i32, ...)"
        f" @llvm.experimental.gc.statepoint.p0(i64 {identity}, i32 0,"
        f" ptr elementtype({kind}) {target}, i32 {len(arguments)}, i32 {flags}{given},"
        " i32 0, i32 0)"
    )
    return f"{call} [ {', '.join(bundles)} ]" if bundles else call


def relocate(name: str, token: str, base: int, derived: int) -> str:
    """A live reference after a statepoint, by its indices in "gc-live"."""
    return (
        f"%{name} = call ptr addrspace(1) @llvm.experimental.gc.relocate.p1("
        f"token %{token}, i32 {base}, i32 {derived})"
    )


class _Body:
    """A function of random points; its values are i64 and references."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.lines: list[str] = []
        self.allocas: list[str] = []
        self.made: list[str] = []
        self.numbers = ["%a", "%b"]
        self.references = ["%o", "%p"]
        self.count = 0

    def new(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def number(self) -> str:
        constant = self.chance.choice((0, 1, -1, 7, 2**31 - 1, 2**31, -(2**31), 2**40, -(2**62)))
        return f"i64 {self.chance.choice((*self.numbers, constant))}"

    def some(self, most: int) -> list[str]:
        return [self.number() for _ in range(self.chance.randrange(most))]

    def stackmap(self) -> None:
        values = "".join(f", {value}" for value in self.some(9))
        shadow = self.chance.choice((0, 4, 16))
        self.lines.append(
            "call void (i64, i32, ...) @llvm.experimental.stackmap("
            f"i64 {self.chance.getrandbits(63)}, i32 {shadow}{values})"
        )

    def patchpoint(self) -> None:
        target = self.chance.choice(("null", "inttoptr (i64 20014547599360 to ptr)"))
        arguments = [self.number() for _ in range(self.chance.randrange(4))]
        values = "".join(f", {value}" for value in (*arguments, *self.some(5)))
        result, convention = "void", ""
        if self.chance.random() < 0.5:
            name = self.new()
            result, convention = "i64", self.chance.choice(("", "anyregcc "))
            self.numbers.append(f"%{name}")
        self.lines.append(
            f"{f'%{name} = ' if result == 'i64' else ''}call {convention}{result}"
            f" (i64, i32, ptr, i32, ...) @llvm.experimental.patchpoint.{result}("
            f"i64 {self.chance.getrandbits(63)}, i32 32, ptr {target},"
            f" i32 {len(arguments)}{values})"
        )

    def derive(self) -> None:
        name = self.new()
        self.lines.append(
            f"%{name} = getelementptr i8, ptr addrspace(1) {self.references[-1]}, i64 8"
        )
        self.references.append(f"%{name}")
        self.made.append(f"%{name}")

    def alloca(self) -> None:
        name = self.new()
        self.lines.append(f"%{name} = alloca [{self.chance.randrange(1, 5)} x ptr addrspace(1)]")
        self.lines.append(f"call void @escape(ptr %{name})")
        self.allocas.append(f"ptr %{name}")

    def statepoint(self) -> None:
        token = self.new()
        live = self.references[-self.chance.randrange(1, 5) :]
        chosen = [f"ptr addrspace(1) {reference}" for reference in live]
        if self.chance.random() < 0.2:
            chosen.append("ptr addrspace(1) null")
        chosen += self.allocas[: self.chance.randrange(3)]
        many = self.chance.random() < 0.3
        self.lines.append(
            statepoint(
                token,
                *((f"i64 ({', '.join(['i64'] * 10)})", "@many") if many else ()),
                identity=self.chance.getrandbits(62),
                arguments=tuple(self.number() for _ in range(10)) if many else (),
                live=tuple(chosen),
                deopt=tuple(self.some(5)),
            )
        )
        fresh = []
        for index in range(len(live)):
            name = self.new()
            self.lines.append(relocate(name, token, self.chance.randrange(index + 1), index))
            fresh.append(f"%{name}")
            self.made.append(f"%{name}")
        self.references = fresh
        if many:
            name = self.new()
            self.lines.append(
                f"%{name} = call i64 @llvm.experimental.gc.result.i64(token %{token})"
            )
            self.numbers.append(f"%{name}")

    def text(self, number: int) -> str:
        collected = self.chance.random() < 0.7
        if collected:
            for _ in range(self.chance.randrange(3)):
                self.alloca()
        if self.chance.random() < 0.3:  # a frame of no fixed size
            self.lines += ["%dynamic = alloca i8, i64 %a", "call void @escape(ptr %dynamic)"]
        kinds = [self.statepoint, self.derive] if collected else [self.stackmap, self.patchpoint]
        for _ in range(self.chance.randrange(1, 10)):
            self.chance.choice(kinds)()
        text = "\n".join(self.lines)
        for reference in self.made:  # at opt 0, LLVM aborts over a relocate without a use
            if len(re.findall(rf"{reference}\b", text)) == 1:
                self.lines.append(f"call void @keep(ptr addrspace(1) {reference})")
        result = self.chance.choice(self.numbers)
        attributes = self.chance.choice(
            ("", "optsize minsize", '"frame-pointer"="all"', "nounwind")
        )
        if collected:
            attributes += ' gc "statepoint-example"'
        head = f"define i64 @f{number}(i64 %a, i64 %b, ptr addrspace(1) %o, ptr addrspace(1) %p)"
        lines = "\n  ".join((*self.lines, f"ret i64 {result}"))
        return f"{head} {attributes} {{\n  {lines}\n}}\n"


def random_module(seed: int) -> str:
    """A module of functions with points of all kinds, and without floating point."""
    chance = random.Random(seed)
    count = chance.randrange(1, 6)
    return DECLARATIONS + "".join(_Body(chance).text(number) for number in range(count))
