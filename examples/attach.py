"""The smallest attach: from one line on, gdb, lldb and perf know what the engine loads.

This also says what was loaded, and where:

    $ python examples/attach.py
    loaded <LoadedObject … 'add'>
      .ltext at 0x…, … bytes
      .eh_frame at 0x…, … bytes
      function add at 0x…
    add(2, 3) = 5
"""

import ctypes

import llvmlite.binding as llvm

import listeners

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

module = llvm.parse_assembly("define i64 @add(i64 %a, i64 %b) { %s = add i64 %a, %b ret i64 %s }")
machine = llvm.Target.from_default_triple().create_target_machine()
engine = llvm.create_mcjit_compiler(module, machine)

attachment = listeners.attach(engine, listeners.GDBRegistration(), listeners.PerfMap())

add = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(
    engine.get_function_address("add")
)
for obj in attachment.objects:
    print("loaded", obj)
    for section in obj.sections:
        print(f"  {section.name} at {section.address:#x}, {section.size} bytes")
    for function in obj.functions:
        print(f"  function {function.demangled} at {function.address:#x}")
print(f"add(2, 3) = {add(2, 3)}")
