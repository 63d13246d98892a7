"""IR of functions that call each other deeply, with frames of every form, down to a safepoint."""

import ctypes

from statepoints import DECLARATIONS, relocate, statepoint

# Each form of a frame: attributes of its function, and what it begins with.
FORMS = {
    "plain": ("", ""),
    "pushed": ("optsize minsize", ""),
    "framed": ('"frame-pointer"="all"', ""),
    "framed_pushed": ('"frame-pointer"="all" optsize minsize', ""),
    "dynamic": ("", "%space = alloca i8, i64 %n\n  call void @escape(ptr %space)"),
    "dynamic_pushed": (
        "optsize minsize",
        "%space = alloca i8, i64 %n\n  call void @escape(ptr %space)",
    ),
    "realigned": ("", "%space = alloca i8, i64 64, align 64\n  call void @escape(ptr %space)"),
    "large": ("", "%space = alloca [5000 x i8]\n  call void @escape(ptr %space)"),
    "all_registers": (  # rbp is one of those saved
        "",
        'call void asm sideeffect "", "~{rbx},~{rbp},~{r12},~{r13},~{r14},~{r15}"()',
    ),
    "without_unwinding": ("nounwind uwtable", ""),
}
REFERENCE = "ptr addrspace(1)"
# More arguments than registers: calls push them, which LLVM's stack size leaves out.
EXTRA = ", ".join(f"i64 %x{number}" for number in range(8))
LEAF = 1000  # the id of the safepoints that call `poll`
KIND = f"i64 (i64, {REFERENCE}{', i64' * 8})"
Function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, *[ctypes.c_int64] * 8)


def chained(poll: int, forms: tuple[str, ...] = tuple(FORMS), prefix: str = "f") -> str:
    """Functions that call the next one n times, the last the first again, and then `poll`.

    Each holds across its call a reference and one derived from it (by a number that LLVM does not
    know: it would not record it), and calls the next with a reference 16 higher. They give the sum
    of what their references are in the end: `result`.
    """
    text = [DECLARATIONS, "define void @hide(ptr %p) noinline { ret void }"]
    for number, form in enumerate(forms):
        attributes, first = FORMS[form]
        live = (f"{REFERENCE} %o", f"{REFERENCE} %d", f"{REFERENCE} null")
        target = f"@{prefix}{(number + 1) % len(forms)}"
        arguments = ("i64 %m", f"{REFERENCE} %q", *EXTRA.split(", "))
        leaf = statepoint(
            "t", "void ()", f"inttoptr (i64 {poll} to ptr)", live=live[:1], identity=LEAF
        )
        call = statepoint("u", KIND, target, arguments=arguments, live=live, identity=number)
        text.append(f"""
define i64 @{prefix}{number}(i64 %n, {REFERENCE} %o, {EXTRA}) noinline {attributes}
    gc "statepoint-example" {{
  {first}
  %stop = icmp eq i64 %n, 0
  br i1 %stop, label %leaf, label %more
leaf:
  {leaf}
  {relocate("p", "t", 0, 0)}
  %v = ptrtoint {REFERENCE} %p to i64
  ret i64 %v
more:
  %m = sub i64 %n, 1
  %i = ptrtoint {REFERENCE} %o to i64
  %j = add i64 %i, 16
  %q = inttoptr i64 %j to {REFERENCE}
  %d = getelementptr i8, {REFERENCE} %o, i64 %x7
  {call}
  {relocate("p1", "u", 0, 0)}
  {relocate("d1", "u", 0, 1)}
  %r = call i64 @llvm.experimental.gc.result.i64(token %u)
  %a = ptrtoint {REFERENCE} %p1 to i64
  %b = ptrtoint {REFERENCE} %d1 to i64
  %s = add i64 %r, %a
  %w = add i64 %s, %b
  %x = sub i64 %w, %x7
  ret i64 %x
}}""")
    return (
        "\n".join(text)
        .replace("declare void @poll()\n", "")
        .replace("@escape", "@hide")
        .replace("declare void @hide(ptr)\n", "")
    )


def result(depth: int, first: int, moved: int = 0) -> int:
    """What the functions give, called with a depth and a reference, all moved by so much."""
    references = [first + 16 * number + moved for number in range(depth + 1)]
    return sum(2 * reference for reference in references[:-1]) + references[-1]


def call(function: int, depth: int, first: int) -> int:
    return Function(function)(depth, first, *range(8))
