"""wasmtime as it is, and listeners: attached to its descriptor, and to what else there is.

    wasm.py run [images] [numba]    `sploosh` runs in wasm, `numba_sum` in Numba, and are named by
                                    CodeImages or PerfMap
    wasm.py gdb                     for a debugger to stop in `sploosh`

wasmtime's own part is in `Wasm`, which knows nothing of listeners.
"""

import gc
import sys

import wasmtime

import gdbjit
import listeners

TEXT = """
(module
  (func $sploosh (export "sploosh") (param $n i64) (result i64)
    (local $x i64)
    (loop $again
      (local.set $x (i64.add (i64.mul (local.get $x) (i64.const 3)) (local.get $n)))
      (local.set $n (i64.sub (local.get $n) (i64.const 1)))
      (br_if $again (i64.gt_s (local.get $n) (i64.const 0))))
    (local.get $x)))
"""
ROUNDS = 300_000_000


class Wasm:
    """A module of wasmtime, instantiated."""

    def __init__(self, text: str = TEXT) -> None:
        config = wasmtime.Config()
        config.debug_info = True
        self.store = wasmtime.Store(wasmtime.Engine(config))
        self.module = wasmtime.Module(self.store.engine, text)
        self.exports = wasmtime.Instance(self.store, self.module, []).exports(self.store)

    def call(self, n: int) -> int:
        return self.exports["sploosh"](self.store, n)


def descriptor() -> gdbjit.Descriptor:
    (found,) = (d for d in gdbjit.descriptors() if "_libwasmtime" in d.library)
    return found


def run() -> None:
    if "images" in sys.argv:
        listener: listeners.JITEventListener = listeners.CodeImages()
    else:
        listener = listeners.PerfMap()
    attachment = listeners.attach(descriptor(), listener)
    if "numba" in sys.argv:
        listeners.attach(None, listener)
        import numba

        @numba.njit("int64(int64)")
        def numba_sum(n):
            x = 0
            for i in range(n):
                x = 3 * x + i
            return x

    wasm = Wasm()
    attachment.refresh()
    if "images" in sys.argv:
        assert not listener.problems, listener.problems
    print(wasm.call(ROUNDS))
    if "numba" in sys.argv:
        print(numba_sum(ROUNDS))


def gdb() -> None:
    listeners.attach(descriptor(), listeners.GDBRegistration())
    print(Wasm().call(10))


if __name__ == "__main__":
    {"run": run, "gdb": gdb}[sys.argv[1]]()
    gc.collect()
