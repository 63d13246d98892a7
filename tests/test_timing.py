"""The time that engines and listeners take: nobody pays who does not ask."""

from __future__ import annotations

import time

import pytest
from heard import function
from traces import Slow

import listeners
from listeners.timing import watchers


def test_nothing_is_measured_unless_an_attached_listener_asks(program, path):
    before = list(watchers)  # other tests leave theirs
    listeners.Trace(path)
    assert watchers == before
    attachment = listeners.attach(program.engine, listeners.PerfMap(), listeners.Trace(path))
    program.load(function("f"), "f")
    attachment.detach()
    assert watchers == [*before, attachment]  # "f" is followed to its end
    program.unload()
    program.engine.close()
    assert watchers == before
    with pytest.raises(listeners.JITListenerError):
        listeners.attach(program.engine, Times([]))
    assert watchers == before


class Times(listeners.JITEventListener):
    def __init__(self, calls: list[listeners.EngineCall]) -> None:
        self.calls = calls

    def notify_time_spent(self, call: listeners.EngineCall) -> None:
        self.calls.append(call)


def test_any_listener_may_ask(program):
    calls: list[listeners.EngineCall] = []
    slow = Slow()
    before = time.monotonic_ns()
    with listeners.attach(program.engine, slow, times := Times(calls)) as attachment:
        program.load(function("f"), "f")
        (obj,) = attachment.objects
    (call,) = calls
    told = [(one.listener, one.obj) for one in call.notifications]
    assert told == [(slow, obj), (times, obj)]
    moments = [before, call.start]
    for one in call.notifications:
        moments += one.start, one.end
    assert moments == sorted(moments)
    assert moments[-1] <= call.end <= time.monotonic_ns()


def test_a_listener_that_fails_is_logged_once(program, caplog):
    class Failing(listeners.JITEventListener):
        def notify_time_spent(self, call):
            raise ValueError("times")

    calls: list[listeners.EngineCall] = []
    with listeners.attach(program.engine, Failing(), Times(calls)):
        program.load(function("f"), "f")
        program.load(function("g"), "g")
    assert len(calls) == 2
    assert caplog.text.count("Failing.notify_time_spent failed for EngineCall(") == 1
