"""Null dereferences that go on where the fault map says.

faults.py LINKER    prints what the functions give for a null pointer, and for a real one
"""

import ctypes
import sys

import llvmlite.binding as llvm
from jit import Program, initialize

import listeners

TEXT = """
define i64 @read(ptr %p) {
  %c = icmp eq ptr %p, null
  br i1 %c, label %null, label %rest, !make.implicit !0
null:
  ret i64 -11
rest:
  %v = load i64, ptr %p
  ret i64 %v
}
define i64 @write(ptr %p) {
  %c = icmp eq ptr %p, null
  br i1 %c, label %null, label %rest, !make.implicit !0
null:
  ret i64 -12
rest:
  store i64 7, ptr %p
  ret i64 7
}
!0 = !{}
"""
SIGSEGV, SA_SIGINFO, SA_NODEFER = 11, 4, 0x40000000
RIP = 168  # of a ucontext_t: uc_mcontext.gregs[REG_RIP], sys/ucontext.h
Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class SigAction(ctypes.Structure):
    _fields_ = (
        ("handler", Handler),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def main(linker: str) -> None:
    initialize()
    llvm.set_option("", "-enable-implicit-null-checks")
    program = Program(linker, opt=2)
    safepoints = listeners.Safepoints()
    listeners.attach(program.engine, safepoints)
    addresses = program.load(TEXT, "read", "write")
    recovered = []

    @Handler
    def handler(_signal: int, _info: int, context: int) -> None:
        place = ctypes.c_uint64.from_address(context + RIP)
        found = safepoints.fault_handler(place.value)
        assert found is not None
        recovered.append(place.value)
        place.value = found

    action = SigAction(handler, flags=SA_SIGINFO | SA_NODEFER)
    assert ctypes.CDLL(None).sigaction(SIGSEGV, ctypes.byref(action), None) == 0
    word = ctypes.c_int64(5)
    for address in addresses:
        function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)
        print(function(None), function(ctypes.addressof(word)), len(recovered))
    program.unload()
    assert [safepoints.fault_handler(address) for address in recovered] == [None, None]


if __name__ == "__main__":
    main(sys.argv[1])
