"""A runtime with a moving collector, for code that `place_statepoints` has made.

Objects are a header, references, and words. `alloc` and `poll` are for the code; both may collect,
and then every object moves and the old ones are overwritten.
"""

import ctypes
import mmap
import sys
import traceback

import llvmlite.binding as llvm
from jit import Program

import listeners

WORD = ctypes.c_uint64
RUNTIME = """
declare ptr @llvm.addressofreturnaddress.p0()
define ptr addrspace(1) @alloc(i64 %references, i64 %words) noinline {{
  %frame = call ptr @llvm.addressofreturnaddress.p0()
  %made = call ptr inttoptr (i64 {alloc} to ptr)(ptr %frame, i64 %references, i64 %words)
  %object = addrspacecast ptr %made to ptr addrspace(1)
  ret ptr addrspace(1) %object
}}
define void @poll() noinline {{
  %frame = call ptr @llvm.addressofreturnaddress.p0()
  call void @poll_from(ptr %frame)
  ret void
}}
define void @poll_from(ptr %frame) {{
  call void inttoptr (i64 {poll} to ptr)(ptr %frame)
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

    def collect(self, roots: list[tuple[WORD | None, WORD | None]], rewrite: bool = True) -> None:
        """Move all that the roots (base, derived) refer to; overwrite where it was."""
        old = self.used
        self.used = self.next = scanned = 2 * self._start + self.size - old
        values = [tuple(slot.value if slot else 0 for slot in root) for root in roots]
        for (base, derived), (old_base, old_derived) in zip(roots, values, strict=True):
            new = self._move(old_base, old)
            if rewrite and base:
                base.value = new
            if rewrite and derived:
                derived.value = new + old_derived - old_base
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
    """An engine with a heap that is collected at every `every`-th safepoint; 0 is never."""

    def __init__(self, linker: str, every: int = 1, size: int = 1 << 20) -> None:
        self.heap = Heap(size)
        self.every, self.rewrite = every, True
        self.calls = self.frames = self.roots = self.derived = 0
        self.program = Program(linker)
        self.safepoints = listeners.Safepoints()
        listeners.attach(self.program.engine, self.safepoints)
        kinds = ctypes.CFUNCTYPE(WORD, WORD, WORD, WORD), ctypes.CFUNCTYPE(None, WORD)
        self._callbacks = kinds[0](self._alloc), kinds[1](self._poll)
        alloc, poll = (ctypes.cast(c, ctypes.c_void_p).value for c in self._callbacks)
        self.code = RUNTIME.format(alloc=alloc, poll=poll)

    def load(self, module: llvm.ModuleRef | str, *functions: str) -> list[int]:
        return self.program.load(str(module), *functions)

    def _alloc(self, frame: int, references: int, words: int) -> int:
        try:
            self._poll(frame)
            return self.heap.allocate(references, words)
        except BaseException:  # there is nobody to throw it to
            traceback.print_exc()
            sys.stderr.flush()
            ctypes.CDLL(None)._exit(3)

    def _poll(self, frame: int) -> None:
        self.calls += 1
        if self.every and not self.calls % self.every:
            self.heap.collect(self._roots(frame), self.rewrite)

    def _roots(self, slot: int) -> list[tuple[WORD | None, WORD | None]]:
        found = []
        while safepoint := self.safepoints.lookup(WORD.from_address(slot).value):
            self.frames += 1
            pointer = slot + 8
            for root in safepoint.roots:
                found.append(tuple(s and WORD.from_address(pointer + s.offset) for s in root))
                self.derived += root.base != root.derived
            slot = pointer + safepoint.frame_size
        self.roots += len(found)
        return found
