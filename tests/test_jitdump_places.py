"""Where a jitdump puts the rules of a frame, in perf's picture of the memory."""

from hypothesis import given
from hypothesis import strategies as st

from perfmap import FrameRules, JITCode
from perfmap.callframes import encode
from perfmap.places import Places

RULES = FrameRules(1, -8, 16, bytes([0x0C, 7, 8, 0x90, 1]), b"\x44\x0e\x10")
PAGE = 1 << 40  # an address where nothing is


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 200), st.booleans()), min_size=1),
    st.lists(st.integers(0, 60), max_size=3),
)
def test_everyone_s_rules_are_left_to_him_by_what_is_loaded_later(shapes, others):
    """As perf does it: a load takes its range from what was there."""
    places = Places()
    batches, address = [], PAGE
    for size, gap, has_rules in shapes:
        batches.append(JITCode(address, bytes(size), "f", (), RULES if has_rules else None))
        address += -(-(size + gap) // 8) * 8
    foreign = [JITCode(address + 4096 * number, b"\xc3", "other") for number in others]
    owner: dict[int, int] = {}  # by address: the function that perf finds there
    for other in sorted(foreign):
        places.take([other])
        owner[other.address] = other.address
    expected = {}
    for function, distance in zip(batches, places.take(batches), strict=True):
        start, size = function.address, len(function.code)
        end = start + size
        if distance is not None:
            rules, header = encode(RULES, size, distance)
            begin = start + ((size + 7) & ~7)
            end = begin + len(rules) + len(header)
            expected[start] = (begin + distance, end)
        owner.update(dict.fromkeys(range(start, end), start))
    for function in (*batches, *foreign):
        code = range(function.address, function.address + len(function.code))
        assert all(owner[place] == function.address for place in code)
    for start, (begin, end) in expected.items():
        assert all(owner[place] == start for place in range(begin, end))


def test_a_function_where_the_rules_of_another_were_stays_when_that_one_goes():
    places = Places()
    assert places.take([JITCode(PAGE, bytes(64), "f", (), RULES)]) == [0]
    assert places.take([JITCode(PAGE + 64, bytes(64), "g")]) == [None]
    places.free([PAGE])
    assert places.take([JITCode(PAGE, bytes(64), "h", (), RULES)]) == [None]


def test_functions_that_overlap_may_be_loaded_together():
    places = Places()
    for _ in range(2):
        places.take([JITCode(PAGE, bytes(64), "f"), JITCode(PAGE, bytes(32), "f, too")])
    places.free([PAGE])
    assert places.are_free(PAGE, PAGE + 64)


def test_rules_do_not_go_where_others_are_mapped_or_too_far(tmp_path):
    places = Places()
    assert places.take([JITCode(PAGE, bytes(64), "f", (), RULES)]) == [0]
    assert places.take([JITCode(PAGE - 64, bytes(64), "g", (), RULES)]) == [None]
    places.free([PAGE])
    assert places.take([JITCode(PAGE - 128, bytes(64), "h", (), RULES)]) == [None]
    many = [JITCode(PAGE + 4096 + 512 * n, bytes(512), "m", (), RULES) for n in range(200)]
    distances = places.take(many)
    assert distances[0] is None
    assert distances[-1] == 0
    assert None not in distances[-50:]
