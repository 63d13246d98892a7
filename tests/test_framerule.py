"""Rules of a frame: where its caller's is, by call frame information."""

import random

import pytest
from stacks import chained
from test_safepoints import loaded
from test_stackmap import emitted

from listeners import JITListenerError
from listeners.safepoints import ObjectTables
from listeners.safepoints.framerule import FrameRule, FunctionRules
from perfmap import FrameRules


def rules(code: bytes, initial: bytes = b"\x0c\x07\x08\x90\x01") -> FunctionRules:
    return FunctionRules(FrameRules(1, -8, 16, initial, code))


def test_rules_follow_the_code():
    # push rbp; CFA rsp+16; rbp at CFA-16; mov rbp, rsp; CFA by rbp; …; pop; CFA rsp+8
    found = rules(b"\x41\x0e\x10\x86\x02\x43\x0d\x06\x0a\x48\x0c\x07\x08\xc6\x44\x0b")
    assert [found.at(offset) for offset in (1, 2, 5, 12, 13, 17)] == [
        FrameRule(0, 0),
        FrameRule(8, -8),
        FrameRule(None, -8),
        FrameRule(None, -8),
        FrameRule(0, 0),
        FrameRule(None, -8),
    ]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (b"\x0c\x07", "cut off"),
        (b"\x0b", "cut off"),
        (b"\x3f", "call frame instruction 0x3f"),
        (b"\x10\x06\x01\x00", "that compute rbp"),
        (b"\x09\x06\x03", "that do not keep rbp"),
    ],
)
def test_rules_that_are_malformed_or_unknown_are_refused(code, problem):
    with pytest.raises(JITListenerError, match=problem):
        rules(code)


@pytest.mark.parametrize(
    "code", [b"\x0f\x01\x00", b"\x0c\x03\x10", b"\x0c\x06\x20", b"\x0e\x04", b"\x86\x05"]
)
def test_a_frame_that_cannot_be_left_is_refused(code):
    with pytest.raises(JITListenerError, match="whose return address is found by register"):
        rules(code).at(4)


def test_noise_for_rules_are_read_or_refused():
    chance = random.Random(5)
    refused = 0
    for _ in range(10_000):
        try:
            rules(chance.randbytes(chance.randrange(30))).at(chance.randrange(100))
        except JITListenerError:
            refused += 1
    assert 3000 < refused < 10_000


def test_walks_are_refused_for_another_machine():
    elf = emitted(chained(0, ("plain",)), "aarch64-unknown-linux-gnu", 2)
    safepoint = ObjectTables(loaded(elf)).safepoints[0]
    with pytest.raises(JITListenerError, match="on x86-64 alone"):
        _ = safepoint.frame_rule
