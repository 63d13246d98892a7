"""Names as people wrote them: Numba's as Numba prints signatures, C++'s as c++filt does."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import from_dtype, types
from numba.core.funcdesc import default_mangler
from numba.core.itanium_mangler import prepend_namespace
from tools import run, tool

from listeners.demangle import demangle, numba_name

ARRAY = types.Array(types.float64, 1, "C")
FLAGS = "c8tJTC/WwGaMLSgd6CjA4xXKR0+qKIYSQ=="  # as Numba compresses and mangles its options


def mangled(name: str, *arguments: types.Type) -> str:
    return default_mangler(name, arguments, abi_tags=(FLAGS,), uid=12)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        *((each,) for each in sorted(types.number_domain, key=str)),
        (types.boolean, types.none, types.complex64, types.float16),
        (ARRAY, types.Array(types.int32, 3, "F"), types.Array(types.complex128, 2, "A")),
        (types.Array(types.uint8, 1, "C", readonly=True), types.int64),
        (types.Array(ARRAY.dtype, 1, "A", readonly=True, aligned=False),),
        (types.UniTuple(types.int64, 2), types.Tuple((types.int64, ARRAY)), types.Tuple(())),
        (types.UniTuple(types.Tuple((types.UniTuple(ARRAY, 3), types.boolean)), 2),),
        (types.StarArgUniTuple(types.int64, 2), types.StarArgTuple((types.int8, types.float32))),
        (types.unicode_type, types.Bytes(types.uint8, 1, "C", readonly=True)),
        (types.NPDatetime("ns"), types.NPTimedelta("D"), types.List(types.int64, reflected=True)),
        (types.DictType(types.unicode_type, ARRAY), types.ListType(types.int64)),
        (types.Omitted(1.5), types.Omitted(None), types.Optional(types.int64)),
        (types.literal(7), types.literal("a.b: 'ä'"), types.range_state64_type, types.pyobject),
        (types.CPointer(types.float64), types.intp, types.voidptr),
    ],
    ids=lambda arguments: ",".join(map(str, arguments)) or "none",
)
def test_signatures_are_as_numba_prints_them(arguments):
    expected = f"app.mean({', '.join(map(str, arguments))})"
    assert demangle(mangled("app.mean", *arguments)) == expected


def test_a_record_is_told_by_its_number():
    record = from_dtype(numpy.dtype([("x", "f8"), ("y", "i4")]))
    name = demangle(mangled("app.f", types.Array(record, 1, "C")))
    assert name == f"app.f(unaligned array(Record({record._code}), 1d, C))"


@pytest.mark.parametrize(
    "name",
    ["__main__.outer.<locals>.inner", "a.b.C.<lambda>", "<dynamic>.größe", "app.conv_2d.size_3c"],
)
def test_names_are_those_in_the_source(name):
    assert demangle(mangled(name, types.int64)) == f"{name}(int64)"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (prepend_namespace(mangled("app.f"), "cpython"), "cpython wrapper"),
        ("cfunc." + mangled("app.f"), "cfunc wrapper"),
        ("__ufunc__." + mangled("app.f"), "ufunc loop"),
        ("__gufunc__." + mangled("app.f"), "gufunc loop"),
        (".kernel.140219___ufunc__." + mangled("app.f"), "ufunc kernel"),
        (".kernel.140219___gufunc__." + mangled("app.f"), "gufunc kernel"),
        (mangled("app.f") + ".7", "clone .7"),
    ],
)
def test_what_only_calls_a_function_is_told_apart_from_it(name, role):
    assert demangle(name) == f"app.f() [{role}]"


def test_the_parts_of_a_generator():
    def generator(n):
        yield n

    kind = types.Generator(generator, types.int64, (types.int64, ARRAY), (), True)
    step = default_mangler("app.generator.next", (kind,))
    expected = "app.generator(int64, array(float64, 1d, C))"
    assert demangle(step) == f"{expected} [next]"
    assert demangle(prepend_namespace(step, "cpython")) == f"{expected} [next] [cpython wrapper]"
    assert demangle(f"finalize_{step}") == f"{expected} [finalizer]"


CXX = [
    "_ZN4game5laterEi",
    "_ZNKSt6vectorIiSaIiEE4sizeEv",
    "_ZN3foo3barB5cxx11Ev",
    "_ZNSt3__14sortB8ne180100IPiEEvT_S2_",
    "_ZN9game_2d_x4nextEN4game5modelE",
    "_Z3fooPFivE",
    "_ZN4game5laterEi.cold",
]


def test_the_names_of_cxx_are_as_cxxfilt_has_them():
    assert [demangle(name) for name in CXX] == run(tool("c++filt"), *CXX).splitlines()


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "",
        "a_2d_Zebra",
        "NRT_incref",
        "_Z",
        "_ZN",
        "_ZN3foo",
        "_ZN8__main__1fB2v1",
        "_Zx_3c",
    ],
)
def test_what_is_not_mangled_stays(name):
    assert demangle(name) == name


@given(st.text("_ZNIEBLi0123459vx.-äT") | st.text(), st.integers(0, 80), st.integers(0, 80))
def test_no_name_is_an_error(text, start, end):
    name = mangled("app.mean", ARRAY, types.UniTuple(ARRAY, 2))
    demangle(name[:start] + text + name[end:])
    demangle(f"_Z{text}")


def test_types_as_deep_as_the_name_is_long_are_not_numbas():
    assert numba_name("_ZN1a1fB2v1E" + "1aI" * 100_000 + "E" * 100_000) is None
