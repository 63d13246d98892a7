"""A runtime with a moving collector, for functions with statepoints.

Objects are a header, references, and words. The code calls `alloc` and `poll`, both safepoints;
when they collect, every object moves, and where it was is overwritten.
"""

import ctypes
import mmap
import os
import sys
import threading
import traceback

import llvmlite.binding as llvm
from jit import Program

import listeners
from listeners.safepoints import NativeWalker, Stacks

WORD = ctypes.c_uint64
REFERENCE = "ptr addrspace(1)"
RUNTIME = """
define ptr addrspace(1) @alloc(i64 %references, i64 %words) gc "statepoint-example" {{
  %o = call ptr addrspace(1) inttoptr (i64 {alloc} to ptr)(i64 %references, i64 %words)
  ret ptr addrspace(1) %o
}}
define void @poll() gc "statepoint-example" {{
  call void inttoptr (i64 {poll} to ptr)()
  ret void
}}
"""


class Heap:
    """Two halves, of which one is in use."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, 2 * size)
        self._words = memoryview(self._memory).cast("Q")
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.used, self.next = self._start, self._start
        self.moved = 0

    def allocate(self, references: int, words: int) -> int:
        address, size = self.next, 8 * (1 + references + words)
        if address + size > self.used + self.size:
            raise MemoryError
        self.next += size
        ctypes.memset(address, 0, size)
        self._words[address - self._start >> 3] = references << 33 | size >> 3 << 1 | 1
        return address

    def collect(self, roots: list[tuple[int, int]], rewrite: bool = True) -> None:
        """Move all that the roots, slots of base and derived pointers or 0, refer to."""
        old = self.used
        self.used = self.next = scanned = 2 * self._start + self.size - old
        values = [
            tuple(WORD.from_address(slot).value if slot else 0 for slot in root) for root in roots
        ]
        for (base, derived), (old_base, old_derived) in zip(roots, values, strict=True):
            new = self._move(old_base, old)
            if rewrite and base:
                WORD.from_address(base).value = new
            if rewrite and derived:
                WORD.from_address(derived).value = new + old_derived - old_base
        while scanned < self.next:
            at = scanned - self._start >> 3
            header = self._words[at]
            for field in range(at + 1, at + 1 + (header >> 33)):
                self._words[field] = self._move(self._words[field], old)
            scanned += 8 * (header >> 1 & 0xFFFFFFFF)
        ctypes.memset(old, 0xDD, self.size)

    def _move(self, address: int, old: int) -> int:
        if not old <= address < old + self.size:
            return address
        at = address - self._start >> 3
        header = self._words[at]
        if header & 1:  # else the address it has been moved to
            size = header >> 1 & 0xFFFFFFFF
            to = self.next - self._start >> 3
            self._words[to : to + size] = self._words[at : at + size]
            header = self._words[at] = self.next
            self.next += 8 * size
            self.moved += 1
        return header


class Runtime:
    """An engine with a heap that is collected at every `every`-th call of it; 0 is never.

    With `threads` of them each collection waits until all of them have come to `poll`.
    """

    def __init__(self, linker: str, every: int = 1, size: int = 1 << 20, threads: int = 1) -> None:
        self.heap = Heap(size)
        self.every, self.rewrite = every, True
        self.calls = self.roots = self.derived = self.deepest = 0
        self._lock = threading.Lock()
        self._all_stopped = threading.Barrier(threads, self._safepoint)
        self._threads = threads
        self.program = Program(linker)
        self.safepoints = listeners.Safepoints()
        self.walker = NativeWalker(self.safepoints)
        listeners.attach(self.program.engine, self.safepoints)
        self.stacks = Stacks()
        self.alloc = self.entry(self._alloc, REFERENCE, "i64", "i64")
        self.poll = self.entry(self._all_stopped.wait)
        self.code = RUNTIME.format(alloc=self.alloc.address, poll=self.poll.address)

    def load(self, module: llvm.ModuleRef | str, *functions: str) -> list[int]:
        return self.program.load(str(module), *functions)

    def entry(self, function, result="void", *parameters):
        """A function for the code; what it raises ends the process."""

        def call(*arguments):
            try:
                return function(*arguments)
            except BaseException:  # ctypes would print it, and the code go on
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(3)

        return self.stacks.entry(call, result, *parameters)

    def _alloc(self, references: int, words: int) -> int:
        if self._threads == 1:
            self._safepoint()
        with self._lock:
            return self.heap.allocate(references, words)

    def _safepoint(self) -> None:
        self.calls += 1
        if self.every and not self.calls % self.every:
            roots = []
            for anchors in self.stacks.threads().values():
                roots += self.walker.roots(anchors)
            self.roots += len(roots)
            self.derived += sum(base != derived for base, derived in roots)
            self.deepest = max(self.deepest, len(roots))
            self.heap.collect(roots, self.rewrite)
