"""libunwind over JIT'd code, for comparison: it has to be told of it.

LLVM's engines register their frames with libgcc. libunwind looks for `.eh_frame_hdr` in the files
that are loaded, and in tables given to `_U_dyn_register`, which are like that section's
(unw_dyn_info_t in libunwind-dynamic.h, 1.6).
"""

import ctypes
from collections.abc import Callable
from typing import Any

import listeners
from listeners.ehframe import frame_header
from listeners.objectfile import SHF_EXECINSTR
from listeners.safepoints import ObjectTables
from listeners.safepoints.native import compiled

LIBRARY, PACKAGE = "libunwind.so.8", "libunwind8"
FUNCTIONS = ("_Ux86_64_getcontext", "_ULx86_64_init_local", "_ULx86_64_step", "_ULx86_64_get_reg")
REMOTE_TABLE = 2  # UNW_INFO_FORMAT_REMOTE_TABLE: pairs of offsets, from `segbase`
TABLE = 12  # where it begins in .eh_frame_hdr

# What a collector would have to do: the stack pointer of each frame, up to `most`.
STEPS = """
define i64 @steps(i64 %most) uwtable {{
  %context = alloca [4096 x i8], align 16
  %cursor = alloca [4096 x i8], align 16
  %sp = alloca i64
  %got = call i32 inttoptr (i64 {_Ux86_64_getcontext} to ptr)(ptr %context)
  %set = call i32 inttoptr (i64 {_ULx86_64_init_local} to ptr)(ptr %cursor, ptr %context)
  br label %step
step:
  %count = phi i64 [ 0, %0 ], [ %next, %frame ]
  %more = call i32 inttoptr (i64 {_ULx86_64_step} to ptr)(ptr %cursor)
  %some = icmp sgt i32 %more, 0
  %room = icmp ult i64 %count, %most
  %go.on = and i1 %some, %room
  br i1 %go.on, label %frame, label %done
frame:
  %read = call i32 inttoptr (i64 {_ULx86_64_get_reg} to ptr)(ptr %cursor, i32 7, ptr %sp)
  %next = add i64 %count, 1
  br label %step
done:
  ret i64 %count
}}
"""


class _DynamicInfo(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("next", "prev", "start_ip", "end_ip", "gp")),
        ("format", ctypes.c_int32),
        ("pad", ctypes.c_int32),
        ("load_offset", ctypes.c_uint64),
        *((name, ctypes.c_uint64) for name in ("name", "segbase", "table_words", "table")),
    )


class LibUnwind:
    """`unw_backtrace` and `unw_step`, for stacks with frames of certain objects.

    Raises OSError if there is no libunwind.
    """

    def __init__(self) -> None:
        self._library = library = ctypes.CDLL(LIBRARY)
        self.backtrace: Callable[..., int] = library.unw_backtrace
        addresses = {
            name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in FUNCTIONS
        }
        engine = compiled(STEPS.format(**addresses))
        self._alive: list[Any] = [engine]
        self.steps = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(
            engine.get_function_address("steps")
        )
        """Walks up to so many frames; how many there were."""

    def tell(self, obj: listeners.LoadedObject) -> None:
        """Have it know the frames of a loaded object."""
        frames = ObjectTables(obj).frames
        if not frames:
            return
        base = min(frame.address for frame in frames)
        header = ctypes.create_string_buffer(frame_header(frames, base, base))
        for section in obj.sections:
            if section.flags & SHF_EXECINSTR:
                info = _DynamicInfo(
                    start_ip=section.address,
                    end_ip=section.address + section.size,
                    format=REMOTE_TABLE,
                    segbase=base,
                    table_words=len(frames),
                    table=ctypes.addressof(header) + TABLE,
                )
                self._library._U_dyn_register(ctypes.byref(info))
                self._alive.append((info, header))
